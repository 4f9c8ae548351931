"""How long to wait before the next attempt to connect."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec


class OutageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Full jitter, quick at first: a broker that restarts is found again within a second, an absent one is left alone.

    Attributes:
        base: seconds, the ceiling of the first delay once the outage is no longer young.
        cap: seconds that no delay exceeds.
        quick_cap: seconds that no delay exceeds while the outage is young.
        quick_for: seconds for which an outage is young.
        stable_after: seconds that a connection must last before the outage counts as over.
    """

    base: float = 1.0
    cap: float = 60.0
    quick_cap: float = 0.8
    quick_for: float = 30.0
    stable_after: float = 30.0


FLOOR = 0.05
"""Seconds that every delay lasts at least: full jitter may draw zero, and a loop must not spin."""


class Outage:
    """The delays of one outage after the other; a connection that breaks again soon continues the outage."""

    def __init__(self, config: OutageConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._since: float | None = None
        self._connected_at: float | None = None
        self._slow_attempts = 0

    def connected(self) -> None:
        """Take note of a connection."""
        self._connected_at = self._clock()

    def delay(self) -> float:
        """Return the seconds to wait after a failed attempt or a lost connection."""
        now, config = self._clock(), self._config
        if self._connected_at is not None and now - self._connected_at >= config.stable_after:
            self._since, self._slow_attempts = None, 0
        self._connected_at = None
        if self._since is None:
            self._since = now
        if now - self._since < config.quick_for:
            ceiling = min(config.quick_cap, config.cap)
        else:
            ceiling = min(config.cap, config.base * 2 ** min(self._slow_attempts, 30))
            self._slow_attempts += 1
        return max(FLOOR, random.uniform(0, ceiling))  # noqa: S311
