"""Benchmarks and the load that the fault campaign and the demonstration ring up."""
