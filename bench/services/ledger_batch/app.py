"""Handles readings as they come in a transaction, in one statement."""

from __future__ import annotations

from collections.abc import Sequence

from bench.services.metering import EFFECT, Metered, Sampled
from forebay import Message, Service, UnitOfWork

ledger = Service("ledger-batch")


@ledger.on(Metered, batch=True)
def enter(tx: UnitOfWork, events: list[Metered], messages: list[Message]) -> None:
    """Enter many readings."""
    _enter(tx, events, messages)


@ledger.on(Sampled, batch=True)
def enter_samples(tx: UnitOfWork, events: list[Sampled], messages: list[Message]) -> None:
    """Enter many readings that came in frames, or could have."""
    _enter(tx, events, messages)


def _enter(tx: UnitOfWork, events: Sequence[Metered | Sampled], messages: list[Message]) -> None:
    tx.executemany(
        EFFECT,
        [
            {"node": message.node, "number": event.number, "cents": event.cents}
            for event, message in zip(events, messages, strict=True)
        ],
    )
