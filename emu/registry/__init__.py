"""What kube-apiserver does to one request: defaults, validation, immutability, allocation, in the store's transaction. Pure."""
