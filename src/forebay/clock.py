"""A hybrid logical clock: close to wall time, never backwards, ordered along causes.

After Kulkarni, Demirbas et al., "Logical Physical Clocks" (2014): 48 bits of milliseconds since 1970 and a counter of
16 bits, written as 16 hex digits (``forebay-hlc``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from threading import Lock

from forebay.errors import HeaderError

MAX_AHEAD = 5 * 60 * 1000
"""Milliseconds that a remote time may be ahead of the wall before it is not merged (I8)."""

_COUNTER_BITS = 16
_TICK = re.compile("[0-9a-f]{16}")


def wall_milliseconds() -> int:
    """Milliseconds since 1970 by the wall clock."""
    return time.time_ns() // 1_000_000


class HybridClock:
    """Gives ticks that only grow, within a process and, where it is opened with a stored tick, across restarts.

    Safe from any thread. ``refused`` counts the remote times that were too far ahead to be merged.
    """

    def __init__(self, last: int = 0, wall: Callable[[], int] = wall_milliseconds) -> None:
        self._last = last
        self._wall = wall
        self._lock = Lock()
        self.refused = 0

    @property
    def last(self) -> int:
        """The latest tick given or merged: persist it with what it stamps."""
        return self._last

    def tick(self) -> int:
        """Return a tick above every one given or merged before."""
        return self.ticks(1)

    def ticks(self, count: int) -> int:
        """Return the first of ``count`` ticks, one after the other, above every one given or merged before."""
        with self._lock:
            first = max(self._last + 1, max(self._wall(), 0) << _COUNTER_BITS)
            self._last = first + count - 1
            return first

    def resume(self, stored: int) -> None:
        """Go on above a tick of our own, however far the wall was set back since it was stored."""
        with self._lock:
            self._last = max(self._last, stored)

    def merge(self, remote: int) -> None:
        """Take note of a remote tick, so that the next local one is above it; one too far ahead is counted only."""
        with self._lock:
            if (remote >> _COUNTER_BITS) > self._wall() + MAX_AHEAD:
                self.refused += 1
            else:
                self._last = max(self._last, remote)


def format_tick(tick: int) -> str:
    """Write a tick as 16 hex digits, which sort as the ticks do."""
    return f"{tick:016x}"


def parse_tick(text: str) -> int:
    """Read 16 hex digits.

    Raises:
        HeaderError: it is anything else.
    """
    if not _TICK.fullmatch(text):
        raise HeaderError(f"forebay-hlc {text!r} is not 16 hex digits")
    return int(text, 16)
