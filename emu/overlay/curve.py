"""Who may reach a tcp carrier: CURVE keys, and the check of them. Decides trust; must not know messages or peers' addresses.

libzmq without a ZAP handler lets in a client with any key, so a carrier that has keys starts one (RFC 27/ZAP, RFC 26/CURVEZMQ).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import zmq

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator


class CurveKeys(NamedTuple):
    """A node's own key pair in Z85, as `zmq.curve_keypair` makes it."""

    public: bytes
    secret: bytes


class Doorkeeper:
    """The ZAP handler of one context: lets in the holders of the keys in `trusted`, and nobody else. Has a thread until `stop`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        from zmq.auth.thread import ThreadAuthenticator  # asyncio with it, which nodes of one host do without

        self.trusted: set[bytes] = set()
        self._authenticator: ThreadAuthenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(credentials_provider=self)

    def callback(self, domain: str, key: bytes) -> bool:
        """ZAP's question: may the holder of this public key (Z85) send to us?"""
        return key in self.trusted

    def stop(self) -> None:
        self._authenticator.stop()


def serve(socket: zmq.Socket[bytes], keys: CurveKeys) -> None:
    """Make a socket that is to be bound encrypt with our keys."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, keys.secret)


def call(socket: zmq.Socket[bytes], keys: CurveKeys, server: bytes) -> None:
    """Make a socket that is to be connected expect the holder of `server` at the other end."""
    socket.set(zmq.CURVE_SERVERKEY, server)
    socket.set(zmq.CURVE_PUBLICKEY, keys.public)
    socket.set(zmq.CURVE_SECRETKEY, keys.secret)
