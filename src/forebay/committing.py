"""Committing what a reader takes in: in parts around the events that fail, which are parked (F1), with its retries.

Reading from a stream and following an outbox differ in where deliveries come from; what becomes of them is the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from forebay.crash_points import reach
from forebay.delivery import Delivery
from forebay.errors import StoreError
from forebay.handlers import Handlers
from forebay.inbox import Ahead, look_ahead
from forebay.intake import take_all
from forebay.positions import forget_causes
from forebay.redrive import Rows
from forebay.retries import Retries, anyone
from forebay.taken import RELEASED, HandlerFailedError, Taken, message_id_of, one_line
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

FORGET_INTERVAL = 3600.0
"""Seconds between looks for causes that are old enough to be forgotten; a reader may run for months."""


class Committing:
    """What one reader's events go through.

    Args:
        name: the consumer's, in log lines.
        handlers: what is done with the events.
        store: where inbox and effects are.
        clock: seconds, monotonic.
        whose: the parked events that are this reader's to retry; all of them for None.
        require: refuses, on the store's thread, a partition that is not this process's to read.
        shared: whether other processes write to the database: then the inbox is read before the transaction.

    Attributes:
        totals: what was done since the start, in events.
        retries: of what is parked.
    """

    def __init__(
        self,
        name: str,
        handlers: Handlers,
        store: UnitStore,
        clock: Callable[[], float] = time.monotonic,
        whose: Rows | None = None,
        require: Callable[[int], None] = anyone,
        *,
        shared: bool = False,
    ) -> None:
        self._name = name
        self._shared = shared
        self._handlers = handlers
        self._store = store
        self._require = require
        self.totals = Taken()
        self._clock = clock
        self._forget_at = 0.0
        self._turn = anyio.Lock()
        self.retries = Retries(name, handlers, store, self._count, clock, whose, require)

    @property
    def suspended(self) -> str | None:
        """Why it only retries what is parked and takes nothing new in; None while it does (F2)."""
        return self.retries.suspended

    async def commit(
        self,
        stream: str,
        incarnation: str,
        deliveries: Sequence[Delivery],
        committed: Callable[[int, int], None],
    ) -> int:
        """Commit a batch, in parts around the events that fail; they are parked, each in a part of its own.

        Args:
            stream: what the position is kept under.
            incarnation: of the stream.
            deliveries: the batch, in order.
            committed: called after each COMMIT with the part: its first index and the one behind its last.

        Returns:
            How many deliveries, from the first, were committed; less than all only where it is suspended.

        Raises:
            StoreError: the database failed; the parts before are kept.
        """
        async with self._turn:
            return await self._commit(stream, incarnation, deliveries, committed)

    async def _commit(
        self,
        stream: str,
        incarnation: str,
        deliveries: Sequence[Delivery],
        committed: Callable[[int, int], None],
    ) -> int:
        one_by_one, at, end = False, 0, len(deliveries)
        failing: dict[str, str] = {}
        behind: dict[str, str] = {}
        while at < len(deliveries) and not self.suspended:
            part = deliveries[at:end]
            try:
                # What a transaction has read of a table's page collides with what others write there (SERIALIZABLE),
                # though these rows are this reader's alone: it would have to wait for its turn all the time.
                ahead = await self._store.read(look_ahead, part) if self._shared else None
                taken = await self._store.write(self._take_all, stream, incarnation, part, one_by_one, failing, ahead)
            except HandlerFailedError as error:
                if not error.alone:
                    one_by_one = True
                elif error.message_id in failing:
                    raise StoreError(f"{error.message_id} can neither be taken nor parked: {error}") from error
                else:
                    # What came before it is committed without it, and does not know of it: another node may have given
                    # one of its own events the same id.
                    known = behind if error.index else failing
                    behind.clear()
                    self._failed(known, error.message_id, str(error), error.__cause__)
                    end = at + max(1, error.index)
            except StoreError:
                raise
            except Exception as error:
                # Not in a handler: a deferred constraint that COMMIT found, say. Whose it is shows only singly.
                message_id = message_id_of(part[0].headers)
                if len(part) > 1:
                    end = at + 1
                elif list(failing) == [message_id]:
                    failing[RELEASED] = one_line(error)  # it is one that this one lets go on, then
                elif RELEASED in failing:
                    raise StoreError(f"{message_id} can neither be taken nor parked: {one_line(error)}") from error
                else:
                    failing.clear()  # of a frame none is tried again: it may be one that no handler failed on
                    self._failed(failing, message_id, one_line(error), error)
            else:
                reach("consume.committed")
                committed(at, end)
                self._count(taken)
                await self.retries.committed(taken, failing)
                if taken.parked:
                    failing.clear()
                failing.update(behind)
                at, end = end, _end_of(deliveries, end, behind)
                behind.clear()
        return at

    async def settle(self, unit: Callable[..., Taken], /, *args: Any, partition: int | None = None) -> Taken:
        """Run ``unit(work, *args, failing)`` until no handler fails in it that is not parked; count what it did.

        Args:
            unit: what is done.
            args: for it.
            partition: whose origins it changes; None where no partition's reader is concerned.

        Raises:
            StoreError: the database failed; nothing of it was kept.
        """
        failing: dict[str, str] = {}
        async with self._turn:
            while True:
                try:
                    taken = await self._store.write(self._required, partition, unit, *args, failing)
                except HandlerFailedError as error:
                    if error.message_id in failing:
                        raise StoreError(f"{error.message_id} can neither be taken nor parked: {error}") from error
                    self._failed(failing, error.message_id, str(error), error.__cause__)
                else:
                    self._count(taken)
                    await self.retries.committed(taken, failing)
                    return taken

    async def retry_due(self) -> bool:
        """Try the parked events whose time has come; return whether there were any. Raises as ``settle``."""
        async with self._turn:
            if self._forget_at <= self._clock():
                await self._store.write(forget_causes)
                self._forget_at = self._clock() + FORGET_INTERVAL
            return await self.retries.run_due()

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Let nothing take effect for a moment: what is under way ends first, what comes waits."""
        async with self._turn:
            yield

    # On the store's thread.

    def _take_all(
        self,
        work: UnitOfWork,
        stream: str,
        incarnation: str,
        part: Sequence[Delivery],
        one_by_one: bool,
        failing: Mapping[str, str],
        ahead: Ahead | None,
    ) -> Taken:
        for partition in {delivery.partition for delivery in part}:
            self._require(partition)
        return take_all(work, self._handlers, stream, incarnation, part, one_by_one, failing, ahead)

    def _required(self, work: UnitOfWork, partition: int | None, unit: Callable[..., Taken], *args: Any) -> Taken:
        if partition is not None:
            self._require(partition)
        return unit(work, *args)

    # On the event loop.

    def _failed(self, failing: dict[str, str], message_id: str, detail: str, cause: BaseException | None) -> None:
        failing[message_id] = detail
        logger.error(
            "consumer.handler_failed",
            extra={"consumer": self._name, "message_id": message_id, "reason": detail},
            exc_info=cause,
        )

    def _count(self, taken: Taken) -> None:
        for field in Taken.__struct_fields__:
            setattr(self.totals, field, getattr(self.totals, field) + getattr(taken, field))
        if taken.parked:
            logger.error("consumer.parked", extra={"consumer": self._name, "events": taken.parked})
        if taken.expired:
            logger.warning("command.expired", extra={"consumer": self._name, "commands": taken.expired})


def _end_of(deliveries: Sequence[Delivery], first: int, failing: Mapping[str, str]) -> int:
    """Return the end of the part that begins with an event that is known to fail: before the next one of its id."""
    later = range(first + 1, len(deliveries)) if failing else ()
    return next((at for at in later if message_id_of(deliveries[at].headers) in failing), len(deliveries))
