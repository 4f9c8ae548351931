"""A deterministic simulation of the protocol code that ships; see ``world`` for what it is made of."""
