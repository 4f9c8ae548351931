"""A consumer that emits: what it notices goes through an outbox of its own, on the node core, to the books."""

from __future__ import annotations

from forebay import Lane, Message, Service, UnitOfWork
from tests.faults.services.effects import record
from tests.faults.services.readings import NOTICE_EVERY, Noticed, ReadingTaken, Sampled

audit = Service("audit", lanes=[Lane("ledger", budget="512MiB")])


@audit.on(ReadingTaken)
def take_reading(tx: UnitOfWork, event: ReadingTaken, message: Message) -> None:
    record(tx, [event], [message])
    if event.number % NOTICE_EVERY == 0:
        notice = tx.emit(Noticed(meter=event.meter, number=event.number))
        tx.execute("insert into notice (number, event) values (:number, :event)", number=event.number, event=notice)


@audit.on(Sampled, batch=True)
def take_samples(tx: UnitOfWork, events: list[Sampled], messages: list[Message]) -> None:
    record(tx, events, messages)
