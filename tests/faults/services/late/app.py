"""A consumer that is added while the others have long been at work."""

from __future__ import annotations

from forebay import Message, Service, UnitOfWork
from tests.faults.services.effects import record
from tests.faults.services.readings import ReadingTaken, Sampled

late = Service("late")


@late.on(ReadingTaken)
def take_reading(tx: UnitOfWork, event: ReadingTaken, message: Message) -> None:
    record(tx, [event], [message])


@late.on(Sampled)
def take_sample(tx: UnitOfWork, event: Sampled, message: Message) -> None:
    record(tx, [event], [message])
