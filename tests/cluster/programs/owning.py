"""A program that talks to everybody without pause, says whom it means, and writes down whatever reached the wrong pod.

FILE ADDRESS...: a file of this machine's for what went wrong (pods and nodes do not outlive the test), and all that is to be talked to.
"""

from __future__ import annotations

import json
import random
import socket

from emu.pod.program import Context
from emu.pod.socket import Socket

UDP_PORT, TCP_PORT, STREAMS, EVERY = 9100, 9101, 6, 0.02


class Peer:
    """One pod's servers and clients."""

    def __init__(self, ctx: Context) -> None:
        self.ctx, self.file, self.addresses = ctx, ctx.argv[0], ctx.argv[1:]
        self.me = {"ip": ctx.pod.ip, "uid": ctx.pod.uid}
        self.chance = random.Random(ctx.pod.uid)
        self.tally = {"asked": 0, "answered": 0, "lines": 0}

    def stray(self, what: str) -> None:
        with open(self.file, "a") as file:
            file.write(f"{self.ctx.pod.name} {self.me}: {what}\n")

    # ---- servers ---------------------------------------------------------------------------------------------------------------

    def answer_datagrams(self) -> None:
        sock = self.ctx.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("", UDP_PORT))
        while True:
            data, sender = sock.recvfrom(2000)
            meant = json.loads(data)["to"]
            if meant not in (self.me["ip"], None):
                self.stray(f"a datagram for {meant} from {sender}")
            try:
                sock.sendto(json.dumps({**self.me, "asked": meant}).encode(), sender)
            except OSError:  # nobody there any more
                continue

    def accept_streams(self) -> None:
        listener = self.ctx.socket()
        listener.bind(("", TCP_PORT))
        listener.listen()
        while True:
            connection, sender = listener.accept()
            self.ctx.start_thread(self.answer_stream, connection, sender)

    def answer_stream(self, connection: Socket, sender: tuple[str, int]) -> None:
        """Say who we are; every line then names us."""
        try:
            connection.settimeout(30)
            connection.sendall(f"{self.me['uid']}\n".encode())
            for line in connection.makefile("rb"):
                if line.decode().strip() != self.me["uid"]:
                    self.stray(f"a line for {line!r} from {sender}")
                connection.sendall(line)
        except OSError:
            return
        finally:
            connection.close()

    # ---- clients ---------------------------------------------------------------------------------------------------------------

    def ask_by_datagram(self) -> None:
        sock = self.ctx.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(EVERY)
        while True:
            address = self.chance.choice(self.addresses)
            direct = address.startswith("10.244.")
            self.tally["asked"] += 1
            try:
                sock.sendto(json.dumps({"to": address if direct else None}).encode(), (address, UDP_PORT))
                while True:
                    data, sender = sock.recvfrom(2000)
                    told = json.loads(data)
                    self.tally["answered"] += 1
                    if told["asked"] is not None and not told["asked"] == told["ip"] == sender[0]:
                        self.stray(f"an answer {told} from {sender}")
            except OSError:
                continue

    def talk(self) -> None:
        """A few streams at a time, each until it breaks or has been used enough."""
        streams: list[tuple[Socket, bytes]] = []
        while True:
            self.ctx.sleep(EVERY)
            if len(streams) < STREAMS:
                try:
                    sock = self.ctx.create_connection((self.chance.choice(self.addresses), TCP_PORT), timeout=1.0)
                    owner = sock.makefile("rb").readline()
                    if owner.endswith(b"\n"):
                        streams.append((sock, owner))
                except OSError:
                    continue
            index = self.chance.randrange(len(streams) or 1)
            if index < len(streams):
                sock, owner = streams[index]
                try:
                    sock.sendall(owner)
                    if (echo := sock.recv(100)) != owner:
                        if echo and echo not in owner:
                            self.stray(f"a stream to {owner!r} answered {echo!r}")
                        raise ConnectionError("over")
                    self.tally["lines"] += 1
                except OSError:
                    sock.close()
                    del streams[index]


def peer(ctx: Context) -> int:
    """Serve, ask and talk until the end."""
    one = Peer(ctx)
    for part in (one.answer_datagrams, one.accept_streams, one.ask_by_datagram, one.talk):
        ctx.start_thread(part)
    while ctx.sleep(0.5):
        ctx.stdout.write(json.dumps(one.tally) + "\n")
    return 0
