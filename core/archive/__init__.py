"""Every event of every node, with its envelope and its body, for good."""
