"""kube-proxy: from Services and EndpointSlices to the rule set of one node. Pure, clock-free; `README.md` draws it.

    changes    what is different since the last sync       (folds bursts, drops no-ops)
    endpoints  who may answer, for which kind of traffic   (traffic policies, hints, termination; shared by every mode)
    chains     the rules of one service port               (iptables mode)
    iptables   the whole rule set, in kube-proxy's order   (shares what did not change)
    nftables   one table with verdict maps and sets        (likewise)
    syncer     when to sync, and what to clean up after    (the node agent's only door)

Must not know how packets walk rules (`netfilter`) nor how changes travel (`bus`).
"""
