"""What every consumer of the harness does with an event: it writes down that it took effect, and adds to a total.

The table of effects has no constraint: an event that takes effect twice makes two rows, in the order of the effects.
The total is a second table that the same transaction changes, so that half of an effect shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from forebay import Message, UnitOfWork
from tests.faults.services.readings import Noticed, ReadingTaken, Sampled

Effect = ReadingTaken | Sampled | Noticed


def record(tx: UnitOfWork, events: Sequence[Effect], messages: Sequence[Message]) -> None:
    tx.executemany(
        "insert into effect (message_id, node, service, lane, meter, number, cause)"
        " values (:message_id, :node, :service, :lane, :meter, :number, :cause)",
        [
            {
                "message_id": str(message.place or message.message_id),
                "node": message.node,
                "service": message.service,
                "lane": message.lane or "",
                "meter": event.meter,
                "number": event.number,
                "cause": message.cause,
            }
            for event, message in zip(events, messages, strict=True)
        ],
    )
    tx.executemany(
        "insert into total (node, service, meter, effects, sum) values (:node, :service, :meter, 1, :number)"
        " on conflict do update set effects = effects + 1, sum = sum + excluded.sum",
        [
            {"node": message.node, "service": message.service, "meter": event.meter, "number": event.number}
            for event, message in zip(events, messages, strict=True)
        ],
    )
