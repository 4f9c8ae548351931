"""Aggregates over a real schema in memory: snapshots and time travel change nothing about what events come to."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from forebay import Aggregate, Event, Lane, UnitOfWork
from forebay.aggregate import append, history_of, load
from forebay.errors import VersionConflictError
from forebay.outbox import Outbox
from forebay.sqlite.migrations import migrate
from forebay.sqlite.transaction import SqliteTransaction
from tests.integration.arrivals import ENGINE

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Written(Event, service="pad", kind="written", key="pad"):
    pad: str
    letter: str


class Wiped(Event, service="pad", kind="wiped", key="pad"):
    pad: str


class Pad(Aggregate, name="pad"):
    text: str = ""


@Pad.applies(Written)
def written(pad: Pad, event: Written) -> Pad:
    return replace(pad, text=pad.text + event.letter)


@Pad.applies(Wiped)
def wiped(pad: Pad, _: Wiped) -> Pad:
    return replace(pad, text="")


class Step(NamedTuple):
    pad: str
    letters: str  # a blank wipes
    minute: int
    back: int  # how many versions ago it was decided on
    forget: bool  # whether the release changes before it


def event(pad: str, letter: str) -> Event:
    return Wiped(pad=pad) if letter == " " else Written(pad=pad, letter=letter)


def fold(letters: str) -> str:
    return letters.rpartition(" ")[2]


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["a", "b"]),
        st.text("xyz ", min_size=1, max_size=4),
        st.integers(-5, 5),
        st.sampled_from([0, 0, 0, 1, 2]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=25,
)


@settings(max_examples=50, deadline=None)
@given(steps=STEPS, every=st.integers(1, 6))
def test_state_from_snapshot_and_tail_is_the_fold_over_all_events(steps: list[Step], every: int) -> None:
    schema = Pad.spec.schema
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        migrate(connection, [ENGINE])
        outbox = Outbox("store-1", "pad", [Lane("ledger", budget="8MiB")])
        connection.execute("begin")
        tx = SqliteTransaction(connection, "opening")
        outbox.bind(tx, "s1")
        model: dict[str, list[tuple[str, datetime]]] = {"a": [], "b": []}
        Pad.spec.snapshot_every = every
        try:
            for step in steps:
                if step.forget:
                    Pad.spec.schema += 1
                    Pad.spec._snapshot_schema = None
                known = model[step.pad]
                now = len(known)
                decided_on = load(tx, Pad, step.pad, version=max(0, now - step.back))
                time = NOON + timedelta(minutes=step.minute)
                work = UnitOfWork(tx, outbox)
                try:
                    done = append(work, decided_on, *(event(step.pad, each) for each in step.letters), time=time)
                except VersionConflictError:
                    assert decided_on.version < now
                else:
                    assert decided_on.version == now
                    known += [(each, time) for each in step.letters]
                    assert done == load(tx, Pad, step.pad)
                work.flush()
                check(tx, step.pad, known)
            written = tx.execute("select body from forebay_outbox order by sequence")
            kept = tx.execute("select body from forebay_history order by message_id, version")
            assert sorted(row["body"] for row in written) == sorted(row["body"] for row in kept)
        finally:
            Pad.spec.snapshot_every, Pad.spec.schema, Pad.spec._snapshot_schema = 100, schema, None


def check(tx: SqliteTransaction, pad: str, known: list[tuple[str, datetime]]) -> None:
    letters = "".join(letter for letter, _ in known)
    assert load(tx, Pad, pad) == Pad(id=pad, version=len(known), text=fold(letters))
    assert [entry.event for entry in history_of(tx, Pad, pad)] == [event(pad, letter) for letter in letters]
    for version in range(max(0, len(known) - 7), len(known) + 1):
        assert load(tx, Pad, pad, version=version).text == fold(letters[:version])
    for minute in (-3, 0, 5):
        at = NOON + timedelta(minutes=minute)
        assert load(tx, Pad, pad, at=at).text == fold("".join(letter for letter, time in known if time <= at))
