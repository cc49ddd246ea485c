"""The wire between nodes: carriers that take underlay messages to a named peer. The only data-path package that imports zmq."""
