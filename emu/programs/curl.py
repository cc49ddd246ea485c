"""`curl` for `exec`: the options that people use to look at a network, with curl's exit codes and words.

Decides options, redirects, retries, `-w` and where output goes; one exchange is `curl_transfer`'s. HTTP only: other schemes
fail as in a curl built without them. There is no progress meter, as on a terminal. See curl(1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from emu.pod.program import Context
from emu.programs.curl_transfer import TIMED_OUT, VERSION, Ask, CurlError, Exchange, Result

TRY = "curl: try 'curl --help' or 'curl --manual' for more information"
MAX_REDIRECTS = 50
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
# option -> (short form, takes an argument); what curl has beyond these is refused by name
OPTIONS = {
    "silent": ("s", False), "show-error": ("S", False), "verbose": ("v", False), "include": ("i", False), "head": ("I", False),
    "output": ("o", True), "write-out": ("w", True), "max-time": ("m", True), "connect-timeout": ("", True), "request": ("X", True),
    "data": ("d", True), "data-raw": ("", True), "data-binary": ("", True), "header": ("H", True), "retry": ("", True),
    "retry-delay": ("", True), "retry-connrefused": ("", False), "retry-all-errors": ("", False), "insecure": ("k", False),
    "fail": ("f", False), "fail-with-body": ("", False), "location": ("L", False), "max-redirs": ("", True), "user-agent": ("A", True),
    "get": ("G", False), "no-progress-meter": ("", False), "http1.1": ("", False), "ipv4": ("4", False), "no-keepalive": ("", False),
    "globoff": ("g", False), "no-buffer": ("N", False), "version": ("V", False), "url": ("", True), "noproxy": ("", True),
}  # fmt: skip
SHORT = {short: name for name, (short, _) in OPTIONS.items() if short}
NUMBERS = {"max-time", "connect-timeout", "retry", "retry-delay", "max-redirs"}


class UsageError(Exception):
    """A command line that curl refuses (exit 2)."""


@dataclass(slots=True)
class Options:
    """The command line, read: flags that are set, the last value of each option, and what may come repeatedly."""

    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    headers: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def number(self, name: str, default: float) -> float:
        return float(self.values.get(name, default))


def parse(argv: list[str]) -> Options:
    """Read a command line; UsageError carries curl's message."""
    options, rest, literal = Options(), list(argv), False
    while rest:
        word = rest.pop(0)
        if literal or not word.startswith("-") or word == "-":
            options.urls.append(word)
        elif word == "--":
            literal = True
        elif word.startswith("--"):
            name = word[2:]
            if name not in OPTIONS:
                raise UsageError(f"curl: option {word}: is unknown")
            _set(options, name, word, rest if OPTIONS[name][1] else None)
        else:
            _short(options, word, rest)
    return options


def _short(options: Options, word: str, rest: list[str]) -> None:
    """`-sS`, `-m5`, `-m 5`, `-sSo /dev/null`."""
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        name = SHORT.get(letter)
        if name is None:
            raise UsageError(f"curl: option {word}: is unknown")
        if OPTIONS[name][1]:
            _set(options, name, f"-{letter}", [letters] if letters else rest)
            return
        _set(options, name, f"-{letter}", None)


def _set(options: Options, name: str, shown: str, values: list[str] | None) -> None:
    if values is None:
        options.flags.add(name)
        return
    if not values:
        raise UsageError(f"curl: option {shown}: requires parameter")
    value = values.pop(0)
    if name in NUMBERS and not re.fullmatch(r"\d+(\.\d+)?", value):
        raise UsageError(f"curl: option {shown}: expected a proper numerical parameter")
    lists = {"header": options.headers, "data": options.data, "data-raw": options.data, "data-binary": options.data, "url": options.urls,
             "output": options.outputs}  # fmt: skip
    if name in lists:
        lists[name].append(value)
    else:
        options.values[name] = value


def _say_nothing(line: str) -> None:
    """Without -v."""


def curl(ctx: Context) -> int:
    """The command; its exit code."""
    try:
        options = parse(list(ctx.argv[1:]))
        if "version" in options.flags:
            ctx.stdout.write(f"curl {VERSION} (podwire)\nProtocols: http\n")
            return 0
        if not options.urls:
            raise UsageError("curl: no URL specified!")
    except UsageError as error:
        ctx.log(str(error))
        ctx.log(TRY)
        return 2
    code = 0
    for index, url in enumerate(options.urls):
        output = options.outputs[index] if index < len(options.outputs) else "-"
        code = Transfer(ctx, options, url, output).run()
    return code


class Transfer:
    """One URL, with its redirects and retries."""

    def __init__(self, ctx: Context, options: Options, url: str, output: str) -> None:
        self.ctx, self.options, self.url = ctx, options, url
        self._discard = output == "/dev/null"
        self._file = output not in ("-", "/dev/null")
        self.begun = ctx.now()
        self.result = Result()
        self.effective, self.method, self.redirects, self.connects = url, "GET", 0, 0
        self._expected_failure = False

    def run(self) -> int:
        options, ctx = self.options, self.ctx
        tries, delay = int(options.number("retry", 0)), options.number("retry-delay", 0) or 1.0
        while True:
            self.begun = ctx.now()
            code, message = self._once()
            if not tries or not self._transient(code) or ctx.terminating:
                break
            self._complain(code, message)
            tries -= 1
            ctx.sleep(delay)
            delay = delay if options.number("retry-delay", 0) else min(delay * 2, 600.0)
        self._complain(code, message)
        if "write-out" in options.values:
            ctx.stdout.write(self.write_out(options.values["write-out"], code, message))
        return code

    def _complain(self, code: int, message: str) -> None:
        if code and ("silent" not in self.options.flags or "show-error" in self.options.flags):
            self.ctx.log(f"curl: ({code}) {message}")

    def _transient(self, code: int) -> bool:
        if "retry-all-errors" in self.options.flags and code:
            return True
        if code == 7 and "retry-connrefused" in self.options.flags:
            return True
        return code in (6, TIMED_OUT) or self.result.status in RETRIED_STATUS

    def _once(self) -> tuple[int, str]:
        """One try: (exit code, message)."""
        if self._file:
            return 23, "Failure writing output to destination"  # a container has no file system to write to
        limit = self.options.number("max-time", 0)
        deadline = self.begun + limit if limit else None
        self.effective, self.redirects, self.connects = self.url, 0, 0
        self.result = Result()
        try:
            ask = self.ask(self.url)
            while True:
                self.method = ask.method
                self._exchange(ask, deadline)
                location = self.result.header("location")
                if "location" not in self.options.flags or not location or self.result.status not in (301, 302, 303, 307, 308):
                    break
                most = int(self.options.number("max-redirs", MAX_REDIRECTS))
                if self.redirects >= most:
                    return 47, f"Maximum ({most}) redirects followed"
                ask = self._follow(ask, location)
        except CurlError as error:
            return error.code, str(error)
        if self.options.flags & {"fail", "fail-with-body"} and self.result.status >= 400:
            return 22, f"The requested URL returned error: {self.result.status}"
        return 0, ""

    def _exchange(self, ask: Ask, deadline: float | None) -> None:
        flags = self.options.flags
        limit = self.options.number("connect-timeout", 0) or None
        exchange = Exchange(
            self.ctx, ask, begun=self.begun, deadline=deadline, connect_timeout=limit, number=self.connects,
            on_head=lambda head: self._write(head) if flags & {"include", "head"} else None,
            on_body=lambda body: self._body(exchange.result, body),
            verbose=self.ctx.log if "verbose" in flags else _say_nothing,
        )  # fmt: skip
        try:
            exchange.run()
        finally:
            self.result = exchange.result
            self.connects += exchange.result.connects

    def _body(self, result: Result, data: bytes) -> None:
        redirected = "location" in self.options.flags and result.status in (301, 302, 303, 307, 308) and result.header("location")
        failed = "fail" in self.options.flags and result.status >= 400
        if not redirected and not failed:
            self._write(data)

    def _write(self, data: bytes) -> None:
        if not self._discard:
            self.ctx.stdout.buffer.write(data)

    # ---- requests --------------------------------------------------------------------------------------------------------------

    def ask(self, url: str) -> Ask:
        """The request for a URL; CurlError 1 for a scheme and 3 for an address that cannot be."""
        scheme, colon, _ = url.partition("://")
        if not colon:
            url = f"http://{url}"
        elif scheme.lower() != "http":
            raise CurlError(1, f'Protocol "{scheme}" not supported or disabled in libcurl')
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host:
            raise CurlError(3, "URL using bad/illegal format or missing URL")
        options = self.options
        data = "&".join(options.data) if options.data else None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if data is not None and "get" in options.flags:
            target, data = f"{target}{'&' if parts.query else '?'}{data}", None
        method = options.values.get("request") or ("HEAD" if "head" in options.flags else "POST" if data is not None else "GET")
        authority = parts.netloc.rpartition("@")[2]
        ask = Ask(url, host, 80 if port is None else port, authority, target, method, body=None if data is None else data.encode())
        ask.headers = self._headers(ask)
        return ask

    def _headers(self, ask: Ask) -> list[tuple[str, str]]:
        """Curl's own, then the user's: `Name: value` sets, `Name:` takes away, `Name;` sends it empty."""
        headers = {"Host": ask.authority, "User-Agent": self.options.values.get("user-agent", f"curl/{VERSION}"), "Accept": "*/*"}
        extra: list[tuple[str, str]] = []
        if ask.body is not None:
            headers |= {"Content-Length": str(len(ask.body)), "Content-Type": "application/x-www-form-urlencoded"}
        for line in self.options.headers:
            name, colon, value = line.partition(":")
            if not colon and name.endswith(";"):
                name, value, colon = name[:-1], "", ";"
            known = next((key for key in headers if key.lower() == name.lower()), None)
            if known is not None:
                del headers[known]
            if value.strip() or colon == ";":
                extra.append((name, value.strip()))
        host = next((value for name, value in extra if name.lower() == "host"), None)
        own = [("Host", host)] if host is not None else []
        return [*own, *headers.items(), *((name, value) for name, value in extra if name.lower() != "host")]

    def _follow(self, ask: Ask, location: str) -> Ask:
        """The request after a redirect: POST becomes GET after 301, 302 and 303, unless -X says otherwise."""
        self.redirects += 1
        self.effective = urljoin(ask.url, location)
        if "verbose" in self.options.flags:
            self.ctx.log(f"* Issue another request to this URL: '{self.effective}'")
        following = self.ask(self.effective)
        if self.result.status in (301, 302, 303) and ask.body is not None and "request" not in self.options.values:
            following.method, following.body = "GET", None
            following.headers = self._headers(following)
        return following

    # ---- -w ----------------------------------------------------------------------------------------------------------------------

    def write_out(self, template: str, code: int, message: str) -> str:
        """`-w`: %{variables}, %%, and the escapes for newline, return and tab."""
        result = self.result
        total = self.ctx.now() - self.begun
        variables: dict[str, str | int | float] = {
            "http_code": f"{result.status:03}", "response_code": f"{result.status:03}", "http_version": result.version,
            "time_namelookup": result.resolved, "time_connect": result.connected, "time_appconnect": 0.0,
            "time_pretransfer": result.connected, "time_starttransfer": result.started, "time_total": total, "time_redirect": 0.0,
            "size_download": result.size, "size_upload": len(self._uploaded()), "speed_download": int(result.size / total) if total else 0,
            "remote_ip": result.remote[0], "remote_port": result.remote[1], "local_ip": result.local[0], "local_port": result.local[1],
            "num_connects": self.connects, "num_redirects": self.redirects, "url": self.url, "url_effective": self.effective,
            "content_type": result.header("content-type"), "method": self.method, "scheme": "HTTP", "exitcode": code, "errormsg": message,
            "redirect_url": urljoin(self.effective, result.header("location")) if result.header("location") else "", "urlnum": 0,
        }  # fmt: skip
        variables["json"] = json.dumps(variables)

        def fill(match: re.Match[str]) -> str:
            value = variables.get(match[1])
            if value is None:
                self.ctx.log(f"curl: unknown --write-out variable: '{match[1]}'")
                return ""
            return f"{value:.6f}" if isinstance(value, float) else str(value)

        escapes: Callable[[re.Match[str]], str] = lambda match: {"n": "\n", "r": "\r", "t": "\t"}.get(match[1], match[0])  # noqa: E731
        return re.sub(r"%\{(\w+)\}", fill, re.sub(r"\\(.)", escapes, template)).replace("%%", "%")

    def _uploaded(self) -> str:
        return "&".join(self.options.data)
