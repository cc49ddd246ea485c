"""Pods as programs see them: containers as threads, the blocking socket API, built-in programs.

Knows sockets of the stack and the `Kernel` that drives them; must not know nodes, carriers or the control plane.
"""
