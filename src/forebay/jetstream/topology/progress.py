"""How far a consumer is with each partition of a stream, as the broker knows it: a hint, for people (S5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from forebay.envelope import parse_time
from forebay.errors import TopologyError
from forebay.jetstream.topology.apply import Request, call, durables_of


class Progress(NamedTuple):
    """One partition of a consumer.

    Attributes:
        consumer, partition: whose it is.
        ack_floor: the stream sequence up to which everything is acknowledged; 0 before the first.
        unprocessed: messages of the partition that the broker has not delivered yet.
        lag_events: those, and the delivered ones that are not acknowledged.
        lag_seconds: the age of the oldest of them; 0 where there is none.
    """

    consumer: str
    partition: int
    ack_floor: int
    unprocessed: int
    lag_events: int
    lag_seconds: float


async def progress_of(request: Request, stream: str, consumer: str | None = None) -> list[Progress]:
    """Return how far consumers are, by name and partition.

    Raises:
        LinkError: there was no answer.
        TopologyError: the server answered with an error.
    """
    found = []
    for durable in await durables_of(request, stream):
        name, _, number = durable.rpartition("-")
        if number.isdecimal() and consumer in (None, name):
            info = await call(request, f"CONSUMER.INFO.{stream}.{durable}")
            floor, pending = info["ack_floor"]["stream_seq"], info["num_pending"]
            behind = pending + info["num_ack_pending"]
            age = await _age(request, stream, info["config"], floor) if behind else 0.0
            found.append(Progress(name, int(number), floor, pending, behind, age))
    return sorted(found)


async def _age(request: Request, stream: str, config: dict[str, Any], floor: int) -> float:
    """Return the age in seconds of the oldest message behind a place that a durable's filters let pass."""
    filters = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
    oldest: datetime | None = None
    for subject in filters:
        try:
            answer = await call(request, f"STREAM.MSG.GET.{stream}", {"seq": floor + 1, "next_by_subj": subject})
        except TopologyError:
            continue  # none behind it: it was processed meanwhile
        stored_at = parse_time(answer["message"]["time"])
        oldest = stored_at if oldest is None else min(oldest, stored_at)
    return 0.0 if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds())
