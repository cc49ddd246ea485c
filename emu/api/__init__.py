"""The Kubernetes API: requests in, responses and streams out. `handler` and what it calls are pure; `http` is the shell on a socket."""
