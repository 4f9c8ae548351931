"""Read models with a version: which one the tables hold, and the rebuild that was asked for (rule F3).

A service whose tables follow from events alone may declare a version, ``Service("sales", projection=2)``, and raise it
when its handlers make other tables of the same events. The tables in use keep the version that they were built with
until a rebuild has replaced their rows.

Example:
    >>> from forebay import Transaction
    >>> from forebay.projection import version_in_use
    >>> def is_built(tx: Transaction) -> bool:
    ...     return version_in_use(tx) >= 2
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from forebay.identity import Origin
from forebay.parking import FOREIGN_LANE
from forebay.sequences import Range, without
from forebay.transaction import Transaction

RUNNING, FAILED, LACKING = "running", "failed", "lacking"

_ranges = msgspec.json.Decoder(list[Range])

_USE = """
    insert into forebay_projection (one, version, declared, built_at) values (1, :version, :declared, :now)
    on conflict (one) do update set version = excluded.version, declared = excluded.declared"""

_ASK = """
    insert into forebay_rebuild (one, id, accept_lacking, state, said, asked_at)
    values (1, :id, :accept_lacking, 'running', '', :now)
    on conflict (one) do update set accept_lacking = excluded.accept_lacking, state = 'running', said = ''"""


class InUse(NamedTuple):
    """The version that the tables hold, and the one that the release declares."""

    version: int
    declared: int


class Rebuild(NamedTuple):
    """A rebuild that was asked for: ``state`` is ``RUNNING``, ``FAILED`` or ``LACKING``."""

    id: str
    accept_lacking: bool
    state: str
    said: str


class Lacking(NamedTuple):
    """Places of an epoch, both ends included, whose events had an effect and are not in the archive."""

    origin: Origin
    epoch: str
    first: int
    last: int


class Effects(NamedTuple):
    """The places of an epoch whose events had an effect, or would have had with other handlers."""

    origin: Origin
    epoch: str
    prev: str
    places: list[Range]


def declare(tx: Transaction, version: int) -> InUse:
    """Take note of the version that this release declares; return it with the one in use.

    A store that has read nothing yet is of the declared version. An older release keeps up its own tables alone, so
    that under it the version in use is the older one, and stays it when the newer release is back.
    """
    rows = tx.execute("select version from forebay_projection")
    if rows:
        version_now = min(rows[0]["version"], version)
    else:
        read = tx.execute("select 1 from forebay_position union all select 1 from forebay_inbox limit 1")
        version_now = 1 if read else version
    tx.execute(_USE, version=version_now, declared=version, now=_now())
    return InUse(version_now, version)


def version_in_use(tx: Transaction) -> int:
    """Return the version of the read model that the tables hold; 0 where none was ever declared."""
    rows = tx.execute("select version from forebay_projection")
    return int(rows[0]["version"]) if rows else 0


def ask(tx: Transaction, *, accept_lacking: bool) -> str:
    """Ask for a rebuild, or for one that stands to go on; return what becomes of it, in a sentence."""
    if not version_in_use(tx):
        return 'this service declares no version of a read model: Service("…", projection=1) does'
    known = asked(tx)
    if known is not None and known.state == RUNNING:
        return "a rebuild is under way already: `forebay projection ls` shows it, `forebay projection stop` ends it"
    tx.execute(_ASK, id=uuid.uuid4().hex, accept_lacking=int(accept_lacking), now=_now())
    return "the rebuild goes on" if known else "the rebuild begins"


def stop(tx: Transaction) -> str:
    """Give a rebuild up; return what was done, in a sentence."""
    if not tx.execute("delete from forebay_rebuild returning id"):
        return "no rebuild is under way"
    return "the rebuild is given up: the tables in use stay as they are"


def asked(tx: Transaction) -> Rebuild | None:
    """Return the rebuild that was asked for, or None."""
    rows = tx.execute("select id, accept_lacking, state, said from forebay_rebuild")
    if not rows:
        return None
    row = rows[0]
    return Rebuild(row["id"], bool(row["accept_lacking"]), row["state"], row["said"])


def stand(tx: Transaction, rebuild: Rebuild, state: str, said: str, lacking: Iterable[Lacking] = ()) -> None:
    """Note why a rebuild stands, until it is asked for again."""
    tx.execute(
        "update forebay_rebuild set state = :state, said = :said where id = :id", id=rebuild.id, state=state, said=said
    )
    _record_lacking(tx, lacking)


def advance(tx: Transaction, rebuild: Rebuild, replayed: int, position: int, end: int, began_at: int) -> None:
    """Note how far a rebuild is, for people; ``began_at`` is milliseconds since 1970."""
    tx.execute(
        "update forebay_rebuild set replayed = :replayed, position = :position, archive_end = :end,"
        " began_at = :began_at where id = :id",
        replayed=replayed,
        position=position,
        end=end,
        began_at=began_at,
        id=rebuild.id,
    )


def finish(tx: Transaction, rebuild: Rebuild, version: int, replayed: int, lacking: Iterable[Lacking]) -> bool:
    """Note that the tables hold what a rebuild made; False where it was given up meanwhile."""
    if not tx.execute("delete from forebay_rebuild where id = :id returning id", id=rebuild.id):
        return False
    tx.execute(
        "update forebay_projection set version = :version, built_at = :now, replayed = :replayed, rebuild = :id",
        version=version,
        replayed=replayed,
        id=rebuild.id,
        now=_now(),
    )
    _record_lacking(tx, lacking)
    return True


def _record_lacking(tx: Transaction, lacking: Iterable[Lacking]) -> None:
    tx.execute("delete from forebay_rebuild_lacking")
    tx.executemany(
        "insert into forebay_rebuild_lacking (node, service, lane, epoch, first, last)"
        " values (:node, :service, :lane, :epoch, :first, :last)",
        [
            {
                "node": each.origin.node,
                "service": each.origin.service,
                "lane": each.origin.lane,
                "epoch": each.epoch,
                "first": each.first,
                "last": each.last,
            }
            for each in lacking
        ],
    )


def effects(tx: Transaction) -> list[Effects]:
    """Return what a consumer has passed with effect: not what is missing, wanted, parked or discarded (F3)."""
    aside: dict[tuple[str, str, str, str], list[Range]] = {}
    for row in tx.execute(
        "select node, service, lane, epoch, sequence from forebay_parked"
        " where epoch is not null and reason <> :stranger",
        stranger=FOREIGN_LANE,  # its place in the epoch is another event's
    ):
        key = row["node"], row["service"], row["lane"], row["epoch"]
        aside.setdefault(key, []).append((row["sequence"], row["sequence"]))
    found = []
    for row in tx.execute(
        "select node, service, lane, epoch, prev, watermark, missing, wanted from forebay_inbox where watermark > 0"
    ):
        origin = Origin(row["node"], row["service"], row["lane"])
        without_effect = aside.get((*origin[:3], row["epoch"]), [])
        for column in ("missing", "wanted"):
            if row[column] != "[]":
                without_effect = [*without_effect, *_ranges.decode(row[column])]
        places = [(1, row["watermark"])]
        found.append(
            Effects(origin, row["epoch"], row["prev"], without(places, without_effect) if without_effect else places)
        )
    return found


def had_effect(tx: Transaction, node: str, service: str, message_id: str, *, seen: bool) -> bool:
    """Whether a foreign producer's event had an effect here (I7).

    Args:
        tx: the consumer's store.
        node: its node.
        service: its service.
        message_id: its id.
        seen: whether it is known to have been met, because it is older than what the inbox has read.
    """
    key = {"node": node, "service": service, "message_id": message_id}
    where = "node = :node and service = :service and message_id = :message_id"
    if not seen and not tx.execute(f"select 1 from forebay_foreign where {where}", **key):
        return False
    return not tx.execute(f"select 1 from forebay_parked where {where} and epoch is null", **key)


def _now() -> int:
    return time.time_ns() // 1_000_000
