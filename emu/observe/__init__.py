"""What can be seen of the cluster at work: traces put in order from the hops that nodes report. Values only."""
