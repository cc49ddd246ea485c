"""The commands, by what they concern. Each is thin: flags in, one call, text or JSON out; top-level imports are click alone."""
