"""Podwire's emulator: a Kubernetes cluster whose packets are real and whose nodes are processes.

Everything here is a place on one of two journeys; `ls emu/` walks them.

    DATA     container thread - socket - TCP/UDP - pod eth0 = veth = node: PREROUTING - route - FORWARD - POSTROUTING - CNI device
               = ZeroMQ = peer node: CNI device - PREROUTING - route - FORWARD - POSTROUTING = veth = eth0 - TCP/UDP - socket - thread

               programs, pod  >  tcp, stack  >  netfilter  >  cni  >  overlay  >  (the peer node, backwards)

    CONTROL  manifest - Kubernetes API - store (revision) - controllers - broadcast (ZeroMQ, snapshot + numbered updates)
               - node's mirror - proxy: changes - endpoint choice - rules - one atomic swap of the node's rule set

               model  >  api, registry  >  store  >  control  >  bus  >  proxy  >  netfilter

They meet at one seam only: the proxy builds a `netfilter.RuleSet`, an immutable value, and the node's stack swaps it in.

Shells (the only places that own sockets, threads, clocks and files) are `node`, `controller`, `overlay`, `bus` and the HTTP
face of `api`; all else takes values and the time and returns values. `tests/test_house_rules.py` holds the import law.
"""

__version__ = "0.1.0"
