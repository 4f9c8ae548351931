"""The instances of sagas as rows: how each stands, and its story, step by step."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Literal

import msgspec

from forebay.transaction import Row, Transaction

Status = Literal["running", "done", "compensating", "compensated"]
"""How an instance stands; ``done`` and ``compensated`` are its two ends."""

_COLUMNS = "saga, instance, status, state, undo, awaiting, steps, started_at, changed_at"

_SAVE = f"""
    insert into forebay_saga ({_COLUMNS})
    values (:saga, :instance, :status, :state, :undo, :awaiting, :steps, :started_at, :changed_at)
    on conflict (saga, instance) do update set
      status = excluded.status, state = excluded.state, undo = excluded.undo, awaiting = excluded.awaiting,
      steps = excluded.steps, changed_at = excluded.changed_at"""

_TELL = """
    insert into forebay_saga_step (saga, instance, number, step, moved_by, did, status, at)
    values (:saga, :instance, :number, :step, :moved_by, :did, :status, :at)"""


class Awaiting(msgspec.Struct, frozen=True):
    """A compensation whose end is waited for, and the commands that it sent."""

    compensation: str
    commands: list[str] = []


class Instance(msgspec.Struct, kw_only=True):
    """One instance as it is kept.

    Attributes:
        state: the saga's fields, as JSON.
        undo: the compensations that are still to run, by name, the latest step's last.
        awaiting: the one that has run and is not over.
        steps: how many there were; the story has one row for each.
        started_at, changed_at: milliseconds since 1970.
    """

    saga: str
    instance: str
    status: Status = "running"
    state: bytes = b"{}"
    undo: list[str] = []
    awaiting: Awaiting | None = None
    steps: int = 0
    started_at: int = 0
    changed_at: int = 0


class Told(msgspec.Struct, frozen=True):
    """One step of a story: what moved it, what it did in sentences, and how the saga stood afterwards."""

    number: int
    step: str
    moved_by: str
    did: list[str]
    status: Status
    at: datetime


def load(tx: Transaction, saga: str, instance: str) -> Instance | None:
    """Return an instance, or None where it never began."""
    rows = tx.execute(
        f"select {_COLUMNS} from forebay_saga where saga = :saga and instance = :instance", saga=saga, instance=instance
    )
    return _instance(rows[0]) if rows else None


def save(tx: Transaction, known: Instance, step: str, moved_by: str, did: list[str]) -> None:
    """Write an instance back, with one more step of its story."""
    now = time.time_ns() // 1_000_000
    known.steps += 1
    known.started_at = known.started_at or now
    known.changed_at = now
    tx.execute(
        _SAVE,
        saga=known.saga,
        instance=known.instance,
        status=known.status,
        state=known.state.decode(),
        undo=msgspec.json.encode(known.undo).decode(),
        awaiting=msgspec.json.encode(known.awaiting).decode() if known.awaiting else None,
        steps=known.steps,
        started_at=known.started_at,
        changed_at=known.changed_at,
    )
    tx.execute(
        _TELL,
        saga=known.saga,
        instance=known.instance,
        number=known.steps,
        step=step,
        moved_by=moved_by,
        did=msgspec.json.encode(did).decode(),
        status=known.status,
        at=now,
    )


def listed(
    tx: Transaction, *, saga: str | None = None, status: Status | None = None, limit: int = 100
) -> list[Instance]:
    """Return instances, those that changed last first."""
    where = [f"{name} = :{name}" for name, value in (("saga", saga), ("status", status)) if value is not None]
    params = {name: value for name, value in (("saga", saga), ("status", status)) if value is not None}
    clause = f" where {' and '.join(where)}" if where else ""
    rows = tx.execute(
        f"select {_COLUMNS} from forebay_saga{clause} order by changed_at desc, saga, instance limit :limit",
        **params,
        limit=limit,
    )
    return [_instance(row) for row in rows]


def story(tx: Transaction, saga: str, instance: str) -> list[Told]:
    """Return what happened to an instance, step by step; nothing where it never began."""
    rows = tx.execute(
        "select number, step, moved_by, did, status, at from forebay_saga_step"
        " where saga = :saga and instance = :instance order by number",
        saga=saga,
        instance=instance,
    )
    return [
        Told(
            row["number"],
            row["step"],
            row["moved_by"],
            msgspec.json.decode(row["did"], type=list[str]),
            row["status"],
            datetime.fromtimestamp(row["at"] / 1000, UTC),
        )
        for row in rows
    ]


def counts(tx: Transaction) -> list[Row]:
    """Return how many instances of each saga stand how: rows of ``saga``, ``status`` and ``instances``."""
    return tx.execute("select saga, status, count(*) as instances from forebay_saga group by saga, status")


def _instance(row: Row) -> Instance:
    awaiting = row["awaiting"]
    return Instance(
        saga=row["saga"],
        instance=row["instance"],
        status=row["status"],
        state=row["state"].encode(),
        undo=msgspec.json.decode(row["undo"], type=list[str]),
        awaiting=None if awaiting is None else msgspec.json.decode(awaiting, type=Awaiting),
        steps=row["steps"],
        started_at=row["started_at"],
        changed_at=row["changed_at"],
    )
