"""Starts clusters and talks to them: command line, zygote, supervisor, display.

One cluster is one run directory, one supervisor that holds its lock, and below it the controller and the zygote, whose
children the nodes are. Commands find a cluster by its directory and speak to it over the Kubernetes API; only what the API
cannot answer, because its own process is concerned, goes over the supervisor's socket.
"""
