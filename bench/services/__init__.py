"""The services that the benchmarks run: one on the edge, and its consumers in the core."""
