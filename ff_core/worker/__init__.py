"""What runs in a worker: a rank's process, from boot to the end of the user's script."""
