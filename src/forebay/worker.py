"""A worker: what a service does outside its store, one thing after the other, because of what stands in it.

What has a side effect elsewhere (a payment, a message to a person) does not belong into a unit of work, which may run
twice before it counts once. A unit of work writes down that it is wanted; a worker finds it, does it under a key that
makes a repetition harmless, and writes the outcome down. A crash in between repeats it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import anyio
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.protocol.needs import EpochNeed
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

Work = Callable[[], Awaitable[bool]]
"""``await work()`` does what is wanted now and returns whether there was anything to do."""


class AtWork(NamedTuple):
    """What a service's work gets.

    Attributes:
        store: the service's.
        settings: its own, of the type that it declares.
        is_file: whether the store is a SQLite file; else it is a schema of a PostgreSQL database.
        unneeded: asks all consumers up to where nobody needs these epochs of the archive any more; it raises
            ``LinkError`` where one of them does not answer.
    """

    store: UnitStore
    settings: Any
    is_file: bool
    unneeded: Callable[[list[EpochNeed]], Awaitable[list[int]]]


MakeWork = Callable[[AtWork], Work]
"""Returns a service's work; called once, when the service starts."""


class Employed(NamedTuple):
    """A work that a service declares.

    Attributes:
        make: makes it.
        every: seconds after which it is called at the latest: what was put off may be due.
        after_commits: whether it is called after commits, too.
    """

    make: MakeWork
    every: float
    after_commits: bool


class Worker:
    """Calls a service's work when its time has come, and when it is woken. Start it with ``run``.

    A call that raises is logged and repeated after a pause that grows to a minute.

    Args:
        name: in log lines.
        work: what it does.
        every: seconds after which it is called though nobody woke it.
    """

    def __init__(self, name: str, work: Work, *, every: float) -> None:
        self._name = name
        self._work = work
        self._every = every
        self._wakened = anyio.Event()

    def wake(self) -> None:
        """Say that something may be wanted; cheap, may be called from the event loop at any time."""
        self._wakened.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        task_status.started()
        backoff = Backoff(first=0.2, most=60.0)
        while True:
            self._wakened = anyio.Event()
            try:
                busy = await self._work()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                logger.exception("worker.failed", extra={"worker": self._name, "reason": reason})
                await anyio.sleep(backoff.next())
                continue
            backoff.reset()
            if not busy:
                with anyio.move_on_after(self._every):
                    await self._wakened.wait()
