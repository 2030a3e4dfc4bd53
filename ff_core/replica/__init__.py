"""Where copies live: which node holds whose replica, and the memory an agent owns."""
