"""What runs in an agent: one process per node, an event loop, no torch."""
