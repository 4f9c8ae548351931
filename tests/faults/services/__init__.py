"""The test project of the fault harness: a small edge service and the consumers of its events."""
