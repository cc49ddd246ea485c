"""The command line: all commands by name, and what becomes of an error.

Exit status 0 only if what was asked for happened; 1 if it did not, 2 if a flag, manifest or cluster file is wrong, 130 after
Ctrl-C; `exec` ends with its program's. Errors are lines on stderr, `error: ...`. Commands import what they need when they run, so that
`podwire --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from emu.errors import ConfigError, PodwireError
from launcher.commands.capture import capture
from launcher.commands.cluster import bench, demo, down, status, up
from launcher.commands.explain import explain
from launcher.commands.links import ON_LINKS
from launcher.commands.network import conntrack, fault, kubeconfig, routes, rules, trace
from launcher.commands.objects import apply, delete, get, scale
from launcher.commands.programs import exec_, logs
from launcher.commands.scenarios import test
from launcher.commands.tun import tun

SECTIONS = {
    "Clusters": (demo, up, down, status),
    "Objects": (apply, delete, get, scale),
    "Programs": (exec_, logs),
    "Tests": (test,),
    "The network": (trace, explain, capture, rules, conntrack, routes, fault, tun),
    "Other": (kubeconfig, bench),
}


class InSections(click.Group):
    """A group whose help lists its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str(80)) for command in commands])


@click.group(cls=InSections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="podwire", message="podwire %(version)s (Kubernetes v1.35.2)")
def podwire() -> None:
    """A wind tunnel for Kubernetes networking: real packets, hundreds of nodes, one machine, no root."""


for _command in ON_LINKS:
    fault.add_command(_command)
for _commands in SECTIONS.values():
    for _command in _commands:
        podwire.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        result = podwire.main(args=None if argv is None else [*argv], prog_name="podwire", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as usage:
        click.echo(usage.format_message())
        return 2
    except click.ClickException as error:
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        complain(error.format_message() + hint)
        return 2 if isinstance(error, click.UsageError) else error.exit_code
    except PodwireError as error:
        complain(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def complain(message: str) -> None:
    """One line an error: nothing else is written to stderr."""
    for line in message.splitlines() or [""]:
        click.echo(f"error: {line}", err=True)
