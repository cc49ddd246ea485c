"""The controllers: what is desired against what is observed, one controller a file.

    Deployment - ReplicaSet - Pod - scheduler - (node) - EndpointSlice          node lifecycle - eviction        garbage collector

All are level-triggered: a change only names a key, `reconcile(key, now)` looks at the whole truth about it and acts through the
registry, as real controllers act through the API server; being asked twice does no harm. `runner` decides who is asked and when.
"""
