"""Kubernetes objects as the emulator reads them: kinds, manifests, selectors, views. Values only; no store, no request, no clock."""
