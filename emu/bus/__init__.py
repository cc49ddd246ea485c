"""The broadcast: how nodes learn what the control plane knows, and how it learns what they see.

    store changes - `publisher` (views, numbered) - ControllerBus =XPUB= NodeBus - `follower` (mirrors) - the node's control loop
                                 collector of reports - ROUTER =DEALER= - hello, lease, pods, hops, answers

`link.py` says what a bus is; `zeromq.py` (a node's end) with `broadcast.py` (the controller's), and `memory.py`, are two of them under
one contract suite. All else is pure.
"""
