"""Taps: what AF_PACKET sockets on a device see. Decides how a device is listened to, never what becomes of what is heard.

A tap sees a packet that comes in before PREROUTING, one that leaves after POSTROUTING (net/core/dev.c, `ptype_all`), whole: a GSO
packet is one, checksums are not filled in. While nobody listens, nothing on a packet's way asks whether anybody does: a device
that is tapped has `stand_ins` for the methods through which all packets pass, one that is not has its class's own. Tapping a
device makes its namespace forget its flows, since they may rest on either, and no shortcut is joined while any device of the node
is tapped (`Softnet.tapped`): a shortcut passes over the devices on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu.stack.device import Device

IN, OUT = 1, 2
"""Directions, numbered as pcapng's epb_flags have them."""

Tap = Callable[[int, bytes, int, int], None]
"""Takes the direction, the packet's bytes, its gso_size and its trace id. Called under the node's lock: it must be quick."""


def listen(device: Device, tap: Tap) -> None:
    """Let `tap` see every packet of the device from now on."""
    device.taps = (*device.taps, tap)
    _change(device, 1)


def leave(device: Device, tap: Tap) -> None:
    """`tap` sees no more of it; no error if it does not listen."""
    if tap in device.taps:
        device.taps = tuple(other for other in device.taps if other != tap)
        _change(device, -1)


def _change(device: Device, taps: int) -> None:
    stand_ins = device.stand_ins()
    for name in stand_ins:
        vars(device).pop(name, None)  # what hides the class's own
    if device.taps:
        vars(device).update(stand_ins)
    device.ns.softnet.tapped += taps
    device.ns.invalidate()
