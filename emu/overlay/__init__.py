"""The wire between nodes: carriers that take underlay messages to a named peer, and the conditions of links. Alone here imports zmq."""
