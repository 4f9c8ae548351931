"""Handles readings one by one, as most handlers are written."""

from __future__ import annotations

from bench.services.metering import EFFECT, Metered
from forebay import Message, Service, UnitOfWork

ledger = Service("ledger")


@ledger.on(Metered)
def enter(tx: UnitOfWork, event: Metered, message: Message) -> None:
    """Enter one reading."""
    tx.execute(EFFECT, node=message.node, number=event.number, cents=event.cents)
