"""The IP stack: namespaces, devices, routes, neighbours, sockets. Pure: the time is `Softnet.now`, and nothing here blocks.

A pod and a node are the same thing here: a `NetNamespace`. The data journey through it, from `namespace` outward:
`device`, `bridge` and `tun` carry, `route`, `neighbour` and `pmtu` direct, `flow` repeats what was decided, `icmp` complains,
`sockets` and `tcp_sockets` end the way.
"""
