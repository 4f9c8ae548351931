"""A consumer of everything: readings one by one, samples in batches, and the notices that the audit emits."""

from __future__ import annotations

from forebay import Message, Service, UnitOfWork
from tests.faults.services.effects import record
from tests.faults.services.readings import Noticed, ReadingTaken, Sampled

books = Service("books")


@books.on(ReadingTaken)
def take_reading(tx: UnitOfWork, event: ReadingTaken, message: Message) -> None:
    record(tx, [event], [message])


@books.on(Sampled, batch=True)
def take_samples(tx: UnitOfWork, events: list[Sampled], messages: list[Message]) -> None:
    record(tx, events, messages)


@books.on(Noticed)
def take_notice(tx: UnitOfWork, event: Noticed, message: Message) -> None:
    record(tx, [event], [message])
