"""The rules as pure state: no socket, no clock, no database handle, so that they can be simulated by the million."""
