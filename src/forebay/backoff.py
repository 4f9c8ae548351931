"""Full-jitter backoff: a random delay up to a bound that doubles (AWS Architecture Blog, Brooker 2015)."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds for one thing that is tried again; ``reset`` when it has succeeded."""

    def __init__(self, first: float = 1.0, most: float = 60.0) -> None:
        self._first = first
        self._most = most
        self._bound = first

    def next(self) -> float:
        """Return the next delay: uniform between a tenth of the bound and the bound, so that it never spins."""
        bound = self._bound
        self._bound = min(self._most, bound * 2)
        return random.uniform(bound / 10, bound)  # noqa: S311 - spreads load, hides nothing

    def reset(self) -> None:
        """Begin with the first delay again."""
        self._bound = self._first
