from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from forebay.sqlite.transaction import SqliteTransaction


def open_files(path: Path) -> list[str]:
    """What this process has open of a database, its log included."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except OSError:  # the one that this looks with
            continue
    return [file for file in found if file.startswith(str(path))]


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("select x from t", {}),
        ("insert into t (x) values (:x)", {"x": "[]"}),
        ("insert into t (x) values (:x) returning x", {"x": "[]"}),
        ("insert into t (x) values ('{}')", {}),
        ("select json_extract(x, '$') from t order by x", {}),
        ("insert into t (x) values (:x)", {}),
        ("insert into t (x) values (:x)", {"x": object()}),
        ("insert into t (x) values (:x)", {"x": 2**70}),
        ("no statement", {}),
    ],
)
def test_a_connection_is_closed_whatever_its_statements_met_and_whoever_keeps_their_errors_o6(
    tmp_path: Path, sql: str, params: dict[str, Any]
) -> None:
    """What SQLite has open it has locked: after an uncertain COMMIT it would not read the log from disk."""
    path = tmp_path / "a.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table t (x text unique)")
    connection.execute("insert into t (x) values ('{}'), ('{')")
    connection.execute("begin")
    transaction, kept = SqliteTransaction(connection, "opening"), None
    try:
        transaction.execute(sql, **params)
    except Exception as error:  # noqa: BLE001 - its traceback keeps the transaction, as the answer of a unit does
        kept = error
    connection.close()
    assert open_files(path) == [], kept

    with pytest.raises(sqlite3.ProgrammingError):
        transaction.execute("select 1")


def test_a_transaction_goes_on_after_a_statement_that_failed(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("create table t (x text)")
    connection.execute("begin")
    transaction = SqliteTransaction(connection, "opening")
    transaction.execute("insert into t (x) values ('{}'), ('{')")
    with pytest.raises(sqlite3.OperationalError):
        transaction.execute("select json_extract(x, '$') from t")
    assert [row["x"] for row in transaction.execute("select x from t where x = :x", x="{")] == ["{"]
    transaction.end()
    connection.close()
