"""Click and collect as a saga: reserve at the store, take the payment, confirm; or undo what was done, in reverse."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

import msgspec

from contracts.orders import OrderCancelled, OrderConfirmed, OrderPlaced, PaymentDeclined, PaymentReturned, PaymentTaken
from contracts.stock import ReleaseStock, ReserveStock, StockRefused, StockReleased, StockReserved
from core.orders.stand_in import StandInSettings
from forebay.lanes import parse_seconds
from forebay.saga import Saga, Sagas, Step, compensates, moves, starts, times_out


class OrderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[orders]`` of ``forebay.toml``; durations are seconds, or as ``"10m"``.

    Attributes:
        answer_within: how long a store may take to answer before the order is given up.
        pay_within: how long the payment may take.
        keep_for: how long the store keeps the pieces.
        provider_timeout: how long one call of the provider may take before it is repeated.
        stand_in: how the payment provider's stand-in behaves.
    """

    answer_within: str | float = "10m"
    pay_within: str | float = "10m"
    keep_for: str | float = "48h"
    provider_timeout: str | float = "10s"
    stand_in: StandInSettings = StandInSettings()

    def __post_init__(self) -> None:
        for name in ("answer_within", "pay_within", "keep_for", "provider_timeout"):
            if parse_seconds(getattr(self, name), name) <= 0:
                raise ValueError(f"{name} is not above 0 seconds")

    def duration(self, name: str) -> timedelta:
        """Return one of the durations."""
        return timedelta(seconds=parse_seconds(getattr(self, name), f"[orders] {name}"))


class ClickAndCollect(Saga, saga="click-and-collect"):
    """One order on its way."""

    order: str
    store: str
    cents: int
    reserved: bool = False
    reason: str = ""

    @classmethod
    @starts(OrderPlaced)
    def placed(cls, step: Step, event: OrderPlaced) -> Self:
        """Ask the store to keep the pieces."""
        saga = cls(order=event.order, store=event.store, cents=event.cents)
        within = step.settings.duration("answer_within")
        step.undo(saga.cancel)
        step.undo(saga.release)
        until = step.now + step.settings.duration("keep_for")
        reserve = ReserveStock(order=event.order, lines=event.lines, until=until)
        step.send(reserve, to=event.store, expires=step.now + within)
        step.timeout("store", within)
        return saga

    @moves(StockReserved)
    def has_stock(self, step: Step, _: StockReserved) -> None:
        """Take the payment."""
        if self.reserved:
            return
        self.reserved = True
        step.clear("store")
        step.undo(self.refund)
        step.execute(
            "insert into payment (order_id, cents, status) values (:order, :cents, 'wanted')",
            order=self.order,
            cents=self.cents,
        )
        step.execute("update placed_order set status = 'reserved' where id = :order", order=self.order)
        step.timeout("payment", step.settings.duration("pay_within"))

    @moves(StockRefused)
    def has_no_stock(self, step: Step, _: StockRefused) -> None:
        """Give up: the store has too little."""
        self._give_up(step, "the store has too little of it")

    @times_out("store")
    def no_answer(self, step: Step) -> None:
        """Give up: the store has not answered in time."""
        self._give_up(step, "the store did not answer in time")

    @moves(PaymentTaken)
    def paid(self, step: Step, _: PaymentTaken) -> None:
        """Confirm."""
        step.execute("update placed_order set status = 'confirmed' where id = :order", order=self.order)
        step.emit(OrderConfirmed(order=self.order))
        step.complete()

    @moves(PaymentDeclined)
    def not_paid(self, step: Step, event: PaymentDeclined) -> None:
        """Give up: there is no money."""
        self._give_up(step, event.reason)

    @times_out("payment")
    def payment_too_late(self, step: Step) -> None:
        """Give up: the provider has not answered in time."""
        self._give_up(step, "the payment took too long")

    @compensates(until=PaymentReturned)
    def refund(self, step: Step) -> None:
        """Let the money go back, whatever became of the charge."""
        step.execute(
            "update payment set status = 'return-wanted', attempts = 0, next_at = 0 where order_id = :order",
            order=self.order,
        )

    @compensates(until=StockReleased)
    def release(self, step: Step) -> None:
        """Let the store keep nothing: it does this after it was asked to keep it, if it ever was."""
        step.send(ReleaseStock(order=self.order), to=self.store)

    @compensates()
    def cancel(self, step: Step) -> None:
        """Tell everybody: this is undone last."""
        step.execute("update placed_order set status = 'cancelled' where id = :order", order=self.order)
        step.emit(OrderCancelled(order=self.order, reason=self.reason))

    def _give_up(self, step: Step, reason: str) -> None:
        self.reason = reason
        step.execute(
            "update placed_order set status = 'cancelling', reason = :reason where id = :order",
            order=self.order,
            reason=reason,
        )
        step.compensate(reason)


SAGAS = Sagas(ClickAndCollect)
"""The sagas of the orders."""
