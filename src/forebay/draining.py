"""How fast a lane drains: the rate at which confirmed events leave the disk, and how long a writer has to wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW = 60.0
"""Seconds over which the rate is taken; events leave in bursts, one for each answer."""

UNKNOWN_RETRY_AFTER = 5.0
"""Seconds to wait where nothing has drained since the start."""

LEAST_RETRY_AFTER, MOST_RETRY_AFTER = 0.1, 60.0
"""Seconds; a lane that has stopped draining is tried again after the longer one."""


class DrainRate:
    """Bytes that left one lane over the last ``WINDOW`` seconds, in memory.

    Noted on the event loop, asked on the store's thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: deque[tuple[float, int]] = deque()
        self._ever = False

    def left(self, size: int) -> None:
        """Note that so many bytes left the disk."""
        if size > 0:
            now = self._clock()
            while self._left and now - self._left[0][0] > WINDOW:
                self._left.popleft()
            self._left.append((now, size))
            self._ever = True

    @property
    def bytes_per_second(self) -> float:
        """The rate now."""
        now = self._clock()
        left = [(at, size) for at, size in tuple(self._left) if now - at <= WINDOW]
        return sum(size for _, size in left) / max(1.0, now - left[0][0]) if left else 0.0

    def retry_after(self, need: int) -> float:
        """Return the seconds until ``need`` bytes can be expected to have left, between 0.1 and 60."""
        if not self._ever:
            return UNKNOWN_RETRY_AFTER
        rate = self.bytes_per_second
        return min(MOST_RETRY_AFTER, max(LEAST_RETRY_AFTER, need / rate)) if rate > 0 else MOST_RETRY_AFTER
