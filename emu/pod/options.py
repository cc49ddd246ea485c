"""Socket options: which there are, which values they take, what is inherited, and what TCP is told of them.

One table, of socket(7) and tcp(7); an option that is not in it does not exist here (ENOPROTOOPT). Knows no sockets and no threads.
"""

from __future__ import annotations

import errno
import socket as std
from dataclasses import replace
from typing import Any, NamedTuple

from emu.pod.errors import failure
from emu.tcp import Connection

Key = tuple[int, int]  # level and name

_KEEPALIVE, _NODELAY, _CORK = (std.SOL_SOCKET, std.SO_KEEPALIVE), (std.IPPROTO_TCP, std.TCP_NODELAY), (std.IPPROTO_TCP, std.TCP_CORK)


class Option(NamedTuple):
    """`highest` 1 means a switch, for which any value but 0 is 1; `field` is TcpConfig's, in whose unit one of the option's is `unit`."""

    highest: int
    default: int = 0
    lowest: int = 0
    field: str = ""
    unit: float = 1


OPTIONS: dict[Key, Option] = {
    (std.SOL_SOCKET, std.SO_REUSEADDR): Option(1),  # a port in TIME_WAIT can be listened on anyway
    _KEEPALIVE: Option(1),
    _NODELAY: Option(1),
    _CORK: Option(1),
    (std.IPPROTO_TCP, std.TCP_KEEPIDLE): Option(32_767, 7200, 1, "keepalive_time", 1.0),
    (std.IPPROTO_TCP, std.TCP_KEEPINTVL): Option(32_767, 75, 1, "keepalive_intvl", 1.0),
    (std.IPPROTO_TCP, std.TCP_KEEPCNT): Option(127, 9, 1, "keepalive_probes"),
    (std.IPPROTO_TCP, std.TCP_USER_TIMEOUT): Option((1 << 31) - 1, 0, 0, "user_timeout", 0.001),
}


def checked(key: Key, value: int | bytes) -> int:
    """The value as it is kept and told; OSError ENOPROTOOPT for an option that there is not, EINVAL for what it does not take."""
    option = OPTIONS.get(key)
    if option is None or not isinstance(value, int):
        raise failure(errno.ENOPROTOOPT)
    if option.highest == 1:
        return int(bool(value))
    if not option.lowest <= value <= option.highest:
        raise failure(errno.EINVAL)
    return value


def current(key: Key, kept: dict[Key, int]) -> int:
    """What getsockopt tells."""
    if key not in OPTIONS:
        raise failure(errno.ENOPROTOOPT)
    return kept.get(key, OPTIONS[key].default)


def apply(connection: Connection, key: Key, value: int, now: float) -> None:
    """Tell a connection of one option."""
    option = OPTIONS[key]
    if option.field:
        told: dict[str, Any] = {option.field: value * option.unit}
        connection.config = replace(connection.config, **told)
        if connection.keepalive and option.field == "keepalive_time":
            connection.set_keepalive(True, now)
    elif key == _KEEPALIVE:
        connection.set_keepalive(bool(value), now)
    elif key == _NODELAY:
        connection.set_nodelay(bool(value), now)
    elif key == _CORK:
        connection.set_cork(bool(value), now)
