"""Whatever a group of units does, exactly the successful ones are kept, and each caller hears the truth."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import ConstraintError, StoreFullError
from forebay.sqlite.connection import open_writer
from forebay.sqlite.group import Group
from forebay.transaction import Transaction
from forebay.work import Verdict, Work

SCHEMA = """
create table parent (id integer primary key) strict;
create table item (name text primary key, body blob) strict;
create table plain (body blob) strict;
create table child (parent integer references parent (id) deferrable initially deferred) strict;
create trigger refuse before insert on item when new.name = 'refused' begin select raise(rollback, 'refused'); end;
"""
EXPECTED: dict[str, type[Exception] | None] = {
    "ok": None,
    "raises": LookupError,
    "duplicate": ConstraintError,
    "swallowed duplicate": None,
    "rolls back": ConstraintError,
    "deferred": ConstraintError,
    "full": StoreFullError,
    "full of its own": StoreFullError,
    "swallowed full": StoreFullError,
}


def unit(tx: Transaction, kind: str, name: str) -> str:
    insert = "insert into item (name, body) values (:name, zeroblob(:size))"
    tx.execute(insert, name=name, size=10)
    try:
        match kind:
            case "raises":
                raise LookupError(name)  # noqa: TRY301 - as a unit of work does
            case "duplicate" | "swallowed duplicate":
                tx.execute(insert, name=name, size=10)
            case "rolls back":
                tx.execute(insert, name="refused", size=10)
            case "deferred":
                tx.execute("insert into child values (7)")
            case "full" | "swallowed full":
                # No trigger and no second index to undo: SQLite rolls back everything, not the statement.
                tx.execute("insert into plain values (zeroblob(2000000))")
            case "full of its own":
                tx.execute(insert, name=f"{name} large", size=2_000_000)
    except Exception:
        if not kind.startswith("swallowed"):
            raise
    return name


@contextmanager
def connection() -> Iterator[sqlite3.Connection]:
    with TemporaryDirectory() as folder:
        opened = open_writer(Path(folder) / "store.db", 1_000_000)
        opened.executescript(SCHEMA)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def futures() -> Iterator[Any]:
    loop = asyncio.new_event_loop()
    yield loop.create_future
    loop.close()


def run_all(group: Group, works: list[Work]) -> list[Verdict]:
    """Run units, and those that a group had no time for, as the writer does."""
    verdicts = [group.run(works)]
    while group.rest:
        verdicts.append(group.run(group.rest))
    return verdicts


@given(
    groups=st.lists(st.lists(st.sampled_from(sorted(EXPECTED)), max_size=8), max_size=4),
    seconds=st.sampled_from([0.0, 60.0]),  # one unit in each transaction, or all in one
)
def test_exactly_the_successful_units_of_random_groups_are_kept(
    futures: Any, groups: list[list[str]], seconds: float
) -> None:
    with connection() as database, patch("forebay.sqlite.group.GROUP_TIME", seconds):
        group = Group(database, "opening")
        kept: list[str] = []
        for number, kinds in enumerate(groups):
            works = [Work(unit, (kind, f"{number}.{at}"), {}, futures()) for at, kind in enumerate(kinds)]
            verdicts = run_all(group, works)
            assert [verdict.broken for verdict in verdicts if verdict.broken is not None] == []
            assert any(verdict.committed for verdict in verdicts) == any(EXPECTED[kind] is None for kind in kinds)
            for at, (kind, work) in enumerate(zip(kinds, works, strict=True)):
                expected = EXPECTED[kind]
                if expected is None:
                    assert (work.result, work.error) == (f"{number}.{at}", None)
                    kept.append(f"{number}.{at}")
                else:
                    assert type(work.error) is expected
            assert not database.in_transaction
        assert [name for (name,) in database.execute("select name from item order by rowid")] == kept
        assert database.execute("select count(*) from child").fetchone()[0] == 0


def test_a_failure_that_was_due_to_a_unit_which_was_undone_does_not_stand(futures: Any) -> None:
    """The second unit finds the first one's row; the first one is undone, so the second one runs again without it."""
    insert = "insert into item (name, body) values (:name, zeroblob(:size))"

    def first(tx: Transaction) -> None:
        tx.execute(insert, name="a", size=1)
        tx.execute("insert into child values (7)")

    def second(tx: Transaction) -> None:
        tx.execute(insert, name="a", size=2)

    with connection() as database:
        works = [Work(run, (), {}, futures()) for run in (first, second)]
        run_all(Group(database, "opening"), works)
        assert isinstance(works[0].error, ConstraintError)
        assert works[1].error is None
        assert [tuple(row) for row in database.execute("select length(body) from item")] == [(2,)]
