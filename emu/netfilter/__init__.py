"""Linux's netfilter: hooks, rule sets as immutable values, the walk, conntrack and NAT.

Pure: packets and the time come in, verdicts go out. Must not know devices, routes or sockets beyond what `hooks.Surroundings`
tells it, nor who made the rules.
"""
