"""What runs in the controller, in the launcher of node 0: decisions without I/O but for `service`."""
