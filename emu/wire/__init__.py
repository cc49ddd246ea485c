"""Bytes on wires: addresses, headers, the underlay message. Values only; nothing here knows a device, a rule or a clock."""
