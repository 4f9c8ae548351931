"""What is read from the archive: pages of the listing, and the events with one message id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from core.archive import places
from core.archive.event import ArchivedEvent, from_row, to_delivery
from core.archive.places import ids_of_node, ids_of_place, indexed_upto
from forebay import Transaction
from forebay.delivery import Delivery, Scanned
from forebay.errors import HeaderError
from forebay.identity import MessageId, parse_message_id
from forebay.protocol.archive import ArchiveQuestion, ScanQuestion

PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of the bodies of one page, at most, or one event: a thousand of the largest would be 256 MiB."""

CANDIDATES = 100
"""Events with one message id that are looked at, at most."""

_LAST = (1 << 63) - 1
"""A position behind all others."""

_AMONG = "id in (select cast(k.key as bigint) from json_each(:ids) k)"
"""Ids as the names of a JSON object, which either store takes apart: written into the statement they made one of their
own of each page, and what each is prepared to stays in memory."""

_EVENTS = f"select * from archived where {_AMONG} order by id"


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to find; None finds all."""

    node: str | None = None
    service: str | None = None
    type: str | None = None
    message_id: str | None = None


class Page(msgspec.Struct, frozen=True):
    """Events in the order in which they were archived; ``next`` is the ``after`` of the next page, if there is one."""

    events: list[ArchivedEvent]
    next: str | None


def latest(tx: Transaction) -> int:
    """Return the position of the latest event; 0 for none. A walk ends where it is settled (``forebay.settled``)."""
    (row,) = tx.execute("select max(id) as latest from archived")
    return int(row["latest"] or 0)


def page(tx: Transaction, wanted: Filter, after: int, limit: int, upto: int) -> Page:
    """Return up to ``limit`` events archived after the cursor ``after`` (0: from the first), up to ``upto``."""
    # The ids come from an index alone, and SQLite knows the length of a body without reading it: a page of large bodies
    # is cut before it is in memory.
    found = tx.execute(
        f"select id, length(body) as bytes from archived where {_AMONG} order by id",
        ids=_json(ids_of(tx, wanted, after, upto, limit + 1)),
    )
    count = size = 0
    for row in found[:limit]:
        size += row["bytes"]
        if count and size > PAGE_BYTES:
            break
        count += 1
    rows = tx.execute(_EVENTS, ids=_json(row["id"] for row in found[:count]))
    return Page([from_row(row) for row in rows], str(rows[-1]["id"]) if len(found) > count else None)


def _json(ids: Iterable[int]) -> str:
    return msgspec.json.encode(dict.fromkeys(ids, 0)).decode()


def ids_of(tx: Transaction, wanted: Filter, after: int, upto: int, limit: int) -> list[int]:
    """Return the ids of the first ``limit`` events that are wanted above ``after`` and up to ``upto``, in order."""
    found: list[int] = []
    message_id = _message_id(wanted.message_id)
    by_node = wanted.node if wanted.message_id is None else None
    if (message_id is not None or by_node is not None) and (indexed := min(upto, indexed_upto(tx))) > after:
        if by_node is not None:
            found = ids_of_node(tx, by_node, wanted.service, wanted.type, after, indexed, limit)
        elif message_id is not None:
            found = ids_of_place(tx, message_id.epoch, message_id.first, after, indexed)
            found = _narrowed(tx, found, wanted)[:limit]
        after = indexed
    if len(found) < limit and after < upto:
        where, params = condition_of(wanted)
        rows = tx.execute(ids_where(where), after=after, upto=upto, limit=limit - len(found), **params)
        found += [row["id"] for row in rows]
    return found


def _narrowed(tx: Transaction, ids: list[int], wanted: Filter) -> list[int]:
    """Return the ids of those events that are of the node, the service and the type that are wanted."""
    where, params = condition_of(msgspec.structs.replace(wanted, message_id=None))
    rows = tx.execute(f"select id from archived where {_AMONG} and {where} order by id", ids=_json(ids), **params)
    return [row["id"] for row in rows]


def one_each(tx: Transaction, wanted: Filter) -> list[ArchivedEvent]:
    """Return the events with a message id, one per node and service: the first, where a foreign id was used again."""
    if _message_id(wanted.message_id) is not None:  # two of one producer cannot be
        ids = _json(ids_of(tx, wanted, 0, _LAST, CANDIDATES))
        return [from_row(row) for row in tx.execute(_EVENTS, ids=ids)]
    where, params = condition_of(wanted)
    rows = tx.execute(
        f"select * from archived where id in (select min(id) from archived where {where} group by node, service)"
        " order by id limit :limit",
        limit=CANDIDATES,
        **params,
    )
    return [from_row(row) for row in rows]


def between(tx: Transaction, question: ArchiveQuestion) -> list[tuple[int, Delivery]]:
    """Return the events of a range of an epoch, ascending, each with its sequence."""
    rows = places.between(
        tx,
        epoch=question.epoch,
        first=question.first,
        last=question.last,
        node=question.node,
        service=question.service,
        limit=question.limit,
    )
    return [(row["sequence"], to_delivery(row)) for row in rows]


def scan(tx: Transaction, question: ScanQuestion, max_bytes: int, end: int) -> Scanned:
    """Return a page in the order of archiving up to ``end``, with bodies of at most ``max_bytes``, or one event."""
    found: list[tuple[int, int]] = []
    for where, params in _of_services(question.services):
        found += [
            (row["id"], row["bytes"])
            for row in tx.execute(
                f"select id, length(body) as bytes from archived where {where} and id > :after"
                " and id <= :end order by id limit :limit",
                after=question.after,
                end=end,
                limit=question.limit,
                **params,
            )
        ]
    count = size = 0
    for _, length in sorted(found)[: question.limit]:
        size += length
        if count and size > max_bytes:
            break
        count += 1
    if not count:
        return Scanned([], max(end, question.after), end, more=False)
    last = sorted(found)[count - 1][0]
    events: list[tuple[int, Delivery]] = []
    for where, params in _of_services(question.services):
        rows = tx.execute(
            f"select * from archived where {where} and id > :after and id <= :last",
            after=question.after,
            last=last,
            **params,
        )
        events += [(row["id"], to_delivery(row)) for row in rows]
    # What is not of these services and stands behind the last of them is looked at with the next question.
    return Scanned(sorted(events, key=lambda each: each[0]), last, end, more=last < end)


def _of_services(services: list[str]) -> list[tuple[str, dict[str, str]]]:
    """Return a condition for each service: each is answered from the index, in order, whatever else there is."""
    if "*" in services:
        return [("1 = 1", {})]
    return [("service = :service", {"service": service}) for service in sorted(set(services))]


def ids_where(condition: str) -> str:
    """Return the statement that finds the ids of one page."""
    return f"select id from archived where id > :after and id <= :upto and {condition} order by id limit :limit"


def condition_of(wanted: Filter) -> tuple[str, dict[str, Any]]:
    """Return the condition on the table's columns that selects what is wanted, and its parameters."""
    params = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    message_id = params.pop("message_id", None)
    if message_id is None:
        return " and ".join(f"{name} = :{name}" for name in params) or "1 = 1", params
    # A message id has one event, or few: the expressions keep the planner from another index.
    terms = [f"{name} || '' = :{name}" for name in params]
    term, place = _place(message_id)
    return " and ".join([term, *terms]), {**params, **place}


def _message_id(text: str | None) -> MessageId | None:
    """Return the epoch and sequence that an id has; None for a foreign one, and one that cannot be."""
    try:
        return parse_message_id(text) if text is not None else None
    except HeaderError:
        return None


def _place(text: str) -> tuple[str, dict[str, Any]]:
    try:
        message_id = parse_message_id(text)  # the random suffix of a retransmission may be there or not
    except HeaderError:
        return "1 = 0", {}
    if message_id is None:
        return "foreign_id = :foreign_id", {"foreign_id": text}
    return "epoch = :epoch and sequence = :sequence", {"epoch": message_id.epoch, "sequence": message_id.first}
