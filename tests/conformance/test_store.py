"""What every ``forebay.transaction.Store`` does, whatever the database below it.

An adapter joins with a line in ``STORES``: a function that opens a store with one empty table, ``item``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

from forebay.errors import ConstraintError, StoreClosedError
from forebay.postgres import PostgresStore
from forebay.scripts import MigrationSet
from forebay.sqlite import SqliteStore
from forebay.testing.postgres_server import PostgresServer
from forebay.transaction import Store, Transaction

SCHEMA = """
create table item (
    name text primary key,
    amount bigint not null check (amount >= 0)
);
"""


class OpenedStore(Store, Protocol):
    async def close(self) -> None: ...


def item_table(folder: Path) -> list[MigrationSet]:
    scripts = folder / "migrations"
    scripts.mkdir()
    (scripts / "0001_item.sql").write_text(SCHEMA)
    return [MigrationSet("test", scripts)]


async def open_sqlite(folder: Path, _: pytest.FixtureRequest) -> SqliteStore:
    return await SqliteStore.open(folder / "store.db", migrations=item_table(folder))


async def open_postgres(folder: Path, request: pytest.FixtureRequest) -> PostgresStore:
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return await PostgresStore.open(server.create_database(), "till", migrations=item_table(folder))


STORES: dict[str, Callable[[Path, pytest.FixtureRequest], Coroutine[Any, Any, OpenedStore]]] = {
    "sqlite": open_sqlite,
    "postgres": open_postgres,
}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenedStore]:
    opened = await STORES[request.param](tmp_path, request)
    yield opened
    await opened.close()


def put(tx: Transaction, name: str, amount: int = 1) -> str:
    tx.execute("insert into item (name, amount) values (:name, :amount)", name=name, amount=amount)
    return name


def put_and_raise(tx: Transaction, name: str, error: BaseException) -> None:
    put(tx, name)
    raise error


def names(tx: Transaction) -> list[str]:
    return [row["name"] for row in tx.execute("select name from item order by name")]


async def test_a_unit_of_work_is_kept_and_its_result_returned(store: Store) -> None:
    assert await store.write(put, "a", amount=7) == "a"
    assert await store.read(names) == ["a"]


async def test_a_unit_that_raises_is_undone_and_its_exception_reaches_its_caller(store: Store) -> None:
    with pytest.raises(LookupError, match="no such basket"):
        await store.write(put_and_raise, "a", LookupError("no such basket"))
    assert await store.read(names) == []


async def test_a_unit_that_raises_stop_iteration_does_not_leave_its_caller_waiting(store: Store) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await store.write(put_and_raise, "a", StopIteration())
    with pytest.raises(RuntimeError, match="StopIteration"):
        await store.read(lambda _: next(iter(())))
    assert await store.read(names) == []


async def test_a_failing_unit_does_not_touch_those_beside_it(store: Store) -> None:
    outcomes = await asyncio.gather(
        store.write(put, "a"),
        store.write(put_and_raise, "b", ValueError()),
        store.write(put, "a"),
        store.write(put, "c", -1),
        store.write(put, "d"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [str, ValueError, ConstraintError, ConstraintError, str]
    assert await store.read(names) == ["a", "d"]


async def test_units_run_in_the_order_in_which_they_were_written(store: Store) -> None:
    def number(tx: Transaction) -> int:
        count: int = tx.execute("select count(*) as n from item")[0]["n"]
        put(tx, f"{count:03}")
        return count

    assert await asyncio.gather(*(store.write(number) for _ in range(150))) == list(range(150))


async def test_a_broken_constraint_of_the_schema_is_a_constraint_error(store: Store) -> None:
    await store.write(put, "a")
    with pytest.raises(ConstraintError) as raised:
        await store.write(put, "a")
    assert raised.value.__cause__ is not None
    with pytest.raises(ConstraintError):
        await store.write(lambda tx: tx.execute("insert into item (name, amount) values ('b', null)"))


async def test_rows_are_read_by_the_names_of_their_columns(store: Store) -> None:
    await store.write(put, "a", 2**62)

    def both(tx: Transaction) -> list[tuple[list[str], str, int]]:
        rows = tx.execute("select name, amount from item where name = :name", name="a")
        return [(list(row.keys()), row["name"], row["amount"]) for row in rows]

    assert await store.read(both) == [(["name", "amount"], "a", 2**62)]


async def test_a_plain_write_returns_no_rows_and_a_returning_one_all(store: Store) -> None:
    def unit(tx: Transaction) -> tuple[int, list[int]]:
        plain = tx.execute("insert into item (name, amount) values ('a', 1), ('b', 2)")
        returned = tx.execute("update item set amount = amount + 1 where amount > :least returning amount", least=0)
        return len(plain), sorted(row["amount"] for row in returned)

    assert await store.write(unit) == (0, [2, 3])


async def test_executemany_runs_once_per_mapping_and_is_undone_as_a_whole(store: Store) -> None:
    def many(tx: Transaction, wanted: list[str]) -> None:
        statement = "insert into item (name, amount) values (:name, :amount)"
        tx.executemany(statement, ({"name": name, "amount": 1} for name in wanted))

    await store.write(many, ["a", "b"])
    with pytest.raises(ConstraintError):
        await store.write(many, ["c", "a"])
    assert await store.read(names) == ["a", "b"]


@pytest.mark.parametrize("count", [0, 1, 299, 300, 301, 1000])
async def test_insert_many_keeps_every_row_in_its_order(store: Store, count: int) -> None:
    def unit(tx: Transaction) -> list[tuple[str, int]]:
        tx.insert_many("item", ("name", "amount"), [(f"{at:04}", 7 * at) for at in range(count)])
        return [(row["name"], row["amount"]) for row in tx.execute("select name, amount from item order by name")]

    assert await store.write(unit) == [(f"{at:04}", 7 * at) for at in range(count)]


@pytest.mark.parametrize("wrong", [0, 299, 300, 699])
async def test_insert_many_with_a_refused_row_fails_and_its_unit_is_undone(store: Store, wrong: int) -> None:
    def unit(tx: Transaction) -> None:
        tx.insert_many("item", ("name", "amount"), [(f"{at}", -1 if at == wrong else 1) for at in range(700)])

    with pytest.raises(ConstraintError):
        await store.write(unit)
    assert await store.read(names) == []


@pytest.mark.parametrize("shift", [0, 1])
async def test_insert_many_with_rows_of_another_length_fails_and_moves_no_value_to_the_next_row(
    store: Store, shift: int
) -> None:
    rows: list[tuple[Any, ...]] = [(f"{at}", at) for at in range(600)]
    rows[10 + shift], rows[11 - shift] = ("10", 10, "11"), (11,)

    def unit(tx: Transaction) -> None:
        tx.insert_many("item", ("name", "amount"), rows)

    with pytest.raises(Exception):  # noqa: B017, PT011 - each adapter's own: the program is wrong
        await store.write(unit)
    assert await store.read(names) == []


@pytest.mark.parametrize("statement", ["commit", " -- done\n COMMIT", "rollback", "savepoint x", "/* a */ begin"])
async def test_a_unit_may_not_control_the_transaction(store: Store, statement: str) -> None:
    def unit(tx: Transaction) -> None:
        put(tx, "a")
        tx.execute(statement)

    with pytest.raises(ValueError, match="may not run"):
        await store.write(unit)
    assert await store.read(names) == []


async def test_a_wrong_statement_fails_its_unit_alone(store: Store) -> None:
    outcomes = await asyncio.gather(
        store.write(put, "a"),
        store.write(lambda tx: tx.execute("insert into nowhere values (1)")),
        store.write(lambda tx: tx.execute("insert into item (name, amount) values (:name, :amount)", name="b")),
        store.write(put, "c"),
        return_exceptions=True,
    )
    assert [isinstance(outcome, Exception) for outcome in outcomes] == [False, True, True, False]
    assert await store.read(names) == ["a", "c"]


async def test_a_query_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match=r"read.?only"):
        await store.read(put, "a")
    assert await store.read(names) == []


async def test_a_transaction_is_over_when_its_function_has_returned(store: Store) -> None:
    kept = await store.write(lambda tx: tx)
    with pytest.raises(RuntimeError, match="over"):
        kept.execute("select 1")


async def test_a_coroutine_function_is_refused_as_a_unit(store: Store) -> None:
    async def unit(tx: Transaction) -> None:
        put(tx, "a")

    with pytest.raises(TypeError, match="plain function"):
        await store.write(cast(Any, unit))
    assert await store.read(names) == []


async def test_a_closed_store_refuses_and_closing_again_is_harmless(store: OpenedStore) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreClosedError):
        await store.write(put, "a")
    with pytest.raises(StoreClosedError):
        await store.read(names)


async def test_closing_runs_what_is_queued_first(store: OpenedStore) -> None:
    waiting = [asyncio.ensure_future(store.write(put, f"{number:03}")) for number in range(100)]
    await asyncio.sleep(0)
    await store.close()
    assert len(await asyncio.gather(*waiting)) == 100
