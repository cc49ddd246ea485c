"""The commands that `exec` finds in every container, whatever its image: client tools and the smallest of coreutils.

Decides names only; each tool is a file of its own. There is no shell: `sh -c` runs one plain command, and says so of more.
"""

from __future__ import annotations

import re
import shlex

from emu.pod.program import Context, Main
from emu.programs.agnhost import agnhost
from emu.programs.curl import curl
from emu.programs.nc import nc
from emu.programs.ping import ping

NOT_FOUND, CANNOT = 127, 2
SHELL_SYNTAX = re.compile(r"[|&;<>()$`*?\[\]{}~\n]")
DIRECTORIES = ("/bin/", "/usr/bin/", "/sbin/", "/usr/sbin/", "/usr/local/bin/", "/")


def command(name: str) -> Main | None:
    """The program called `name` (`curl`, `/usr/bin/curl`); None if no container has it."""
    directory = next((prefix for prefix in DIRECTORIES if name.startswith(prefix) and "/" not in name[len(prefix) :]), "")
    if "/" in name and not directory:
        return None
    return COMMANDS.get(name[len(directory) :])


def _hostname(ctx: Context) -> int:
    """`hostname`, `hostname -i`, `hostname -f`."""
    option = ctx.argv[1] if len(ctx.argv) > 1 else ""
    ctx.stdout.write(f"{ctx.pod.ip if option in ('-i', '-I') else ctx.gethostname()}\n")
    return 0


def _cat(ctx: Context) -> int:
    """Standard input, and the three files that a container has."""
    files = {"/etc/hostname": f"{ctx.gethostname()}\n", "/etc/hosts": _hosts(ctx), "/dev/null": ""}
    code = 0
    for name in ctx.argv[1:] or ("-",):
        if name == "-":
            while data := ctx.stdin.read():
                ctx.stdout.buffer.write(data)
        elif name in files:
            ctx.stdout.write(files[name])
        else:
            ctx.log(f"cat: {name}: No such file or directory")
            code = 1
    return code


def _hosts(ctx: Context) -> str:
    rows = {"127.0.0.1": ["localhost"], ctx.pod.ip: [ctx.gethostname()]}
    for name, ip in ctx.pod.hosts.items():
        rows.setdefault(ip, []).append(name)
    return "# Kubernetes-managed hosts file.\n" + "".join(f"{ip}\t{' '.join(names)}\n" for ip, names in rows.items())


def _echo(ctx: Context) -> int:
    words = list(ctx.argv[1:])
    newline = not (words and words[0] == "-n")
    ctx.stdout.write(" ".join(words if newline else words[1:]) + ("\n" if newline else ""))
    return 0


def _env(ctx: Context) -> int:
    for name, value in {"HOSTNAME": ctx.gethostname(), **ctx.env}.items():
        ctx.stdout.write(f"{name}={value}\n")
    return 0


def _sleep(ctx: Context) -> int:
    """`sleep 1.5`, `sleep 2m`."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([smhd]?)", ctx.argv[1]) if len(ctx.argv) > 1 else None
    if match is None:
        ctx.log(f"sleep: invalid time interval '{ctx.argv[1]}'" if len(ctx.argv) > 1 else "sleep: missing operand")
        return 1
    ctx.sleep(float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]])
    return 0


def _sh(ctx: Context) -> int:
    """`sh -c 'COMMAND ARGUMENTS'`, without any of the shell's syntax but quotes."""
    arguments = [argument for argument in ctx.argv[1:] if argument != "-e"]
    if len(arguments) < 2 or arguments[0] != "-c":
        ctx.log("sh: there is no shell here: only `sh -c` with one plain command")
        return CANNOT
    try:
        words = shlex.split(arguments[1])
    except ValueError as error:
        ctx.log(f"sh: syntax error: {error}")
        return CANNOT
    plain = re.sub(r"'[^']*'|\\.", "", arguments[1])
    if SHELL_SYNTAX.search(plain):
        ctx.log(f"sh: {arguments[1]!r} needs a shell, and there is none here: only one plain command")
        return CANNOT
    if not words:
        return 0
    if words[0] == "exec":
        words = words[1:]
    found = command(words[0])
    if found is None:
        ctx.log(f"sh: 1: {words[0]}: not found")
        return NOT_FOUND
    return ctx.become(found, words)


def _agnhost(ctx: Context) -> int:
    program = agnhost(ctx.argv[1:])
    if not callable(program):
        ctx.log(f"agnhost: {ctx.argv[1] if len(ctx.argv) > 1 else 'pause'} runs as a container's own program, not by exec")
        return CANNOT
    return program(ctx) or 0


COMMANDS: dict[str, Main] = {
    "agnhost": _agnhost, "bash": _sh, "cat": _cat, "curl": curl, "echo": _echo, "env": _env, "false": lambda ctx: 1, "hostname": _hostname,
    "nc": nc, "netcat": nc, "ping": ping, "printenv": _env, "sh": _sh, "sleep": _sleep, "true": lambda ctx: 0,
}  # fmt: skip
