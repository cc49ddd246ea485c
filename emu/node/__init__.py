"""One node's process: the kernel lock and its threads, the kubelet, the proxy and the CNI wired together. A shell.

`kernel` drives the stack, `machine` is the node's data plane (namespace, underlay, CNI), `agent` its control loop, `kubelet` its
pods, `probe` the traces that start here, `main` the process. `tuns` joins it
to this machine's kernel, whose network namespaces `netns` enters and `rtnetlink` configures.
"""
