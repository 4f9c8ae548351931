"""What a user would take instead of forebay, under the same workload and the same faults."""
