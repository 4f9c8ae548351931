"""A consumer with a handler for each event."""
