"""Control plane: one controller per job, one agent per (emulated) node, one link per worker."""
