"""Programs that measure Podwire against a reference taken in the same run. See README.md; `podwire bench` runs them."""
