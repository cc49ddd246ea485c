"""Scenarios: tests of networking in one YAML file, run in this process or on a real cluster with the same verdicts.

    shapes      which keys a document may have, and what their values must be         (tables)
    document    a file's text to checked values
    world       what a runner asks of a cluster, in process or real
    steps       what each kind of step does, and the fact it finds                    (a table)
    flow        the fate of a first packet, across nodes
    judge       expectation against fact
    runner      a scenario from set-up to its verdict
    report      verdicts as text, JSON lines and JUnit

The format is a public contract; it is described for users in `README.md` beside this file.
"""
