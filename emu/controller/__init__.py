"""The controller process: the shell that wires store, registry, controllers, bus and API together, and keeps them turning.

HTTP - api - registry - store - control.runner - bus.publisher - nodes
nodes - collector - registry, leases, calls, traces
"""
