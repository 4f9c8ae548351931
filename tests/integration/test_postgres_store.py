"""What PostgreSQL does to a store: servers that die, transactions that collide, sessions that are refused."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from forebay.errors import ConfigurationError, ConstraintError, OutcomeUnknownError, StoreError
from forebay.postgres import PostgresStore
from forebay.postgres.address import parse_address
from forebay.postgres.statements import is_complete, translate
from forebay.scripts import MigrationSet
from forebay.testing.link import Link
from forebay.testing.postgres_server import PASSWORD, PostgresServer
from forebay.transaction import Transaction
from tests.integration.rig import eventually

SCHEMA = """
create table item (name text primary key, amount bigint not null, body bytea, fresh bigint not null default 1);
create table child (item text references item (name) deferrable initially deferred);
"""


@asynccontextmanager
async def opened(url: str, folder: Path, schema: str = "till") -> AsyncIterator[PostgresStore]:
    scripts = folder / "migrations"
    scripts.mkdir(exist_ok=True)
    if not list(scripts.iterdir()):
        (scripts / "0001_item.sql").write_text(SCHEMA)
    store = await PostgresStore.open(url, schema, migrations=[MigrationSet("test", scripts)])
    try:
        yield store
    finally:
        await store.close()


def put(tx: Transaction, name: str, amount: int = 1) -> None:
    tx.execute("insert into item (name, amount) values (:name, :amount)", name=name, amount=amount)


def names(tx: Transaction) -> list[str]:
    return [row["name"] for row in tx.execute("select name from item order by name")]


def opening(tx: Transaction) -> str:
    return tx.opening


async def written(store: PostgresStore, name: str) -> bool:
    try:
        await store.write(put, name)
    except StoreError:
        return False
    return True


@pytest.fixture
def own_server() -> Any:
    """A server that a test may kill."""
    with PostgresServer() as server:
        yield server


async def test_o6_what_a_killed_server_acknowledged_is_there_and_the_store_goes_on_by_itself(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    async with opened(own_server.create_database(), tmp_path) as store:
        known: list[str] = []
        before = await store.read(opening)
        stopped = False

        async def keep_writing() -> None:
            number = 0
            while not stopped:
                number += 1
                if await written(store, f"{number:06}"):
                    known.append(f"{number:06}")

        writing = asyncio.create_task(keep_writing())
        try:
            for _ in range(2):
                reached = len(known) + 20
                await eventually(partial(_at_least, known, reached))
                await asyncio.to_thread(own_server.kill)
                await asyncio.to_thread(own_server.start)
            await eventually(partial(_at_least, known, len(known) + 20), 20)
        finally:  # else it writes for ever to a store that is closed, and nothing else has a turn
            stopped = True
            await writing
        assert set(known) <= set(await store.read(names))
        assert await store.read(opening) != before, "a new session is another opening: it takes new epochs (I2)"


@pytest.mark.parametrize("state", ["active", "idle in transaction"])
async def test_s7_a_process_that_freezes_among_statements_it_does_not_wait_for_loses_its_session_and_locks(
    postgres_server: PostgresServer, tmp_path: Path, state: str
) -> None:
    url = postgres_server.create_database()
    async with opened(url, tmp_path) as store:
        await store.write(put, "a")
        name = str((await store.read(_writers))[0]["application_name"])
        with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor) as frozen:
            schema = name.split()[1]
            for setting, value in {"application_name": name, "idle_in_transaction_session_timeout": "2s"}.items():
                frozen.execute("select set_config($1, $2, false)", [setting, value])
            frozen.execute(f"begin; lock table {schema}.forebay_turn in exclusive mode".encode())
            frozen.pgconn.enter_pipeline_mode()
            frozen.pgconn.send_query_params(f"update {schema}.item set amount = 2".encode(), None)
            if state != "active":
                frozen.pgconn.pipeline_sync()
                frozen.pgconn.flush()
                with psycopg.connect(url) as looking:
                    await eventually(partial(_is, looking, frozen.info.backend_pid, (state, "ClientRead")))
            frozen.pgconn.send_flush_request()  # the message that turns the time-out off
            frozen.pgconn.flush()  # and no more: the server waits for the next one
            with psycopg.connect(url) as looking:
                pid = frozen.info.backend_pid
                await eventually(partial(_is, looking, pid, (state, "ClientRead")))
                await eventually(partial(_is, looking, pid, None))
            frozen.close()
            await store.write(put, "b")
        assert await store.read(names) == ["a", "b"]


def _writers(tx: Transaction) -> list[Any]:
    return tx.execute("select application_name from pg_stat_activity where application_name like '% writer %'")


async def _is(looking: psycopg.Connection, pid: int, state: tuple[str, str] | None) -> bool:
    asked = "select state, wait_event from pg_stat_activity where pid = %s"
    found = looking.execute(asked, [pid]).fetchone()
    looking.rollback()
    return found == state


async def _at_least(known: list[str], count: int) -> bool:
    return len(known) >= count


async def test_o6_a_commit_whose_answer_is_lost_is_unknown_and_nothing_is_read_before_its_session_is_gone(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres_server.create_database()
    with Link(postgres_server.port) as link:
        through = url.replace(f":{postgres_server.port}/", f":{link.port}/")

        def cut_at_commit(name: str) -> None:
            if name == "write.committing" and armed.is_set():
                armed.clear()
                link.freeze()  # COMMIT leaves, and nothing comes back
                threading.Timer(0.3, link.reset).start()
                threading.Timer(0.6, link.heal).start()

        armed = threading.Event()
        monkeypatch.setattr("forebay.postgres.group.reach", cut_at_commit)
        async with opened(through, tmp_path) as store:
            await store.write(put, "a")
            armed.set()
            with pytest.raises(OutcomeUnknownError):
                await store.write(put, "b")
            found = None
            while found is None:
                try:
                    found = await store.read(names)
                except StoreError:
                    await asyncio.sleep(0.05)
            assert found in (["a"], ["a", "b"])
            assert await store.read(names) == found
            assert store.problem() == ""


async def test_while_the_server_is_away_writes_and_reads_are_refused_and_nothing_waits(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    async with opened(own_server.create_database(), tmp_path) as store:
        await store.write(put, "a")
        await asyncio.to_thread(own_server.kill)
        for _ in range(3):
            with pytest.raises(StoreError) as raised:
                await asyncio.wait_for(store.write(put, "b"), 10)
        assert PASSWORD not in str(raised.value)
        with pytest.raises(StoreError):
            await asyncio.wait_for(store.read(names), 10)
        assert store.problem()
        await asyncio.to_thread(own_server.start)
        await eventually(partial(written, store, "c"), 20)
        assert await store.read(names) == ["a", "c"]
        assert store.problem() == ""


async def test_several_stores_of_one_schema_behave_as_if_their_units_came_one_after_the_other(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Each unit reads what all others write: under anything less than SERIALIZABLE counts would be taken twice."""

    def number(tx: Transaction, prefix: str) -> None:
        count = tx.execute("select count(*) as n from item")[0]["n"]
        put(tx, f"{prefix}-{count}", count)

    async def write(store: PostgresStore, prefix: str) -> None:
        for _ in range(25):
            await store.write(number, prefix)

    url = postgres_server.create_database()
    async with opened(url, tmp_path) as one, opened(url, tmp_path) as two, opened(url, tmp_path) as three:
        await asyncio.gather(write(one, "a"), write(two, "b"), write(three, "c"))
        amounts = await one.read(lambda tx: [row["amount"] for row in tx.execute("select amount from item")])
        assert sorted(amounts) == list(range(75))


async def test_a_unit_may_catch_a_constraint_error_and_go_on(postgres_server: PostgresServer, tmp_path: Path) -> None:
    def unit(tx: Transaction) -> str:
        put(tx, "a")
        try:
            put(tx, "a")
        except ConstraintError:
            put(tx, "b")
        return "done"

    async with opened(postgres_server.create_database(), tmp_path) as store:
        outcomes = await asyncio.gather(store.write(put, "z"), store.write(unit), store.write(put, "c"))
        assert outcomes[1] == "done"
        assert await store.read(names) == ["a", "b", "c", "z"]


async def test_writes_are_sent_together_and_a_unit_in_which_one_fails_is_run_again_one_by_one(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    seen: list[str] = []

    def unit(tx: Transaction, *wanted: str) -> list[str]:
        seen.append("begun")
        for name in wanted:
            put(tx, name)
            seen.append(name)
        return names(tx)

    async with opened(postgres_server.create_database(), tmp_path) as store:
        assert await store.write(unit, "a", "b", "c") == ["a", "b", "c"]
        assert seen == ["begun", "a", "b", "c"], "it is run once"
        seen.clear()
        with pytest.raises(ConstraintError):
            await store.write(unit, "d", "a", "e")
        assert seen[-2:] == ["begun", "d"], "the last time it fails at the statement that is to blame"
        assert await store.read(names) == ["a", "b", "c"]
        results = await asyncio.gather(
            *(store.write(unit, name, name.upper()) for name in ("x", "a", "y")), return_exceptions=True
        )
        assert [isinstance(each, ConstraintError) for each in results] == [False, True, False]
        assert sorted(await store.read(names)) == sorted(["a", "b", "c", "x", "X", "y", "Y"])


async def test_a_session_that_is_lost_among_writes_that_nobody_waited_for_fails_the_unit(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    def unit(tx: Transaction) -> None:
        put(tx, "a")
        postgres_server.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'forebay till writer%'"
        )
        for number in range(1000):
            put(tx, f"b{number}")

    async with opened(postgres_server.create_database(), tmp_path) as store:
        with pytest.raises(StoreError):
            await store.write(unit)

        async def again() -> bool:
            return await written(store, "c")

        await eventually(again, 20)
        assert await store.read(names) == ["c"]


async def test_a_deferred_constraint_fails_its_unit_alone(postgres_server: PostgresServer, tmp_path: Path) -> None:
    def orphan(tx: Transaction) -> None:
        tx.execute("insert into child (item) values ('nobody')")

    async with opened(postgres_server.create_database(), tmp_path) as store:
        outcomes = await asyncio.gather(
            store.write(put, "a"), store.write(orphan), store.write(put, "b"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), ConstraintError, type(None)]
        assert await store.read(names) == ["a", "b"]


@pytest.mark.parametrize(
    "statement",
    [
        "set search_path to public",
        "listen x",
        "/* a /* b */ */ prepare transaction 'x'",
        "start transaction",
        "discard all",
    ],
)
async def test_a_unit_may_not_change_the_session(
    postgres_server: PostgresServer, tmp_path: Path, statement: str
) -> None:
    async with opened(postgres_server.create_database(), tmp_path) as store:
        with pytest.raises(ValueError, match="may not run"):
            await store.write(lambda tx: tx.execute(statement))
        with pytest.raises(ValueError, match="one statement"):
            await store.write(lambda tx: tx.execute("select 1; commit"))


async def test_values_keep_their_meaning_in_both_directions(postgres_server: PostgresServer, tmp_path: Path) -> None:
    def unit(tx: Transaction) -> dict[str, Any]:
        tx.execute(
            "insert into item (name, amount, body, fresh) values (:name, :amount, :body, :fresh)",
            name="ü :x 'y' %s",
            amount=2**62,
            body=b"\x00\xff",
            fresh=False,
        )
        (row,) = tx.execute("select *, sum(amount) over () as total, ':no' as text from item where fresh = :f", f=0)
        return {name: row[name] for name in row.keys()}  # noqa: SIM118

    async with opened(postgres_server.create_database(), tmp_path) as store:
        found = await store.write(unit)
    assert found["name"] == "ü :x 'y' %s"
    assert (found["amount"], found["total"], found["fresh"]) == (2**62, 2**62, 0)
    assert found["body"] == b"\x00\xff"
    assert type(found["total"]) is int


async def test_processes_that_start_at_once_migrate_once(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url, scripts = postgres_server.create_database(), tmp_path / "migrations"
    scripts.mkdir()
    body = "do $$ begin perform pg_sleep(0.1); end; $$; create table once (x text default ';'); -- the end;"
    (scripts / "0001_once.sql").write_text(body)
    sets = [MigrationSet("test", scripts)]
    stores = await asyncio.gather(*(PostgresStore.open(url, "till", migrations=sets) for _ in range(4)))
    try:
        assert await stores[0].read(lambda tx: len(tx.execute("select * from forebay_migration"))) == 1
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def test_an_older_release_runs_on_the_schema_of_a_newer_one_also_while_it_changes(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.create_database()
    async with opened(url, tmp_path) as older:
        for number in range(8):  # prepared by now
            await older.write(put, f"{number}")
            await older.read(lambda tx: tx.execute("select * from item"))
        (tmp_path / "migrations" / "0002_more.sql").write_text("alter table item add column more text;")
        async with opened(url, tmp_path) as newer:
            await newer.write(put, "newer")
            rows = await older.read(lambda tx: tx.execute("select * from item"))
            assert "more" in rows[0].keys()  # noqa: SIM118
            await older.write(lambda tx: tx.execute("select * from item"))
        (tmp_path / "migrations" / "0002_more.sql").unlink()
        async with opened(url, tmp_path) as again:
            assert len(await again.read(names)) == 9


@pytest.mark.parametrize(
    ("setting", "kind", "said"),
    [
        ("synchronous_commit = off", ConfigurationError, "synchronous_commit"),
        ("default_transaction_read_only = on", StoreError, "accepts no writes"),
    ],
)
async def test_s7_a_database_that_loses_what_it_acknowledges_is_refused(
    postgres_server: PostgresServer, tmp_path: Path, setting: str, kind: type[Exception], said: str
) -> None:
    url = postgres_server.create_database()
    postgres_server.execute(f"alter database {url.rpartition('/')[2]} set {setting}")
    with pytest.raises(kind, match=said):
        async with opened(url, tmp_path):
            pass


async def test_s7_a_connection_pool_is_refused(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler makes up the process id that it tells at the connection; only the server knows the real one."""
    url = postgres_server.create_database()
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", 4711)
    with pytest.raises(ConfigurationError, match="connection pool"):
        async with opened(url, tmp_path):
            pass


async def test_the_password_is_in_no_error_no_log_and_no_repr(
    postgres_server: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = postgres_server.create_database()
    secret = "s3cret-word"
    attempts: list[Callable[[], str]] = [
        lambda: postgres_server.url("nowhere").replace(PASSWORD, secret),
        lambda: f"postgresql://u:{secret}@127.0.0.1:notaport/db",
        lambda: f"postgresql://u@127.0.0.1:{postgres_server.port}/x?password={secret}",
        lambda: f"mysql://u:{secret}@h/db",
    ]
    told = []
    for attempt in attempts:
        with pytest.raises((StoreError, ConfigurationError)) as raised:
            async with opened(attempt(), tmp_path):
                pass
        cause = raised.value.__cause__
        told += [str(raised.value), repr(raised.value), str(cause), repr(cause)]
    told += [repr(parse_address(url, "till")), str(parse_address(url, "till")), caplog.text]
    assert not [text for text in told if secret in text or PASSWORD in text]


@pytest.mark.parametrize(
    ("sql", "text", "names"),
    [
        ("select :a, :b, :a", "select $1, $2, $1", ("a", "b")),
        ("select ':a', \":b\", x::text, y := 1", "select ':a', \":b\", x::text, y := 1", ()),
        ("select e'\\':a', 'it''s :b', :c", "select e'\\':a', 'it''s :b', $1", ("c",)),
        ("select $x$ :a ; $x$, $$:b$$, :c", "select $x$ :a ; $x$, $$:b$$, $1", ("c",)),
        ("-- :a\nselect /* :b /* :c */ ; */ :d;\n-- end", "-- :a\nselect /* :b /* :c */ ; */ $1\n-- end", ("d",)),
        ("select a[1:2], cast(:x as text)::bigint", "select a[1:2], cast($1 as text)::bigint", ("x",)),
    ],
)
def test_parameters_are_found_where_they_are_and_nowhere_else(sql: str, text: str, names: tuple[str, ...]) -> None:
    statement = translate(sql)
    assert (statement.text, statement.names) == (text, names)


def test_a_statement_ends_at_a_semicolon_that_stands_in_nothing() -> None:
    assert is_complete("select 1;")
    assert not is_complete("select $$ a;")
    assert not is_complete("select 'a;")
    assert not is_complete("select 1 /* a;")
