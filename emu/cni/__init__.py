"""Container network interfaces: how a pod gets its address and how its packets reach other nodes."""
