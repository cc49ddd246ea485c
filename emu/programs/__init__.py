"""Built-in programs: the servers that images stand for, and the client tools that `exec` finds in every container.

Written against `emu.pod.program` alone, as a user's program is. Must not know nodes, carriers or the control plane.
"""
