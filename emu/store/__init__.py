"""Where objects live: one file, one revision for all kinds, all-or-nothing transactions, and a history for watches."""
