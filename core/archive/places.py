"""Where the events of an epoch are, and those of a node: narrow indexes that are written for many events at a time.

An index by place has a spot for each origin, and events come from many origins in turn: written with each transaction,
it cost nearly a page an event in the log and another in the database, the more the larger it was. So the newest events
(the *tail*) are in no such index: whoever looks for one goes through them, which takes a few milliseconds. Once they
are ``STEP``, they are indexed together, in the index's order, as numbers in place of names.

All of that is for SQLite. On PostgreSQL the table ``indexed`` is empty: there everything is the tail, which has the
indexes ``archived_place`` and ``archived_node``. So it is in an archive that was made with these two, until all of its
events are in the narrow ones (``catch_up``); then they go (``drop_wide``).

No index keeps a place from being archived twice: the inbox does, in the same transaction (B1).
"""

from __future__ import annotations

from typing import Any

from forebay import Transaction, UnitOfWork
from forebay.identity import Place
from forebay.transaction import Row

STEP = 16_384
"""Events that are indexed together: 40 ms or so, and a page for two dozen of them where 64 nodes send."""

BACKLOG = 4 * STEP
"""Events in no index from which on whoever keeps events leaves them to the upkeep."""

_TAIL = "a.id > :after and a.id <= :upto"

_INDEX = (
    f"""
    insert into origin (epoch, node, service)
    select distinct epoch, node, service from archived a where {_TAIL} and epoch is not null on conflict do nothing""",
    f"""
    insert into source (node, service, type)
    select distinct node, service, type from archived a where {_TAIL} on conflict do nothing""",
    f"""
    insert into place (origin, sequence, archived)
    select o.no, a.sequence, a.id from archived a
      join origin o on o.epoch = a.epoch and o.node = a.node and o.service = a.service
    where {_TAIL} order by o.no, a.sequence""",
    f"""
    insert into listed (source, archived)
    select s.no, a.id from archived a
      join source s on s.node = a.node and s.service = a.service and s.type = a.type
    where {_TAIL} order by s.no, a.id""",
)

_OF_PLACE = """
    select a.id, a.type, a.body from origin o
      join place p on p.origin = o.no and p.sequence = :sequence
      join archived a on a.id = p.archived
    where o.epoch = :epoch and o.node = :node and o.service = :service order by a.id limit 1"""

_OF_PLACE_IN_TAIL = """
    select id, type, body from archived
    where epoch = :epoch and sequence = :sequence and node = :node and service = :service and id > :upto
    order by id limit 1"""

_BETWEEN = """
    select a.* from origin o
      join place p on p.origin = o.no and p.sequence between :first and :last
      join archived a on a.id = p.archived
    where o.epoch = :epoch and o.node = :node and o.service = :service order by p.sequence limit :limit"""

_BETWEEN_IN_TAIL = """
    select * from archived
    where epoch = :epoch and sequence between :first and :last and node = :node and service = :service and id > :upto
    order by sequence limit :limit"""

_FORGET = (
    """
    delete from place where sequence = :sequence and archived = :id and origin =
      (select no from origin where epoch = :epoch and node = :node and service = :service)""",
    """
    delete from listed where archived = :id and source in
      (select no from source where node = :node and service = :service)""",
)


TABLES = ("origin", "source", "place", "listed", "indexed")
"""What follows from the events."""


def begin(tx: Transaction) -> None:
    """Begin with empty indexes; on SQLite alone."""
    tx.execute("insert into indexed (one, upto) values (1, 0) on conflict (one) do update set upto = 0")


def indexed_upto(tx: Transaction) -> int:
    """Return the id up to which all events are in the narrow indexes; 0 where there are none."""
    rows = tx.execute("select upto from indexed")
    return int(rows[0]["upto"]) if rows else 0


def tail(tx: Transaction) -> int:
    """Return how many ids the tail has, at most; 0 on PostgreSQL, where nothing is to be indexed."""
    rows = tx.execute("select (select max(id) from archived) - upto as waiting from indexed")
    return max(0, int(rows[0]["waiting"] or 0)) if rows else 0


def keep_up(tx: UnitOfWork) -> None:
    """Index the tail once it is long; one that is very long is left to the upkeep."""
    if STEP <= tail(tx) < BACKLOG:
        catch_up(tx, BACKLOG)


def catch_up(tx: Transaction, most: int = STEP) -> int:
    """Index the next events, of at most so many ids; return how many the tail has then."""
    waiting = tail(tx)
    if not waiting:
        return 0
    after = max(indexed_upto(tx), int(tx.execute("select min(id) as first from archived")[0]["first"]) - 1)
    upto = min(after + most, indexed_upto(tx) + waiting)
    for statement in _INDEX:
        tx.execute(statement, after=after, upto=upto)
    tx.execute("update indexed set upto = :upto", upto=upto)
    return tail(tx)


def has_wide(tx: Transaction) -> bool:
    """Whether the indexes are there that the narrow ones replace; only for SQLite."""
    return bool(tx.execute("select 1 from sqlite_master where name in ('archived_place', 'archived_node')"))


def drop_wide(tx: UnitOfWork) -> bool:
    """Drop the indexes that the narrow ones replace; not while much is in them alone. Return whether that was done."""
    if tail(tx) >= BACKLOG:
        return False
    for name in ("archived_place", "archived_node"):
        tx.execute(f"drop index if exists {name}")
    return True


def archived_at(tx: UnitOfWork, node: str, service: str, place: Place) -> Row | None:
    """Return id, type and body of what is archived at a place; the tail is indexed for it, as many are asked for."""
    if tail(tx) < BACKLOG:
        catch_up(tx, BACKLOG)
    key = {"epoch": place.epoch, "sequence": place.sequence, "node": node, "service": service}
    upto = indexed_upto(tx)
    found = tx.execute(_OF_PLACE, **key) if upto else []
    found = found or tx.execute(_OF_PLACE_IN_TAIL, **key, upto=upto)
    return found[0] if found else None


def between(tx: Transaction, *, first: int, last: int, limit: int, **epoch: str) -> list[Row]:
    """Return the events of an ``epoch`` of a ``node``'s ``service``, a range of it, at most ``limit``, ascending."""
    question: dict[str, Any] = {**epoch, "first": first, "last": last, "limit": limit}
    upto = indexed_upto(tx)
    found = tx.execute(_BETWEEN, **question) if upto else []
    if found and found[-1]["sequence"] == min(last, first + limit - 1) == first + len(found) - 1:
        return found  # nothing is left that the tail could have
    late = tx.execute(_BETWEEN_IN_TAIL, **question, upto=upto)
    if not late:
        return found
    return sorted([*found, *late], key=lambda row: int(row["sequence"]))[:limit]


def ids_of_place(tx: Transaction, epoch: str, sequence: int, after: int, upto: int) -> list[int]:
    """Return where the indexes have a place of an epoch, whoever's, in order, above ``after`` and up to ``upto``."""
    rows = tx.execute(
        "select p.archived as id from origin o join place p on p.origin = o.no and p.sequence = :sequence"
        " where o.epoch = :epoch and p.archived > :after and p.archived <= :upto order by p.archived",
        epoch=epoch,
        sequence=sequence,
        after=after,
        upto=upto,
    )
    return [row["id"] for row in rows]


def ids_of_node(
    tx: Transaction, node: str, service: str | None, type_: str | None, after: int, upto: int, limit: int
) -> list[int]:
    """Return where the indexes have a node's first events above ``after`` and up to ``upto``, in order."""
    wanted = {name: value for name, value in (("service", service), ("type", type_)) if value is not None}
    where = " and ".join(["node = :node", *(f"{name} = :{name}" for name in wanted)])
    found: list[int] = []
    for source in tx.execute(f"select no from source where {where}", node=node, **wanted):
        rows = tx.execute(
            "select archived as id from listed where source = :source and archived > :after and archived <= :upto"
            " order by archived limit :limit",
            source=source["no"],
            after=after,
            upto=upto,
            limit=limit,
        )
        found += [row["id"] for row in rows]
    return sorted(found)[:limit]


def forget(tx: UnitOfWork, events: list[dict[str, Any]]) -> None:
    """Take deleted events out of the indexes: their ``id``, ``node``, ``service``, ``epoch`` and ``sequence``."""
    if indexed_upto(tx):
        for statement in _FORGET:
            tx.executemany(statement, events)
