"""netexec answers as agnhost does: rows from its own documentation and source, asked by http.client, parsed by h11."""

from __future__ import annotations

import json
import re
import time
from http.client import HTTPConnection

import h11
import pytest

from emu.programs.commands import command
from emu.programs.http import HttpServer, text
from emu.programs.netexec import NetExec, go_duration
from tests.kit.pods import Node, pod_ip


@pytest.fixture(scope="module")
def node():
    node = Node()
    yield node
    node.close()


@pytest.fixture(scope="module")
def pods(node):
    """(client's namespace, server's address)."""
    client, server = node.pod("client"), node.pod("server")
    node.run(server, NetExec(()), commands=command)
    return client, pod_ip(server)


def get(node, ns, ip, target, method="GET", body=None, headers=None, port=8080):
    """(status, headers, body) as the standard library's client reads it."""

    def main(ctx):
        client = HTTPConnection(ip, port)
        client.sock = ctx.create_connection((ip, port))
        client.request(method, target, body, headers or {})
        response = client.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()

    return node.call(ns, main)


ROWS = [
    ("/hostname", 200, "server"),
    ("/hostName", 200, "server"),
    ("/echo?msg=hello%20world", 200, "hello world"),
    ("/echo?msg=x&code=418", 418, "x"),
    ("/echo?msg=x&code=abc", 200, "argument 'code' must be an integer or empty, got \"abc\"\n"),
    ("/healthz", 200, ""),
    ("/header?key=x-me", 200, "mine"),
    ("/header?key=absent", 200, ""),
    ("/redirect?location=/echo%3Fmsg%3Dfoobar", 302, '<a href="/echo?msg=foobar">Found</a>.\n\n'),
    ("/redirect?location=/x&code=307", 307, '<a href="/x">Temporary Redirect</a>.\n\n'),
    ("/exit?timeout=nonsense", 200, "argument 'timeout' must be a valid golang duration or empty, got \"nonsense\"\n"),
    ("/exit?code=x", 200, "argument 'code' must be an integer [0-127] or empty, got \"x\"\n"),
    ("/dial?host=127.0.0.1&port=1", 400, "request parameter not specified. <nil>\n"),
    ("/dial?host=127.0.0.1&port=1&request=x&tries=a", 400, 'tries parameter is invalid. strconv.Atoi: parsing "a": invalid syntax\n'),
    ("/dial?host=127.0.0.1&port=1&request=x&protocol=xmpp", 400, "unsupported protocol. xmpp\n"),
    ("/upload", 200, '{"error":"Unable to upload file."}'),
    ("/shell?cmd=echo+hi", 200, '{"output":"hi\\n"}'),
    ("/shell?shellCommand=false", 200, '{"error":"exit status 1"}'),
]


@pytest.mark.parametrize(("target", "status", "body"), ROWS)
def test_paths_answer_as_documented(node, pods, target, status, body):
    client, ip = pods
    got = get(node, client, ip, target, headers={"X-Me": "mine"})
    assert (got[0], got[2]) == (status, body)


def test_the_root_and_unknown_paths_tell_the_time(node, pods):
    for path in ("/", "/anything/else"):
        assert re.fullmatch(r"NOW: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \+0000 UTC m=\+[\d.]+", get(node, *pods, path)[2])


def test_client_ip_is_the_peer_s_address_and_port(node, pods):
    client, ip = pods
    address, _, port = get(node, client, ip, "/clientip")[2].rpartition(":")
    assert address == pod_ip(client)
    assert 32768 <= int(port) < 61000


def test_a_redirect_has_its_location(node, pods):
    assert get(node, *pods, "/redirect?location=/x&code=301")[1]["Location"] == "/x"


def test_form_values_are_read_from_a_post_as_by_formvalue(node, pods):
    got = get(node, *pods, "/echo", "POST", "msg=from+the+body", {"Content-Type": "application/x-www-form-urlencoded"})
    assert got[2] == "from the body"


def test_an_upload_is_named(node, pods):
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ncontent\r\n--b--\r\n'
    status, _, answer = get(node, *pods, "/upload", "POST", body, {"Content-Type": "multipart/form-data; boundary=b"})
    assert status == 201
    assert re.fullmatch(r"/uploads/upload\d+", json.loads(answer)["output"])


DIALS = [
    ("port={http}&request=hostname", {"responses": ["server"]}),
    ("port={http}&request=hostname&protocol=http&tries=3", {"responses": ["server"] * 3}),
    ("port={udp}&request=hostname&protocol=udp", {"responses": ["server"]}),
    ("port={udp}&request=echo%20HI&protocol=UDP&tries=2", {"responses": ["hi"] * 2}),
    ("port=1&request=hostname", {"errors": ['Get "http://{ip}:1/hostname": dial tcp {ip}:1: connect: connection refused']}),
]


@pytest.mark.parametrize(("query", "answer"), DIALS)
def test_dial_asks_on_behalf_of_the_caller(node, pods, query, answer):
    client, ip = pods
    got = get(node, client, ip, f"/dial?host={ip}&{query.format(http=8080, udp=8081)}")
    assert (got[0], json.loads(got[2])) == (200, json.loads(json.dumps(answer).replace("{ip}", ip)))


def test_a_refused_datagram_is_an_error_of_dial(node, pods):
    _, ip = pods
    (error,) = json.loads(get(node, *pods, f"/dial?host={ip}&port=9&request=hostname&protocol=udp")[2])["errors"]
    assert re.fullmatch(r"reading from udp connection failed\. err:'read udp [\d.:]+->[\d.]+:9: read: connection refused'", error)


@pytest.mark.parametrize(
    ("command", "answer"), [(b"hostname", b"server"), (b" HostName\n", b"server"), (b"echo Some Words", b"some words")]
)
def test_udp_commands(node, pods, command, answer):
    client, ip = pods

    def main(ctx):
        sock = ctx.socket(type=2)
        sock.settimeout(1)
        sock.sendto(command, (ip, 8081))
        return sock.recvfrom(2048)

    assert node.call(client, main) == (answer, (ip, 8081))


def test_udp_tells_the_client_s_address(node, pods):
    client, ip = pods

    def main(ctx):
        sock = ctx.socket(type=2)
        sock.settimeout(1)
        sock.connect((ip, 8081))
        sock.send(b"clientip")
        return sock.recv(100).decode() == "{}:{}".format(*sock.getsockname())

    assert node.call(client, main)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--http-port=x",), 1, 'invalid argument "x" for "--http-port" flag'),
        (("--nonsense",), 1, "unknown flag: --nonsense"),
        (("--sctp-port=5",), 1, "not emulated"),
        (("stray",), 1, 'unknown command "stray"'),
    ],
)
def test_bad_flags_end_it(node, flags, code, says):
    run = node.run(node.pod(f"bad{flags[0].strip('-')[:4]}"), NetExec(flags))
    assert run.join() == code
    assert says in run.stderr


def test_flags_choose_ports(node):
    ns = node.pod("ports")
    run = node.run(ns, NetExec(("--http-port", "80", "--udp-port=-1")))
    assert run.ports == {("TCP", 80)}
    assert get(node, node.pod("asker"), pod_ip(ns), "/healthz", port=80)[0] == 412  # no UDP server, as the documentation says


@pytest.mark.parametrize(
    ("target", "code", "answered"), [("/shutdown", 0, False), ("/exit?code=5", 5, False), ("/exit?code=6&timeout=1s", 6, True)]
)
def test_it_exits_on_request(node, target, code, answered):
    ns = node.pod(f"exit{code}")
    run = node.run(ns, NetExec(()))

    def main(ctx):
        with ctx.create_connection((pod_ip(ns), 8080)) as sock:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return sock.recv(100)

    assert node.call(node.pod(f"asks{code}"), main).startswith(b"HTTP/1.1 200") == answered
    assert run.join() == code


@pytest.mark.parametrize(("text", "seconds"), [("1m30s", 90), ("100ms", 0.1), ("0", 0), ("1.5h", 5400), ("5us", 5e-6)])
def test_go_durations(text, seconds):
    assert go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1 s", "-x"])
def test_what_is_no_go_duration(text):
    with pytest.raises(ValueError):
        go_duration(text)


# ---- HTTP itself -------------------------------------------------------------------------------------------------------------------


def exchange(node, ns, ip, pieces, close=False):
    """Send raw pieces one after the other; everything that comes back until the end, or until 30 ms of silence."""

    def main(ctx):
        sock = ctx.create_connection((ip, 8080))
        for piece in pieces:
            sock.sendall(piece)
            ctx.sleep(0.002)
        if close:
            sock.shutdown(1)
        sock.settimeout(0.03)
        got = b""
        try:
            while data := sock.recv(65536):
                got += data
        except TimeoutError:
            return got, "open"
        except ConnectionResetError:
            return got, "reset"
        return got, "closed"

    return node.call(ns, main)


def parse(data, requests=("GET",)):
    """[(status, body)] as h11's client reads them."""
    http, found = h11.Connection(h11.CLIENT), []
    http.receive_data(data)
    for method in requests:
        http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        http.send(h11.EndOfMessage())
        status, body = 0, b""
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                assert event is not h11.NEED_DATA, data
        found.append((status, body))
        if http.our_state is h11.DONE:
            http.start_next_cycle()
    return found


def test_a_request_may_come_in_single_bytes(node, pods):
    request = b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n"
    got, state = exchange(node, *pods, [bytes([byte]) for byte in request])
    assert (parse(got), state) == ([(200, b"server")], "open")


def test_pipelined_requests_are_answered_in_order(node, pods):
    one = b"GET /echo?msg=%d HTTP/1.1\r\nHost: x\r\n\r\n"
    got, _ = exchange(node, *pods, [one % 1 + one % 2 + one % 3])
    assert parse(got, ("GET",) * 3) == [(200, b"1"), (200, b"2"), (200, b"3")]


def test_a_slow_answer_does_not_let_a_pipelined_one_overtake(node, pods):
    _, ip = pods
    dial = b"GET /dial?host=%s&port=8080&request=hostname HTTP/1.1\r\nHost: x\r\n\r\n" % ip.encode()
    got, _ = exchange(node, *pods, [dial + b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n"])
    assert parse(got, ("GET",) * 2) == [(200, b'{"responses":["server"]}'), (200, b"server")]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host, RFC 9112 section 3.2
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"x" * 70_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    ],
)
def test_nonsense_is_refused_and_the_connection_closed(node, pods, request_bytes, status):
    got, state = exchange(node, *pods, [request_bytes])
    assert (parse(got)[0][0], state) == (status, "closed")


@pytest.mark.parametrize(
    ("request_bytes", "state"),
    [
        (b"GET /hostname HTTP/1.0\r\n\r\n", "closed"),
        (b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "closed"),
        (b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n", "open"),
    ],
)
def test_keep_alive_follows_the_version_and_the_header(node, pods, request_bytes, state):
    got, was = exchange(node, *pods, [request_bytes])
    assert (parse(got), was) == ([(200, b"server")], state)


def test_a_client_may_half_close_after_its_request(node, pods):
    got, state = exchange(node, *pods, [b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n"], close=True)
    assert (parse(got), state) == ([(200, b"server")], "closed")


def test_head_has_no_body(node, pods):
    status, headers, body = get(node, *pods, "/hostname", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "6", "")


@pytest.mark.parametrize("target", ["/echo?msg=x&code=99999", "/redirect?location=a%0D%0Ab"])
def test_an_impossible_answer_ends_the_connection_and_nothing_else(node, pods, target):
    """net/http panics on such a status, recovers, and closes the connection."""
    got, state = exchange(node, *pods, [f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()])
    assert (got, state) == (b"", "reset")
    assert get(node, *pods, "/hostname")[2] == "server"


def test_a_big_body_comes_back_whole(node):
    class Mirror(HttpServer):
        def on_start(self, ctx):
            ctx.listen_tcp(8080)

        def serve(self, ctx, request, respond):
            respond(text(f"{len(request.body)} " + "x" * 2_000_000))

    ns = node.pod("mirror")
    node.run(ns, Mirror())
    status, _, body = get(node, node.pod("big"), pod_ip(ns), "/", "POST", b"y" * 1_000_000)
    assert (status, len(body)) == (200, 2_000_008)


def test_an_idle_server_has_no_thread(node, pods):
    time.sleep(0.01)
    assert not [thread for thread in node.kernel.threads if thread.is_alive()]
