"""What an outbox holds, as messages: the product reads it as rows, in the runs that these are made of."""

from forebay.envelope import Message
from forebay.identity import Place
from forebay.outbox import Outbox
from forebay.transaction import Transaction


def messages_after(
    tx: Transaction,
    outbox: Outbox,
    lane: str,
    place: Place | None,
    *,
    limit: int,
    max_bytes: int,
    destination: str = "",
) -> list[Message]:
    """Return an origin's events after a place (None: from the oldest), in order, at least one if there is one."""
    runs = outbox.runs_after(tx, lane, place, limit=limit, max_bytes=max_bytes, destination=destination)
    return [outbox.message(lane, run, row, destination) for run in runs for row in run.rows]
