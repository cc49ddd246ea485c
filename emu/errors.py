"""What can go wrong, and who is told.

Four kinds of failure, four treatments:

    PodwireError
    +-- ConfigError      the user's file or flag      shown with file and object path; exit status 2
    +-- ApiError         a request the API refuses    a Kubernetes `Status`, shown as kubectl shows it
    +-- CarrierError     a carrier cannot be set up   shown; a peer that is merely gone is a drop, not an error
    DropReason           the network                  counted, never raised
    AssertionError       our own bug                  the process dies loudly
"""

from __future__ import annotations

from enum import StrEnum


class PodwireError(Exception):
    """Anything that a person is told in one sentence."""


class ConfigError(PodwireError):
    """A file or a flag of the user's is wrong.

    `source` names the file (or "-" for standard input, or the flag), `where` the object and path in it, such as
    `Service default/web: spec.ports[0].nodePort`; `problem` says what is wrong and what would be right.
    """

    def __init__(self, problem: str, *, source: str = "", where: str = "") -> None:
        self.problem, self.source, self.where = problem, source, where
        super().__init__(": ".join(part for part in (source, where, problem) if part))


class CarrierError(PodwireError):
    """A carrier could not bind or was closed while in use."""


class ApiError(PodwireError):
    """A request that the API refuses, as the fields of a Kubernetes `Status` (reason is its CamelCase name)."""

    def __init__(
        self, code: int, reason: str, message: str, *, causes: tuple[dict[str, str], ...] = (), details: dict[str, object] | None = None
    ) -> None:
        self.code, self.reason, self.message, self.causes, self.details = code, reason, message, causes, details or {}
        super().__init__(message)

    def status(self) -> dict[str, object]:
        """The `Status` object sent to the client."""
        details = {**self.details, **({"causes": list(self.causes)} if self.causes else {})}
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason, "code": self.code, **({"details": details} if details else {}),
        }  # fmt: skip


class DropReason(StrEnum):
    """Why a packet went no further. Names follow Linux's `enum skb_drop_reason` where it has one."""

    TRUNCATED = "truncated"  # shorter than its headers say
    MALFORMED = "malformed"  # a header that no sender makes: version, length or offset
    BAD_CHECKSUM = "bad-checksum"  # came from outside with a checksum that is not its own
    BAD_MESSAGE = "bad-message"  # an underlay message that is not ours, or is cut
    STALE_INCARNATION = "stale-incarnation"  # meant for an earlier life of this node
    STALE_AGE = "stale-age"  # waited longer in a queue than any wire would hold it
    NETFILTER_DROP = "netfilter-drop"
    REJECTED = "rejected"  # a REJECT rule answered for the packet
    TTL_EXCEEDED = "ttl-exceeded"
    NO_ROUTE = "no-route"
    OUTSIDE = "outside"  # left for the world outside the cluster, where nothing answers
    HOST_UNREACHABLE = "host-unreachable"  # no neighbour answers for the address
    NEIGHBOUR_QUEUE_FULL = "neighbour-queue-full"
    TOO_BIG = "too-big"  # over the MTU with DF set
    NO_SOCKET = "no-socket"
    SOCKET_BUFFER_FULL = "socket-buffer-full"
    NOT_OURS = "not-ours"  # reached a namespace that neither owns nor forwards the destination
    MARTIAN = "martian"  # loopback address on a wire
    DEVICE_DOWN = "device-down"
    UNKNOWN_VNI = "unknown-vni"
    UNKNOWN_PEER = "unknown-peer"  # no node has this underlay address
    QUEUE_FULL = "queue-full"  # the peer's queue is full: dropped as a network card does
    LINK_LOSS = "link-loss"  # the conditions of a link: lost by chance
    LINK_CUT = "link-cut"  # sent, or under way, on a link that is cut
    LINK_OVERFLOW = "link-overflow"  # more than a link with a rate or a delay can hold
    CONNTRACK_FULL = "conntrack-full"
    TCP_INVALID = "tcp-invalid"  # a segment that TCP ignores (RFC 9293, 3.10)
    UNSUPPORTED = "unsupported"  # a protocol or option that is not emulated
