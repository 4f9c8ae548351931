"""A consumer that emits: what it notices goes through an outbox of its own, on the node core, to the books.

Half of its notices are made at once, the others by a timer: whichever way, each has to be made once. The timer is set
by when the broker stored the reading: the reading's own time is the node's, and a node's clock may be ten years ahead.
"""

from __future__ import annotations

from datetime import timedelta

from forebay import Lane, Message, Service, UnitOfWork
from forebay.timers import Timer, set_timer
from tests.faults.services.effects import record
from tests.faults.services.readings import LATE_EVERY, NOTICE_EVERY, Noticed, ReadingTaken, Sampled

DELAY = timedelta(milliseconds=100)

audit = Service("audit", lanes=[Lane("ledger", budget="512MiB")])


@audit.on(ReadingTaken)
def take_reading(tx: UnitOfWork, event: ReadingTaken, message: Message) -> None:
    record(tx, [event], [message])
    if event.number % LATE_EVERY == 0:
        stored_at = message.stored_at or message.time
        set_timer(tx, "notice", event.meter, str(event.number), stored_at + DELAY)
    elif event.number % NOTICE_EVERY == 0:
        notice(tx, event.meter, event.number)


@audit.on(Sampled, batch=True)
def take_samples(tx: UnitOfWork, events: list[Sampled], messages: list[Message]) -> None:
    record(tx, events, messages)


@audit.on_timer("notice")
def notice_late(tx: UnitOfWork, timer: Timer) -> None:
    notice(tx, timer.instance, int(timer.name))


def notice(tx: UnitOfWork, meter: str, number: int) -> None:
    event = tx.emit(Noticed(meter=meter, number=number))
    tx.execute("insert into notice (number, event) values (:number, :event)", number=number, event=event)
