"""The gateway: takes any JSON event from any program on the node."""
