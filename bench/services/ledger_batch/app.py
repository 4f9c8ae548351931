"""Handles readings as they come in a transaction, in one statement."""

from __future__ import annotations

from bench.services.metering import EFFECT, Metered
from forebay import Message, Service, UnitOfWork

ledger = Service("ledger-batch")


@ledger.on(Metered, batch=True)
def enter(tx: UnitOfWork, events: list[Metered], messages: list[Message]) -> None:
    """Enter many readings."""
    tx.executemany(
        EFFECT,
        [
            {"node": message.node, "number": event.number, "cents": event.cents}
            for event, message in zip(events, messages, strict=True)
        ],
    )
