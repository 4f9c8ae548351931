"""The link of a process to the broker: what it carries, what it may carry, and whose turn it is.

A batch is at most what the link carries in 2 seconds (O5), so that an urgent event never waits longer behind a batch
of another lane. What it carries is measured where batches are acknowledged, and starts small: on a thin link a large
first batch would be given up for lost before it is through. A cap is a bucket of tokens that all relays of the process
share; nothing is saved up in it.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from forebay.errors import ConfigurationError

BATCH_SECONDS = 2.0
"""Seconds for which one batch may keep the link."""

LEAST_BATCH, MOST_BATCH = 16 * 1024, 1024 * 1024
"""Bytes of one batch. Below the least, waiting would outweigh the events; a cap alone makes batches smaller."""

LOWEST_SHARE = 0.1
"""Share of the bytes that the lowest lanes get while higher ones have more to send than the link carries."""

SLOW = 8 * 1024
"""Bytes per second that a link is taken for which has not been measured, where a time-out is reckoned."""

ANSWER_TIMEOUT = 5.0
"""Seconds for an acknowledgement, beside four times those that the bytes take."""

_RECENT = 0.3
"""Weight of the newest measurement where it is below the rate."""


class Link:
    """What the relays of one process share. Used on the event loop alone.

    Args:
        kbit: kilobits per second that the process may send at most; None for all that the link carries.
        clock: seconds.

    Raises:
        ConfigurationError: the cap is not above 0.
    """

    def __init__(self, kbit: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        if kbit is not None and not 0 < kbit < float("inf"):
            raise ConfigurationError(f"link: kbit {kbit!r} is not above 0", hint="leave it out for no cap")
        self.cap = None if kbit is None else kbit * 125
        self._clock = clock
        self._measured: float | None = None
        self._free_at = 0.0
        self._credit = 0.0
        self._busy = False
        self._waiting: list[tuple[int, int, anyio.Event]] = []
        self._numbers = itertools.count()

    @property
    def bytes_per_second(self) -> float | None:
        """What the link carries, as measured or as the cap allows; None before the first acknowledgement."""
        known = [rate for rate in (self._measured, self.cap) if rate is not None]
        return min(known, default=None)

    @property
    def batch_bytes(self) -> int:
        """Bytes of the next batch."""
        rate = self.bytes_per_second
        least = LEAST_BATCH if self.cap is None else min(LEAST_BATCH, self.cap * BATCH_SECONDS)
        return int(
            least if rate is None or self._measured is None else min(MOST_BATCH, max(least, rate * BATCH_SECONDS))
        )

    @property
    def narrow(self) -> bool:
        """Whether it carries less than the largest batch in time, so that one sends after the other."""
        rate = self.bytes_per_second
        return rate is not None and rate * BATCH_SECONDS < MOST_BATCH

    @property
    def lowest_bytes(self) -> int:
        """Bytes that the lowest lane may send now before higher ones, for its share; 0 where it has to wait."""
        return int(self._credit) if self._credit >= min(LEAST_BATCH, self.batch_bytes) / 4 else 0

    def timeout(self, size: int) -> float:
        """Return the seconds after which a batch of so many bytes that was not acknowledged is given up."""
        return ANSWER_TIMEOUT + 4 * size / (self._measured or SLOW)

    def carried(self, size: int, seconds: float, *, lowest: bool) -> None:
        """Note that a batch was acknowledged after so many seconds."""
        rate = size / max(seconds, 0.001)
        if self._measured is None:
            self._measured = rate
        elif rate > self._measured:
            self._measured = (self._measured + rate) / 2
        elif size >= self.batch_bytes / 2:  # how long a small one took says nothing of the link
            self._measured += _RECENT * (rate - self._measured)
        if lowest:
            self._credit = max(-float(self.batch_bytes), self._credit - size)
        else:
            self._credit = min(float(self.batch_bytes), self._credit + size * LOWEST_SHARE / (1 - LOWEST_SHARE))

    def failed(self) -> None:
        """Note that a batch was not acknowledged in time: the next ones are smaller."""
        if self._measured is not None:
            self._measured /= 2

    async def ready(self) -> None:
        """Wait until the cap lets something through."""
        while (delay := self._free_at - self._clock()) > 0:  # noqa: ASYNC110 -- a time comes, nobody sets it
            await anyio.sleep(delay)

    @asynccontextmanager
    async def turn(self, rank: int, size: int) -> AsyncIterator[None]:
        """Have the link for a batch: where it is narrow, one has it at a time, the lowest rank first.

        Args:
            rank: 0 is a service's first lane. Who waits for the lowest lanes' share goes before it when it is due.
            size: bytes of the batch, which the cap counts.
        """
        alone = self.narrow
        if alone:
            await self._acquire(rank)
        try:
            await self.ready()
            if self.cap is not None:
                self._free_at = max(self._clock(), self._free_at) + size / self.cap
            yield
        finally:
            if alone:
                self._release()

    async def _acquire(self, rank: int) -> None:
        if not self._busy:
            self._busy = True
            return
        mine = anyio.Event()
        entry = (rank, next(self._numbers), mine)
        heapq.heappush(self._waiting, entry)
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():
                self._release()
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def _release(self) -> None:
        if not self._waiting:
            self._busy = False
            return
        if self.lowest_bytes:
            entry = max(self._waiting, key=lambda each: (each[0], -each[1]))
            self._waiting.remove(entry)
            heapq.heapify(self._waiting)
        else:
            entry = heapq.heappop(self._waiting)
        entry[2].set()
