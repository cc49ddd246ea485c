"""`curl` against curl: the same command line, against the same server, by the stock tool on loopback and by ours in a pod."""

from __future__ import annotations

import re
import shutil
import socket as std
import struct
import subprocess
import threading
from collections.abc import Callable

import pytest

from emu.programs.commands import command
from tests.kit.pods import Node, pod_ip

CURL = shutil.which("curl")
needs_curl = pytest.mark.skipif(CURL is None, reason="no stock curl here")
RESET = struct.pack("ii", 1, 0)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


def read_request(sock) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    while length and len(body) < int(length[1]):
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(sock, sleep) -> None:
    """One connection of a server that does as the path says; written once, for both kinds of socket."""
    while request := read_request(sock):
        path = request.split(b" ")[1].partition(b"?")[0]
        if path == b"/reset":
            sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, RESET)
            break
        if path == b"/empty":
            break
        if path == b"/hang":
            sleep(0.3)
            break
        if path == b"/partial":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            break
        if path == b"/slowbody":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            sleep(0.3)
            break
        if path == b"/until-close":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nhello")
            break
        if path == b"/chunked":
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")
        elif path == b"/redirect":
            sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: /mirror\r\nContent-Length: 4\r\n\r\ngone")
        elif path == b"/loop":
            sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n")
        elif path == b"/404":
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        elif path == b"/503":
            sock.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
        elif path == b"/mirror":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request) + request)
        elif path == b"/head":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nX-Some: Thing\r\n\r\n")
        else:
            sock.sendall(OK)
    sock.close()


def serve(listener, start: Callable[..., None], sleep) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        start(answer, sock, sleep)


@pytest.fixture(scope="module")
def stock():
    """Run stock curl; its (exit code, stdout, stderr)."""
    listener = std.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def start(run, *args) -> None:
        threading.Thread(target=run, args=args, daemon=True).start()

    thread = threading.Thread(target=serve, args=(listener, start, stop.wait), daemon=True)
    thread.start()
    port = listener.getsockname()[1]

    def run(*argv: str) -> tuple[int, str, str]:
        words = [word.replace("HOST", "127.0.0.1").replace("PORT", str(port)) for word in argv]
        done = subprocess.run([CURL, *words], capture_output=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    yield run
    stop.set()
    listener.shutdown(std.SHUT_RDWR)
    listener.close()


@pytest.fixture(scope="module")
def ours():
    """Run ours in a pod, against a server in another."""
    node = Node()
    server, client = node.pod("server"), node.pod("client")

    def main(ctx) -> None:
        listener = ctx.socket()
        listener.bind(("0.0.0.0", 8000))
        listener.listen()
        serve(listener, ctx.start_thread, ctx.sleep)

    node.run(server, main)

    def run(*argv: str) -> tuple[int, str, str]:
        words = [word.replace("HOST", pod_ip(server)).replace("PORT", "8000") for word in argv]
        done = node.run(client, command("curl"), "curl", *words)
        return done.join(), done.stdout, done.stderr

    yield run
    node.close()


def normal(result: tuple[int, str, str]) -> tuple[int, str, str]:
    """Addresses, ports and times apart; a refused connect's reason is ours alone (stock curl 7.88 hides it)."""
    code, out, err = result
    rules = [
        (r"\b127\.0\.0\.1\b|\b10\.244\.\d+\.\d+\b", "IP"), (r"(?<=IP:)\d+|(?<=port )\d+", "N"), (r"\d+ ms\b", "N ms"),
        (r"\d+ milliseconds", "N milliseconds"), (r"curl/[\d.]+", "curl/V"), (r"(Failed to connect .*): .*", r"\1: REASON"),
        (r"(?m)^([\w-]+:) \r$", r"\1\r"),  # h11 puts a blank even before nothing
    ]  # fmt: skip
    for pattern, replacement in rules:
        out, err = (re.sub(pattern, replacement, text) for text in (out, err))
    return code, out, err


U = "http://HOST:PORT"
ROWS = [
    ("-sS", f"{U}/"),
    ("-s", f"{U}/until-close"),
    ("-s", f"{U}/chunked"),
    ("-si", f"{U}/404"),
    ("-sSf", f"{U}/404"),
    ("-sSI", f"{U}/head"),
    ("-sSv", f"{U}/"),
    ("-sSv", f"{U}/until-close"),
    ("-sv", "-d", "a=1", f"{U}/"),
    ("-sS", f"{U}/reset"),
    ("-sS", f"{U}/empty"),
    ("-sS", f"{U}/partial"),
    ("-sS", "-m", "0.1", f"{U}/hang"),
    ("-sS", "-m", "0.1", f"{U}/slowbody"),
    ("-sS", "--max-time", "0.1", f"{U}/hang"),
    ("-sS", "http://HOST:1/"),
    ("-s", "http://HOST:1/"),
    ("-S", "-s", "-v", "http://HOST:1/"),
    ("-sS", "http://nosuch.invalid/"),
    ("-sS", "ftpx://HOST/"),
    ("-sS", "http://HOST:99999/"),
    ("-sS",),
    ("-sS", "--foo", U),
    ("-sS", "-m"),
    ("-sS", "-m", "x", U),
    ("-s", f"{U}/mirror"),
    ("-s", f"{U}/mirror?a=b%20c#fragment"),
    ("-s", "-d", "a=1", "--data", "b=2", f"{U}/mirror"),
    ("-s", "-X", "PUT", "-d", "x", f"{U}/mirror"),
    ("-s", "-X", "DELETE", f"{U}/mirror"),
    ("-s", "-G", "-d", "q=1", f"{U}/mirror"),
    ("-s", "-H", "Host: shop.example", f"{U}/mirror"),
    ("-s", "-H", "X-A: 1", "-H", "Accept:", "-H", "X-Empty;", f"{U}/mirror"),
    ("-s", "-A", "me/1", f"{U}/mirror"),
    ("-s", f"{U}/redirect"),
    ("-sL", f"{U}/redirect"),
    ("-sL", "-d", "a=1", f"{U}/redirect"),
    ("-sSL", "--max-redirs", "2", f"{U}/loop"),
    ("-so", "/dev/null", "-w", "%{http_code} %{size_download} %{num_connects} %{content_type} %{exitcode}\\n", f"{U}/"),
    ("-s", "-w", "%{http_code}|%{errormsg}|%{exitcode}", f"{U}/empty"),
    ("-s", "-o", "/dev/null", "-w", "%{url_effective} %{redirect_url} %{method} %% %{http_version}", f"{U}/redirect"),
    ("-s", "-o", "/dev/null", "-w", "%{http_code} %{num_redirects}", "-L", f"{U}/redirect"),
    ("-s", "-w", "%{http_code}", "http://HOST:1/"),
    ("-s", "HOST:PORT"),
    ("-s", f"{U}/", f"{U}/404"),
    ("-sk", "--connect-timeout", "5", "-4", "--url", f"{U}/"),
    ("-sd", "a=1", f"{U}/mirror"),
    ("-sm5", f"{U}/"),
]


@needs_curl
@pytest.mark.parametrize("argv", ROWS, ids=" ".join)
def test_ours_prints_and_returns_what_stock_curl_does(argv, stock, ours):
    assert normal(ours(*argv)) == normal(stock(*argv))


def test_retries_are_counted_and_wait(ours):
    code, out, err = ours("-sS", "--retry", "2", "--retry-delay", "0.01", "--retry-connrefused", "-w", "%{http_code}", "http://HOST:1/")
    assert (code, out, err.count("curl: (7)")) == (7, "000", 3)


def test_a_busy_server_is_tried_again(ours):
    code, out, _ = ours("-s", "--retry", "2", "--retry-delay", "0.01", f"{U}/503")
    assert (code, out) == (0, "busy" * 3)


def test_a_refused_connection_says_why(ours):
    _, _, err = ours("-sS", "http://HOST:1/")
    assert re.fullmatch(r"curl: \(7\) Failed to connect to 10\.244\.1\.\d+ port 1 after \d+ ms: Connection refused\n", err)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("-sS", "-m", "0.05", "http://1.1.1.1/"), 28, r"curl: \(28\) Connection timed out after \d+ milliseconds\n"),
        (("-sS", "--connect-timeout", "0.05", "http://1.1.1.1/"), 28, r"curl: \(28\) Failed to connect to .* ms: Timeout was reached\n"),
        (("-sS", "https://HOST/"), 1, r'curl: \(1\) Protocol "https" not supported or disabled in libcurl\n'),
        (("-sS", "-o", "file", f"{U}/"), 23, r"curl: \(23\) Failure writing output to destination\n"),
    ],
)  # fmt: skip
def test_what_loopback_cannot_show(ours, argv, code, says):
    got, _, err = ours(*argv)
    assert got == code
    assert re.fullmatch(says, err)


def test_a_host_without_a_route_is_named():
    node = Node(speed=50)
    run = node.run(node.pod("a"), command("curl"), "curl", "-sS", "http://10.244.1.99/")
    assert run.join() == 7
    assert re.fullmatch(r"curl: \(7\) Failed to connect to 10\.244\.1\.99 port 80 after [123]\d{3} ms: No route to host\n", run.stderr)
    node.close()
