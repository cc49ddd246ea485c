"""Two TCP ends joined by a wire that is fair, or hostile by seed, under a clock moved by hand.

The wire splits GSO packets as a device would, unless told to carry them whole. `Pair.run` moves time from event to event:
arrivals, timers, and nothing else, so a run of hours takes milliseconds and repeats to the packet.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from math import inf

from emu.tcp import Connection, TcpConfig
from emu.tcp.info import check
from emu.wire.addr import SockAddr

CLIENT = SockAddr(bytes((10, 244, 1, 5)), 40000)
SERVER = SockAddr(bytes((10, 244, 2, 7)), 8080)
MTU = 1450


def split_gso(packet: bytes, gso_size: int) -> list[bytes]:
    """The segments that a device without offload sends for one GSO packet (FIN and PSH only on the last)."""
    header = 20 + (packet[32] >> 4 << 2)
    payload = packet[header:]
    if not gso_size or len(payload) <= gso_size:
        return [packet]
    out = []
    for offset in range(0, len(payload), gso_size):
        piece = payload[offset : offset + gso_size]
        head = bytearray(packet[:header])
        head[2:4] = (header + len(piece)).to_bytes(2, "big")
        head[24:28] = ((int.from_bytes(packet[24:28], "big") + offset) & 0xFFFFFFFF).to_bytes(4, "big")
        if offset + gso_size < len(payload):
            head[33] &= ~0x09
        out.append(bytes(head) + piece)
    return out


@dataclass
class Weather:
    """What the wire does to each packet; chances are 0..1, times seconds."""

    delay: float = 0.005
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # these take no time at all, and so overtake those before
    split: bool = True


@dataclass
class Pair:
    """`client` and `server` (None until its SYN arrives). `sent` logs (time, "client"|"server", packet, gso_size)."""

    weather: Weather = field(default_factory=Weather)
    seed: int = 1
    config: TcpConfig = field(default_factory=TcpConfig)
    server_config: TcpConfig | None = None
    now: float = 1000.0
    iss: tuple[int, int] = (0xFFFFF000, 7)
    mtu: int = MTU
    listening: bool = True
    cut: bool = False
    sent: list[tuple[float, str, bytes, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._wire: list[tuple[float, int, str, bytes]] = []
        self._order = self._flushes = 0
        self.server: Connection | None = None
        self.client = Connection.active(CLIENT, SERVER, iss=self.iss[0], mtu=self.mtu, now=self.now, config=self.config)
        self.flush()

    @property
    def accepted(self) -> Connection:
        assert self.server is not None
        return self.server

    def flush(self) -> None:
        """Put what both ends sent on the wire; tests call this after every call of theirs."""
        for name, end in (("client", self.client), ("server", self.server)):
            if end is None:
                continue
            for packet, gso_size in end.out:
                self.sent.append((self.now, name, packet, gso_size))
                for piece in split_gso(packet, gso_size) if self.weather.split else [packet]:
                    self._launch("server" if name == "client" else "client", piece)
            end.out.clear()
            self._flushes += 1
            if len(end.sent) + len(end.received.chunks) < 50 or self._flushes % 64 == 0:
                check(end)

    def _launch(self, to: str, packet: bytes) -> None:
        weather, chance = self.weather, self.random.random
        if self.cut or (weather.loss and chance() < weather.loss):
            return
        for _ in range(2 if weather.duplicate and chance() < weather.duplicate else 1):
            self._order += 1
            takes = 0.0 if weather.reorder and chance() < weather.reorder else weather.delay + weather.jitter * chance()
            heapq.heappush(self._wire, (self.now + takes, self._order, to, packet))

    def next_event(self) -> float:
        ends = [end.deadline for end in (self.client, self.server) if end is not None]
        return min([self._wire[0][0] if self._wire else inf, *ends])

    def step(self) -> bool:
        """Do the next thing that happens; False if nothing ever will."""
        at = self.next_event()
        if at == inf:
            return False
        self.now = max(self.now, at)
        if self._wire and self._wire[0][0] <= self.now:
            _, _, to, packet = heapq.heappop(self._wire)
            self._deliver(to, packet)
        for end in (self.client, self.server):
            if end is not None and end.deadline <= self.now:
                end.on_timer(self.now)
        self.flush()
        return True

    def _deliver(self, to: str, packet: bytes) -> None:
        if to == "client":
            self.client.on_packet(packet, 20, self.now)
        elif self.server is not None:
            self.server.on_packet(packet, 20, self.now)
        elif self.listening and packet[33] & 0x17 == 0x02:
            config = self.server_config or self.config
            self.server = Connection.passive(packet, 20, iss=self.iss[1], mtu=self.mtu, now=self.now, config=config)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.next_event() <= end and self.step():
            pass
        self.now = end

    def establish(self) -> Pair:
        self.run(10 * self.weather.delay + 1e-3)
        assert self.client.established and self.accepted.established
        return self

    def pump(self, source: Connection, sink: Connection, data: bytes, *, seconds: float = 3600.0, chunk: int = 1 << 20) -> bytes:
        """Write all of `data` at one end and read at the other as fast as both allow; what was read."""
        end, offset, got = self.now + seconds, 0, bytearray()
        while len(got) < len(data) and self.now <= end:
            if offset < len(data):
                offset += source.write(memoryview(data)[offset : offset + chunk], self.now)
            while piece := sink.read(chunk, self.now):
                got += piece
            self.flush()
            if len(got) < len(data) and not self.step():
                break
        return bytes(got)
