"""What people read: traces, tables and progress on a terminal. Takes answers as JSON and prints; asks nothing."""
