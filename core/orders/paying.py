"""Payments: what a step of the saga has written down is asked of the provider, and its answer moves the saga."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial

import anyio

from contracts.orders import PaymentDeclined, PaymentReturned, PaymentTaken
from core.orders.collecting import SAGAS, OrderSettings
from core.orders.provider import Declined, Outcome, PaymentProvider, ProviderError, Returned, Taken
from forebay import Transaction, UnitOfWork, UnitStore
from forebay.event import Event
from forebay.transaction import Row

TOGETHER = 16
"""Payments that the provider is asked about at once."""

LONGEST_PAUSE = 60.0
"""Seconds between attempts, at most; the first comes after half a second."""


class Payments:
    """Asks a provider for what is wanted."""

    def __init__(self, provider: PaymentProvider, store: UnitStore, settings: OrderSettings) -> None:
        self._provider = provider
        self._store = store
        self._timeout = settings.duration("provider_timeout").total_seconds()

    async def settle(self) -> bool:
        """Ask for what is due now; return whether there was anything."""
        due = await self._store.read(_due, _now())
        async with anyio.create_task_group() as tasks:
            for row in due:
                tasks.start_soon(self._settle, row)
        return bool(due)

    async def _settle(self, row: Row) -> None:
        order = str(row["order_id"])

        async def answer(outcome: Outcome) -> None:
            await self._store.write(answered, order, outcome)

        if row["status"] == "wanted":
            call = partial(self._provider.charge, order, row["cents"], answer)
        else:
            call = partial(self._provider.refund, order, answer)
        try:
            with anyio.fail_after(self._timeout):
                await call()
        except (ProviderError, TimeoutError):
            await self._store.write(_put_off, order, row["status"], row["attempts"])


def answered(tx: UnitOfWork, order: str, outcome: Outcome) -> None:
    """Write an answer of the provider down and move the saga, unless it was known or is not wanted any more."""
    match outcome:
        case Taken():
            before, after = "wanted", "taken"
        case Declined():
            before, after = "wanted", "declined"
        case Returned():
            before, after = "return-wanted", "returned"
    rows = tx.execute(
        "update payment set status = :after where order_id = :order and status = :before returning cents",
        order=order,
        before=before,
        after=after,
    )
    if not rows:
        return
    event: Event
    match outcome:
        case Taken():
            event = PaymentTaken(order=order, cents=rows[0]["cents"])
        case Declined(reason):
            event = PaymentDeclined(order=order, reason=reason)
        case Returned(cents):
            event = PaymentReturned(order=order, cents=cents)
    placed = tx.execute("select placed_at from placed_order where id = :order", order=order)[0]["placed_at"]
    # A restored store asks the provider again and hears the same: what comes of it names the order as its cause (B5).
    tx.because_of_deadline(f"payment:{order}:{after}", datetime.fromtimestamp(placed / 1000, UTC))
    tx.emit(event)
    SAGAS.tell(tx, event)


def _due(tx: Transaction, now: int) -> list[Row]:
    return tx.execute(
        "select order_id, cents, status, attempts from payment"
        " where status in ('wanted', 'return-wanted') and next_at <= :now order by next_at, order_id limit :limit",
        now=now,
        limit=TOGETHER,
    )


def _put_off(tx: UnitOfWork, order: str, status: str, attempts: int) -> None:
    pause = min(0.5 * 2 ** min(attempts, 20), LONGEST_PAUSE)
    tx.execute(
        "update payment set attempts = attempts + 1, next_at = :next_at where order_id = :order and status = :status",
        order=order,
        status=status,
        next_at=_now() + int(pause * 1000),
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
