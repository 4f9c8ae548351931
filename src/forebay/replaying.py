"""The tables beside: a read model that is built anew, and how far it is, in the same transactions (rule F3)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from forebay.crash_points import reach
from forebay.delivery import Delivery
from forebay.errors import StoreError
from forebay.handlers import Handlers
from forebay.identity import Origin
from forebay.intake import Intake
from forebay.projection import Effects
from forebay.protocol.rebuilding import EpochWork, Plan
from forebay.sequences import Range
from forebay.taken import Taken
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork

_ranges = msgspec.json.Decoder(list[Range])

_BEGIN = """
    insert into forebay_rebuild_progress (one, id, version, archive, position, archive_end, replayed, skipped, planned,
      seen_before, started_at, changed_at)
    values (1, :id, :version, :archive, 0, :archive_end, 0, 0, 0, :seen_before, :now, :now)"""

_SAVE = """
    update forebay_rebuild_progress set position = :position, archive_end = :archive_end,
      replayed = replayed + :replayed, skipped = skipped + :skipped, changed_at = :now
    where replayed = :before returning 1 as saved"""

_SAVE_EPOCH = """
    insert into forebay_rebuild_epoch (node, service, lane, epoch, prev, todo, done)
    values (:node, :service, :lane, :epoch, :prev, :todo, :done)
    on conflict (node, service, epoch) do update set todo = excluded.todo, done = excluded.done"""


class Progress(NamedTuple):
    """How far the tables beside are; see the table ``forebay_rebuild_progress``."""

    id: str
    version: int
    archive: str
    position: int
    archive_end: int
    replayed: int
    planned: bool
    seen_before: int
    started_at: int


class Step(msgspec.Struct, kw_only=True):
    """What one transaction replays, and how far the reading is after it.

    Attributes:
        deliveries: what is replayed, in order.
        before: how many events were replayed before.
        position: of the archive, behind what was looked at.
        end: of the archive.
        later: positions of foreign events that had no effect yet.
        came: of those, the positions that are no longer to be looked at.
    """

    deliveries: list[Delivery]
    before: int
    position: int
    end: int
    later: list[int] = []
    came: list[int] = []


def progress(tx: Transaction) -> Progress | None:
    """Return how far the tables beside are; None where nothing was begun."""
    rows = tx.execute("select * from forebay_rebuild_progress")
    if not rows:
        return None
    values = {name: rows[0][name] for name in Progress._fields}
    return Progress(**{**values, "planned": bool(values["planned"])})


def begin(tx: Transaction, id: str, version: int, archive: str, end: int, seen_before: int) -> None:  # noqa: A002
    """Begin with empty tables."""
    tx.execute(_BEGIN, id=id, version=version, archive=archive, archive_end=end, seen_before=seen_before, now=_now())


def load(tx: Transaction) -> Plan:
    """Return what is done and what is left."""
    return Plan(
        EpochWork(
            Origin(row["node"], row["service"], row["lane"]),
            row["epoch"],
            row["prev"],
            _ranges.decode(row["todo"]),
            _ranges.decode(row["done"]),
        )
        for row in tx.execute("select * from forebay_rebuild_epoch")
    )


def plan(tx: Transaction, had_effect: Iterable[Effects]) -> Plan:
    """Fix the places of a pass, and return what is left of them; once that is committed it is ``saved``."""
    planned = load(tx)
    for each in had_effect:
        planned.set(each.origin, each.epoch, each.prev, each.places)
    _save_epochs(tx, planned)
    tx.execute("update forebay_rebuild_progress set planned = 1")
    return planned


def passed(tx: Transaction) -> None:
    """End a pass: the next one begins with other places."""
    tx.execute("update forebay_rebuild_progress set planned = 0")


def later(tx: Transaction) -> list[int]:
    """Return the archive's positions of foreign events that had no effect when they were met."""
    return [row["position"] for row in tx.execute("select position from forebay_rebuild_later order by position")]


def replay(work: UnitOfWork, handlers: Handlers, step: Step, planned: Plan, one_by_one: bool) -> Taken:
    """Replay events and note how far it is; raises as ``Intake.replay``.

    ``planned`` has them as done already, and is ``saved`` once this is committed; where this is undone it has to be
    loaded again.
    """
    intake = Intake(work, handlers, one_by_one=one_by_one)
    for index, delivery in enumerate(step.deliveries):
        intake.replay(index, delivery)
    taken = intake.finish()
    _save_epochs(work, planned)
    work.executemany("insert into forebay_rebuild_later (position) values (:at)", [{"at": at} for at in step.later])
    work.executemany("delete from forebay_rebuild_later where position = :at", [{"at": at} for at in step.came])
    saved = work.execute(
        _SAVE,
        before=step.before,
        position=step.position,
        archive_end=step.end,
        replayed=len(step.deliveries),
        skipped=taken.skipped + taken.duplicates,
        now=_now(),
    )
    if not saved:
        raise StoreError("another process has gone on with this rebuild")
    reach("rebuild.applied")
    return taken


def _save_epochs(tx: Transaction, planned: Plan) -> None:
    changed: Sequence[EpochWork] = planned.changed()
    tx.executemany(
        _SAVE_EPOCH,
        [
            {
                "node": each.origin.node,
                "service": each.origin.service,
                "lane": each.origin.lane,
                "epoch": each.epoch,
                "prev": each.prev,
                "todo": msgspec.json.encode(each.todo).decode(),
                "done": msgspec.json.encode(each.done).decode(),
            }
            for each in changed
        ],
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
