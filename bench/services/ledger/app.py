"""Handles readings one by one, as most handlers are written."""

from __future__ import annotations

from bench.services.metering import EFFECT, Metered, Plain, Sampled, Sized
from forebay import Message, Service, UnitOfWork

ledger = Service("ledger")


@ledger.on(Metered)
def enter(tx: UnitOfWork, event: Metered, message: Message) -> None:
    """Enter one reading."""
    tx.execute(EFFECT, node=message.node, number=event.number, cents=event.cents)


@ledger.on(Sampled)
def enter_sample(tx: UnitOfWork, event: Sampled, message: Message) -> None:
    """Enter one reading that came in a frame, or could have."""
    tx.execute(EFFECT, node=message.node, number=event.number, cents=event.cents)


@ledger.on(Plain)
def enter_plain(tx: UnitOfWork, event: Plain, message: Message) -> None:
    """Enter one reading of a frame that is not packed."""
    tx.execute(EFFECT, node=message.node, number=event.number, cents=event.cents)


@ledger.on(Sized)
def enter_sized(tx: UnitOfWork, event: Sized, message: Message) -> None:
    """Enter an event of any size."""
    tx.execute(EFFECT, node=message.node, number=event.n, cents=len(event.pad))
