"""The lanes of a database, with the books of each consumer, as ``forebay outbox ls`` lists them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from forebay.cli.databases import Found

_LANES = """
    select o.id, o.lane, o.destination, o.written, o.confirmed as freed, o.dropped,
      (select count(*) from forebay_withheld w join forebay_epoch e on e.id = w.epoch
       where e.origin = o.id) as withheld,
      (select count(*) from forebay_outbox r join forebay_epoch e on e.id = r.epoch where e.origin = o.id) as on_disk,
      o.bytes,
      (select e.epoch || '-' || e.last from forebay_epoch e where e.origin = o.id order by e.id desc limit 1) as last
    from forebay_origin o order by o.destination, o.id"""

_BOOKS = """
    select consumer, confirmed, pending, missed, dropped, withheld, as_of
    from forebay_book where origin = :origin order by consumer"""


def lanes(found: Found) -> list[dict[str, Any]]:
    """Return the lanes of a database: what was written and became of it, and the last books of each consumer.

    The commands of a lane are listed apart, for each destination.
    """
    listed = found.rows(_LANES)
    for lane in listed:
        lane["consumers"] = [
            {**row, "as_of": datetime.fromtimestamp(row["as_of"] / 1000, UTC).isoformat(timespec="seconds")}
            for row in found.rows(_BOOKS, origin=lane.pop("id"))
        ]
    return listed


def in_one_line(lane: dict[str, Any]) -> dict[str, Any]:
    """Return a lane as a row of a table: of each consumer what is not confirmed."""
    books = [
        " ".join([row["consumer"], *(f"{row[state]} {state}" for state in _OPEN if row[state])])
        for row in lane["consumers"]
    ]
    return {**lane, "consumers": ", ".join(books)}


_OPEN = ("pending", "missed", "dropped", "withheld")
