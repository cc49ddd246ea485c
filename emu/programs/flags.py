"""Command lines as Go's pflag reads them (agnhost's are): `--name=value`, `--name value`, unknown flags refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Value = str | int


class FlagError(ValueError):
    """The message is pflag's."""


def parse_flags(argv: Sequence[str], defaults: Mapping[str, Value], positional: list[str] | None = None) -> dict[str, Value]:
    """Flag values by name; other arguments go to `positional`, or are an error without one."""
    values = dict(defaults)
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            if positional is None:
                raise FlagError(f'unknown command "{argument}"')
            positional.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        if name not in values:
            raise FlagError(f"unknown flag: --{name}")
        if not equals:
            if not rest:
                raise FlagError(f"flag needs an argument: --{name}")
            value = rest.pop(0)
        if isinstance(defaults[name], int):
            try:
                values[name] = int(value)
            except ValueError:
                raise FlagError(
                    f'invalid argument "{value}" for "--{name}" flag: strconv.ParseInt: parsing "{value}": invalid syntax'
                ) from None
        else:
            values[name] = value
    return values
