"""The adapter to NATS JetStream: one connection for a process, publishing, pulling, topology."""
