"""Numbered ``.sql`` files become the schema, once each, whatever happens on the way."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import ConfigurationError
from forebay.scripts import Dialect, read_scripts
from forebay.sqlite import MigrationSet, SqliteStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    folder.mkdir()
    return folder


async def opened(folder: Path, **options: Any) -> SqliteStore:
    return await SqliteStore.open(folder.parent / "store.db", migrations=[MigrationSet("till", folder)], **options)


async def tables(folder: Path) -> set[str]:
    store = await opened(folder)
    try:
        rows = await store.read(lambda tx: tx.execute("select name from sqlite_schema where type = 'table'"))
        return {row["name"] for row in rows if not row["name"].startswith(("_", "sqlite_"))}
    finally:
        await store.close()


async def test_pending_migrations_are_applied_in_order_and_once(folder: Path) -> None:
    (folder / "0001_a.sql").write_text("create table a (id integer primary key); insert into a values (1);")
    (folder / "readme.md").write_text("not a migration")
    assert await tables(folder) == {"a"}
    (folder / "0002_b.sql").write_text("alter table a rename to b;")
    assert await tables(folder) == {"b"}
    assert await tables(folder) == {"b"}


async def test_the_dialects_own_file_goes_before_the_plain_one(folder: Path) -> None:
    (folder / "0001_a.sql").write_text("create table plain (id int);")
    (folder / "0001_a.sqlite.sql").write_text("create table dialect_s_own (id int);")
    (folder / "0002_b.postgres.sql").write_text("create table b (id jsonb);")
    (folder / "0002_b.sqlite.sql").write_text("-- nothing to do; really\n/* nothing; */")
    assert await tables(folder) == {"dialect_s_own"}
    postgres = Dialect("postgres", lambda _: True, lambda _: None)
    assert [s.name for s in read_scripts(MigrationSet("till", folder), postgres)] == ["0001_a", "0002_b"]


async def test_semicolons_in_strings_comments_and_triggers_end_no_statement(folder: Path) -> None:
    (folder / "0001_a.sql").write_text(
        "-- first; the table\n"
        "create table a (x text default 'a;b'); create table log (x text);\n"
        "create trigger t after insert on a begin insert into log values (new.x); insert into log values (';'); end;\n"
        "insert into a default values;\n"
        "/* the; end */\n"
    )
    store = await opened(folder)
    rows = await store.read(lambda tx: tx.execute("select x from log"))
    assert [row["x"] for row in rows] == ["a;b", ";"]
    await store.close()


async def test_a_failing_migration_keeps_nothing_of_itself_and_all_before_it(folder: Path) -> None:
    (folder / "0001_a.sql").write_text("create table a (id integer primary key);")
    (folder / "0002_b.sql").write_text("create table b (id int); insert into nowhere values (1);")
    with pytest.raises(
        ConfigurationError, match=r"0002_b of 'till' fails: no such table: nowhere .*insert into nowhere"
    ):
        await opened(folder)
    database = sqlite3.connect(folder.parent / "store.db")
    assert database.execute("select name from sqlite_schema where name in ('a', 'b')").fetchall() == [("a",)]
    database.close()
    (folder / "0002_b.sql").write_text("create table b (id int);")
    assert await tables(folder) == {"a", "b"}


async def test_a_newer_schema_opens_under_the_previous_release(folder: Path) -> None:
    (folder / "0001_a.sql").write_text("create table a (id int);")
    (folder / "0002_b.sql").write_text("create table b (id int);")
    await tables(folder)
    (folder / "0002_b.sql").unlink()
    assert await tables(folder) == {"a", "b"}


async def test_a_table_that_others_refer_to_can_be_built_anew(folder: Path) -> None:
    (folder / "0001_a.sql").write_text(
        "create table a (id integer primary key); insert into a values (1);"
        "create table b (a integer references a (id) on delete cascade); insert into b values (1);"
    )
    await tables(folder)
    (folder / "0002_a.sql").write_text(
        "create table a2 (id integer primary key, more text); insert into a2 (id) select id from a;"
        "drop table a; alter table a2 rename to a;"
    )
    store = await opened(folder)
    assert len(await store.read(lambda tx: tx.execute("select * from b"))) == 1
    rows = await store.write(lambda tx: tx.execute("select * from pragma_foreign_keys"))
    assert rows[0]["foreign_keys"] == 1
    await store.close()
    (folder / "0003_c.sql").write_text("delete from a;")
    with pytest.raises(ConfigurationError, match=r"0003_c .* rows of b refer to nothing"):
        await opened(folder)


async def test_two_openings_at_once_apply_each_migration_once(folder: Path) -> None:
    for number in range(1, 6):
        (folder / f"{number:04}_t.sql").write_text(f"create table t{number} (id int);")
    stores = await asyncio.gather(*(opened(folder) for _ in range(2)))
    for store in stores:
        await store.close()
    assert len(await tables(folder)) == 5


async def test_several_sets_have_numbers_of_their_own(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (folder / "0001_a.sql").write_text("create table a (id int);")
    (other / "0001_a.sql").write_text("create table b (id int);")
    sets = [MigrationSet("till", folder), MigrationSet("forebay", other)]
    await (await SqliteStore.open(tmp_path / "store.db", migrations=sets)).close()
    assert await tables(folder) == {"a", "b"}
    with pytest.raises(ConfigurationError, match="same name"):
        await SqliteStore.open(tmp_path / "store.db", migrations=[MigrationSet("till", folder)] * 2)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["0001_a.sql", "0003_c.sql"], "number 0002 is missing"),
        (["0002_b.sql"], "number 0001 is missing"),
        (["0001_a.sql", "0001_b.sql"], r"number 0001 is given twice \(0001_a and 0001_b\)"),
        (["0001_a.sql", "0002_b.postgres.sql"], "0002_b has no file for sqlite"),
        (["0000_a.sql", "0001_b.sql"], "numbers begin with 0001"),
        (["1_a.sql"], r"1_a\.sql is not named like"),
        (["0001_a.mysql.sql"], r"0001_a\.mysql\.sql is not named like"),
        (["0002_b.sql", "x.sql"], r"x\.sql is not named.*, number 0001 is missing"),
    ],
)
async def test_misnumbered_files_are_refused_all_together(folder: Path, files: list[str], problem: str) -> None:
    for name in files:
        (folder / name).write_text("create table a (id int);")
    with pytest.raises(ConfigurationError, match=problem):
        await opened(folder)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("create table a (id int)", "has no semicolon"),
        ("create table a (id int); COMMIT;", "runs COMMIT"),
        ("-- off\npragma foreign_keys=off;", "runs PRAGMA"),
    ],
)
async def test_a_script_that_breaks_the_rules_is_refused(folder: Path, script: str, problem: str) -> None:
    (folder / "0001_a.sql").write_text(script)
    with pytest.raises(ConfigurationError, match=problem):
        await opened(folder)


async def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such folder"):
        await opened(tmp_path / "nowhere")
