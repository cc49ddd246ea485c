"""Streams between this machine's kernel and pods through the whole emulator: kernel, TUN, node-1, VXLAN, node-2, pod; and back.

In fair weather and foul, with offload and in segments, to the byte; and with stock programs at either end.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.programs import streams
from tests.kit import netns
from tests.kit.live import cluster, curl, eventually, ip_of, manifests, netexec, pod, podwire

WHY_NOT = netns.missing()
pytestmark = [pytest.mark.cluster, pytest.mark.kernel, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

KERNEL, SIZE, GIGABYTE = "172.31.0.1", 24 << 20, 1 << 30
PATIENCE = 60.0
PROGRAM = {"name": "streams", "image": "example.com/streams", "ports": [{"containerPort": 9000}]}
WORLD = (
    pod("far", PROGRAM, node="node-2", annotations={"podwire.dev/program": "streams:serve"}),
    pod("web", netexec(), node="node-2"),
)


@pytest.fixture(scope="module", autouse=True)
def network():
    programs = str(Path(__file__).parent / "programs")
    with netns.namespaces("streams") as names, cluster("streams", "--nodes", "2", "--path", programs, "-f", "-", stdin=manifests(*WORLD)):
        yield names["streams"]


@pytest.fixture(params=["offload", "segments"], scope="module")
def offload(request, network):
    """The device for all tests of one kind; what is given is whether it offloads."""
    options = [] if request.param == "offload" else ["--no-offload"]
    podwire("tun", "add", "--node", "node-1", "--netns", network, "--address", f"{KERNEL}/24", *options)
    yield request.param == "offload"
    podwire("tun", "remove", "--node", "node-1")


@pytest.fixture
def kernel(network, offload):
    return network


def connect(kernel, order, *, pod="far", port=9000):
    """A connection of the kernel's to the pod that does what a line asks for."""
    sock = netns.socket_in(kernel)
    sock.settimeout(PATIENCE)
    sock.connect((ip_of(pod), port))
    sock.sendall(f"{order}\n".encode())
    return sock


def rest(sock):
    """What comes to the end of the stream, which is short."""
    text = b""
    while piece := sock.recv(1 << 16):
        text += piece
    return text.decode()


@contextmanager
def listening(kernel):
    with netns.socket_in(kernel) as listener:
        listener.settimeout(PATIENCE)
        listener.bind((KERNEL, 0))
        listener.listen()
        yield listener, listener.getsockname()[1]


def up(kernel, size):
    with connect(kernel, "sink") as sock:
        streams.fill(sock, size)
        return rest(sock)


def down(kernel, size):
    with connect(kernel, f"source {size}") as sock:
        return streams.drain(sock)


def pushed(kernel, size):
    with listening(kernel) as (listener, port), connect(kernel, f"push {KERNEL} {port} {size}") as order:
        with listener.accept()[0] as sock:
            sock.settimeout(PATIENCE)
            got = streams.drain(sock)
        rest(order)
        return got


def pulled(kernel, size):
    with listening(kernel) as (listener, port), connect(kernel, f"pull {KERNEL} {port}") as order, listener.accept()[0] as sock:
        streams.fill(sock, size)
        return rest(order)


WAYS = {"kernel client sends": up, "kernel client receives": down, "kernel server receives": pushed, "kernel server sends": pulled}


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_is_byte_exact(kernel, way):
    assert WAYS[way](kernel, SIZE) == streams.digest(SIZE)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", WAYS)
def test_a_gigabyte_is_byte_exact(kernel, way, offload, record_property):
    began = time.monotonic()
    assert WAYS[way](kernel, GIGABYTE) == streams.digest(GIGABYTE)
    seconds = time.monotonic() - began
    record_property("seconds", round(seconds, 1))


# ---- ends and stops -------------------------------------------------------------------------------------------------------------


def test_a_port_that_nobody_has_refuses_both(kernel):
    with netns.socket_in(kernel) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((ip_of("far"), 81))
    assert curl("web", f"http://{KERNEL}:81/", status=7) == ""


def test_a_reset_in_the_middle_reaches_a_kernel_sender(kernel):
    with connect(kernel, f"reset {1 << 20}") as sock, pytest.raises((ConnectionResetError, BrokenPipeError)):
        streams.fill(sock, 64 << 20)


def test_a_reset_of_the_kernels_in_the_middle_reaches_a_pods_sender(kernel):
    with connect(kernel, f"source {64 << 20}") as sock:
        sock.recv(1 << 20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    eventually(lambda: "Connection reset by peer" in podwire("logs", "far").stdout)


def test_a_half_close_leaves_the_other_way_open(kernel):
    with connect(kernel, "late 0.3") as sock:
        sock.sendall(b"x" * 1000)
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock).startswith("1000 ")


@pytest.mark.parametrize("order", ["late 1.5", "slow 262144"], ids=["zero window", "slow reader"])
def test_a_reader_that_does_not_keep_up_loses_nothing(kernel, order):
    size = 12 << 20  # more than all buffers on the way
    with connect(kernel, order) as sock:
        streams.fill(sock, size)
        assert rest(sock) == streams.digest(size)


def test_a_kernel_reader_that_does_not_keep_up_loses_nothing(kernel):
    with connect(kernel, f"source {12 << 20}") as sock:
        time.sleep(1.5)
        assert streams.drain(sock, lambda: time.sleep(0.001), 1 << 17) == streams.digest(12 << 20)


# ---- foul weather, by the links' conditions ---------------------------------------------------------------------------------------

WEATHER = {
    "loss 0.1 %": ("--loss", "0.1%"),
    "loss 1 %": ("--loss", "1%"),
    "loss 5 %": ("--loss", "5%"),
    "delay and jitter": ("--delay", "10ms", "--jitter", "3ms"),
    "reordering": ("--delay", "5ms", "--reorder", "2%"),
    "duplication": ("--duplicate", "2%"),
    "all at once": ("--delay", "5ms", "--loss", "1%", "--reorder", "1%", "--duplicate", "1%"),
}


@contextmanager
def weather(*conditions):
    podwire("fault", "link", "node-1<->node-2", *conditions)
    try:
        yield
    finally:
        podwire("fault", "heal", "--all")


@pytest.mark.parametrize("way", ["kernel client sends", "kernel client receives"])
@pytest.mark.parametrize("conditions", WEATHER)
def test_a_stream_is_byte_exact_in_foul_weather(kernel, conditions, way):
    size = 4 << 20
    with weather(*WEATHER[conditions]):
        assert WAYS[way](kernel, size) == streams.digest(size)


@pytest.mark.parametrize("way", ["kernel client sends", "kernel client receives"])
def test_a_stream_stands_still_under_a_cut_and_goes_on_after_it(kernel, way):
    size, got = 24 << 20, []
    with weather("--rate", "100mbit"):
        thread = threading.Thread(target=lambda: got.append(WAYS[way](kernel, size)))
        thread.start()
        time.sleep(0.5)
        podwire("fault", "link", "node-1->node-2", "--cut")
        time.sleep(1.0)
        assert got == []
        podwire("fault", "heal", "node-1->node-2")
        thread.join(PATIENCE)
    assert got == [streams.digest(size)]


# ---- stock programs ---------------------------------------------------------------------------------------------------------------


def missing(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"skipped oracle: {program}")


def stock(kernel, *command, **more):
    done = subprocess.run(["ip", "netns", "exec", kernel, *command], capture_output=True, check=False, timeout=60, **more)
    assert done.returncode == 0, (command, done.returncode, done.stdout[-500:], done.stderr)
    return done.stdout


@missing("curl")
def test_stock_curl_uploads_and_downloads(kernel, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"".join(streams.blocks(3 << 20)))
    assert stock(kernel, "curl", "-sS", f"http://{ip_of('web')}:8080/echo?msg={'x' * 3000}").decode() == "x" * 3000
    stock(kernel, "curl", "-sSf", "-F", f"file=@{body}", f"http://{ip_of('web')}:8080/upload")


@missing("wrk")
def test_stock_wrk_keeps_many_connections_busy(kernel):
    text = stock(kernel, "wrk", "-t2", "-c16", "-d2s", f"http://{ip_of('web')}:8080/hostname").decode()
    found = re.search(r"(\d+) requests in", text)
    assert found is not None, text
    assert int(found[1]) > 100, text
    assert "Socket errors" not in text, text
    assert "Non-2xx" not in text, text


@missing("nc")
def test_stock_nc_sends_a_stream_and_gets_the_answer(kernel):
    data = b"sink\n" + b"".join(streams.blocks(SIZE))
    assert stock(kernel, "nc", "-N", ip_of("far"), "9000", input=data).decode() == streams.digest(SIZE)


@missing("nc")
def test_our_nc_talks_to_a_stock_nc_that_listens(kernel):
    with subprocess.Popen(
        ["ip", "netns", "exec", kernel, "nc", "-l", KERNEL, "7000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        server.stdin.write(b"from the kernel\n")
        server.stdin.flush()
        said = eventually(
            lambda: podwire("exec", "-i", "web", "--", "nc", "-w", "2", KERNEL, "7000", stdin="from a pod\n", status=None).stdout
        )
        assert said == "from the kernel\n"
        assert server.stdout is not None
        assert server.stdout.readline() == b"from a pod\n"
        server.stdin.close()
        server.wait(10)


def test_our_curl_fetches_a_file_of_pythons_http_server(kernel, tmp_path):
    (tmp_path / "file").write_text("line\n" * 100_000)
    command = ["ip", "netns", "exec", kernel, sys.executable, "-m", "http.server", "8000", "--bind", KERNEL, "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            assert eventually(lambda: curl("web", f"http://{KERNEL}:8000/file", status=None)) == "line\n" * 100_000
            assert curl("web", f"http://{KERNEL}:8000/none", "-f", status=22) == ""
        finally:
            server.kill()


def test_nothing_that_crossed_was_malformed(kernel):
    """Whatever these tests have sent: no checksum was wrong, and the far node knew every packet."""
    drops = {name: node.get("drops", {}) for name, node in nodes().items()}
    assert not any(set(reasons) & {"bad-checksum", "malformed", "truncated", "not-ours", "tcp-invalid"} for reasons in drops.values()), (
        drops
    )


def nodes():
    return {node["name"]: node for node in json.loads(podwire("status", "--json").stdout)["controller"]["nodes"]}
