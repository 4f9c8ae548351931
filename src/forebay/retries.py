"""Retries of what is parked, and when reading stops because too much fails (rules F1, F2)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeGuard

import anyio

from forebay.errors import BodyError, ForebayError, MessageError, StoreError, UnknownVersionError
from forebay.handlers import Handlers
from forebay.intake import Intake
from forebay.parking import HANDLER, Parked
from forebay.redrive import Rows, due, next_retry, postpone
from forebay.taken import (
    FAILURES_IN_A_ROW,
    Failing,
    HandlerFailedError,
    Taken,
    one_line,
)
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

RETRIES = 50
"""Parked events that are tried between two batches, at most."""


def anyone(_: int) -> None:
    """Require nothing: nobody else may change what is parked here."""


class Retries:
    """The retries of one consumer; it runs them between its batches.

    Attributes:
        suspended: why nothing new is to be read until a retry succeeds; None while it is.
    """

    def __init__(
        self,
        consumer: str,
        handlers: Handlers,
        store: UnitStore,
        count: Callable[[Taken], None],
        clock: Callable[[], float],
        whose: Rows | None = None,
        require: Callable[[int], None] = anyone,
    ) -> None:
        self._consumer = consumer
        self._handlers = handlers
        self._store = store
        self._count = count
        self._clock = clock
        self._whose = whose
        self._require = require
        self._failed_in_a_row: set[str] = set()
        self._retry_at: float | None = None
        self._begun = False
        self.suspended: str | None = None

    async def begin(self) -> None:
        """Look for the next retry; at the process's start what could not be read is due, for this release may do it."""
        if not self._begun:
            await self._store.write(wake_unread, self._whose)
            self._begun = True
        await self.look()

    async def run_due(self) -> bool:
        """Try the parked events whose time has come; return whether there were any."""
        if self._retry_at is None or self._retry_at > self._clock():
            return False
        waiting = await self._store.read(due, RETRIES, self._whose)
        for parked in waiting:
            with anyio.CancelScope(shield=True):
                await self._retry(parked)
        await self.look()
        return bool(waiting)

    async def committed(self, taken: Taken, failing: Failing) -> None:
        """Take note of a batch: too many failures in a row are likely not the events' fault (F2)."""
        if taken.applied:
            self._failed_in_a_row.clear()
        if taken.parked:
            self._failed_in_a_row.update(failing)
        if taken.parked or taken.filled:
            await self.look()
        if len(self._failed_in_a_row) >= FAILURES_IN_A_ROW and self.suspended is None:
            self.suspended = f"{len(self._failed_in_a_row)} events in a row failed: waits for a retry to succeed"
            logger.error("consumer.suspended", extra={"consumer": self._consumer, "reason": self.suspended})

    async def look(self) -> None:
        """Look into the database for the time of the next retry."""
        wait = await self._store.read(next_retry, self._whose)
        self._retry_at = None if wait is None else self._clock() + max(0.0, wait)

    def look_again(self) -> None:
        """Say that parked events may be due earlier than was known."""
        self._retry_at = self._clock()

    def until_next(self) -> float | None:
        """Return the seconds until the next retry, or None where none is due."""
        return None if self._retry_at is None else max(0.01, self._retry_at - self._clock())

    async def _retry(self, parked: Parked) -> None:
        extra = {"consumer": self._consumer, "message_id": parked.message_id, "attempts": parked.attempts}
        failing: dict[str, str] = {}
        while True:
            try:
                taken = await self._store.write(self._retry_one, parked, failing)
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it stays parked with it
                if _another(error, parked, failing):
                    self._failed(failing, error)
                    continue
                reason = error.reason if isinstance(error, MessageError) else HANDLER
                detail = str(error) if isinstance(error, ForebayError) else one_line(error)
                await self._store.write(self._postpone, parked, reason, detail)
                logger.warning("consumer.retry_failed", extra={**extra, "reason": detail})
                return
            break
        self._count(taken)
        logger.info("consumer.retried", extra=extra)
        if failing and not taken.applied:
            return  # nothing says that handlers succeed again
        self._failed_in_a_row.clear()
        if self.suspended is not None:
            self.suspended = None
            logger.warning("consumer.resumed", extra={"consumer": self._consumer})

    def _failed(self, failing: dict[str, str], error: HandlerFailedError) -> None:
        failing[error.message_id] = str(error)
        logger.error(
            "consumer.handler_failed",
            extra={"consumer": self._consumer, "message_id": error.message_id, "reason": str(error)},
            exc_info=error.__cause__,
        )

    # On the store's thread.

    def _retry_one(self, work: UnitOfWork, parked: Parked, failing: Failing) -> Taken:
        self._require(parked.delivery.partition)
        return retry_one(work, self._handlers, parked, failing)

    def _postpone(self, work: UnitOfWork, parked: Parked, reason: str, detail: str) -> None:
        self._require(parked.delivery.partition)
        postpone(work, parked, reason, detail)


def _another(error: Exception, parked: Parked, failing: Failing) -> TypeGuard[HandlerFailedError]:
    """Whether an event failed that the retry only brought along: one of a frame, or held behind what is retried.

    It is parked by itself then, with its key, and the others take effect (F1).
    """
    if not isinstance(error, HandlerFailedError) or error.message_id in failing:
        return False
    return not (parked.placed and error.message_id == parked.message_id)


def retry_one(work: UnitOfWork, handlers: Handlers, parked: Parked, failing: Failing | None = None) -> Taken:
    """Make a parked event's effect, in one unit of work with its leaving the parking; raises as ``Intake.retry``."""
    intake = Intake(work, handlers, failing=failing)
    intake.retry(parked)
    return intake.finish()


def wake_unread(work: UnitOfWork, whose: Rows | None) -> None:
    """Let what could not be read be retried at once: another release may run since, which can read it (S2)."""
    condition, params = whose.condition() if whose else ("1 = 1", {})
    work.execute(
        "update forebay_parked set retry_at = :now where retry_at is not null and discarded_at is null"
        f" and reason in (:unknown_version, :undecodable_body) and {condition}",
        now=time.time_ns() // 1_000_000,
        unknown_version=UnknownVersionError.reason,
        undecodable_body=BodyError.reason,
        **params,
    )
