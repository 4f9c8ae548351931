"""How fast something fills, seen from outside: a database with effects, a stream with events.

The clock starts at the first look that finds something, and what it finds does not count: by then a process may have
worked on it for as long as a transaction takes, and nobody saw that. Warm-up is left out alike for everybody so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

from bench.profiling import profiled
from bench.resident import processor_seconds

LIMIT = 240.0
"""Seconds after which a column is given up, and the run with it."""


class Took(NamedTuple):
    """What was seen: so many events in so many seconds; ``processor`` is what the process used, in seconds as well."""

    events: int
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds


async def watch(
    look: Callable[[], Awaitable[int]],
    count: int,
    *,
    every: float,
    said: Callable[[], str] = str,
    pid: int | None = None,
    process: str = "consumer",
) -> Took:
    """Look until there are ``count``.

    Args:
        look: tells how many there are.
        count: how many there will be.
        every: seconds between two looks.
        said: tells how the process does.
        pid: of the process that is measured; it is profiled from the first event on, where profiles are taken.
        process: what it is called there.

    Raises:
        RuntimeError: they do not come.
    """
    limit = time.monotonic() + LIMIT
    empty = began = looked = time.perf_counter()
    before = found = 0
    used = 0.0
    async with AsyncExitStack() as profiling:
        while found < count:
            looked = time.perf_counter()
            found = await look()
            if not found:
                empty = looked
            elif not before:
                began, before = time.perf_counter(), found
                used = processor_seconds(pid) if pid else 0.0
                await profiling.enter_async_context(profiled(process, pid))
            if found < count and time.monotonic() > limit:
                raise RuntimeError(f"{found} of {count} events came in {LIMIT:g} s: {said()[-1000:]}")
            await asyncio.sleep(every)
        if before >= count:  # so few that one look found them all
            return Took(count, looked - empty, 0.0)
        return Took(count - before, looked - began, (processor_seconds(pid) if pid else 0.0) - used)
