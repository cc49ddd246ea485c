"""The kernel's own segmentation as the oracle: one GSO packet goes in by a device that offloads and comes out by one that does not."""

from __future__ import annotations

import random
import struct
import time

import pytest

from emu.wire import gso
from emu.wire.checksum import fill
from tests.kit import netns
from tests.kit.tun import Tun
from tests.wire.test_gso import tcp

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(netns.missing()), reason=netns.missing())]


@pytest.mark.parametrize(("size", "gso_size", "options"), [(60000, 1448, bytes((1, 1, 8, 10)) + bytes(8)), (4345, 1448, b""), (2, 1, b"")])
def test_the_kernel_makes_the_same_segments(size, gso_size, options):
    whole = tcp(random.Random(size).randbytes(size), options=options)
    with netns.namespaces("gso") as names:
        name = names["gso"]
        entrance = Tun(name, "10.0.0.254/32", mtu=1500, offload=True, device="in0")
        way_out = Tun(name, "10.0.1.254/32", mtu=1500, offload=False, device="out0")
        netns.sysctl(name, {"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.in0.rp_filter": 0})
        netns.configure(name, ["route add 10.0.0.2/32 dev out0"])
        entrance.send(whole, gso_size)
        got: list[bytes] = []
        wanted = gso.segment_count(whole, gso_size)
        deadline = time.monotonic() + 5
        while len(got) < wanted and time.monotonic() < deadline:
            part = way_out.receive()
            if part is None:
                time.sleep(0.001)
            elif part[9] == 6:
                got.append(part)
        entrance.close()
        way_out.close()
    forwarded = [fill(part[:8] + struct.pack("!B", part[8] - 1) + part[9:]) for part in gso.segments(whole, gso_size)]
    assert got == forwarded
