"""Tables beside those in use: a second file, in which a read model is built, and whose rows then replace those in use.

The rows are copied, in the transaction that makes them count: a reader sees all of the old ones or all of the new ones,
and a crash leaves either. Renaming would have to drop and to make anew every index and trigger under its name, inside
that same transaction; copying writes about half a million rows a second and needs nothing but the tables' names.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from forebay.errors import ConfigurationError
from forebay.scripts import MigrationSet
from forebay.sqlite.connection import open_reader
from forebay.sqlite.store import SqliteStore
from forebay.transaction import Row, Transaction

_OWN = r"""name not like 'forebay\_%' escape '\' and name not like '\_sqlite\_%' escape '\'
    and name not like 'sqlite\_%' escape '\'"""


class FileBeside:
    """The file beside one service's database; see ``forebay.rebuilding.Beside``."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def check(self, tx: Transaction) -> None:
        """Refuse tables whose rows cannot be replaced. Raises ``ConfigurationError``."""
        own_tables(tx)

    async def open(self, migrations: Sequence[MigrationSet]) -> SqliteStore:
        """Open the tables. Raises ``StoreError``."""
        return await SqliteStore.open(path_beside(self._database), migrations=migrations)

    async def remove(self) -> None:
        """Remove the tables; they are closed."""
        await anyio.to_thread.run_sync(remove_beside, self._database)

    async def close(self) -> None:
        """Nothing is held: the process has the database beside which they are."""

    def replace(self, tx: Transaction) -> int:
        """Replace the rows of the service's own tables; return how many there are now. Raises as ``check``."""
        return replace_rows(tx, self._database)


def path_beside(database: Path) -> Path:
    """Where the tables of a rebuild are, beside a database; the name is none of a service's database."""
    return database.with_suffix(".rebuild")


def remove_beside(database: Path) -> None:
    """Remove the tables beside, if there are any."""
    path = path_beside(database)
    for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        each.unlink(missing_ok=True)


def own_tables(tx: Transaction) -> list[str]:
    """Return the service's own tables, each behind those that it refers to.

    Raises:
        ConfigurationError: one of them cannot be copied: a virtual table, or one with triggers.
    """
    rows = tx.execute(
        f"select type, name, tbl_name, sql from sqlite_master where type in ('table', 'trigger') and {_OWN}"
    )
    for row in rows:
        if row["type"] == "trigger" or row["sql"].lower().startswith("create virtual"):
            raise ConfigurationError(
                f"the read model has {row['name']!r}, a {'trigger' if row['type'] == 'trigger' else 'virtual table'}:"
                " its rows cannot be replaced",
                hint="leave it out, or give it a service of its own without a projection",
            )
    left = {row["name"]: _refers_to(tx, row["name"]) for row in rows}
    ordered: list[str] = []
    while left:
        free = sorted(name for name, others in left.items() if not (others & left.keys()) - {name}) or sorted(left)
        ordered += free
        left = {name: others for name, others in left.items() if name not in free}
    return ordered


def replace_rows(tx: Transaction, database: Path) -> int:
    """Replace the rows of the service's own tables by those of the tables beside; return how many there are now.

    Raises:
        ConfigurationError: see ``own_tables``.
        StoreError: the file beside cannot be read, or the database failed.
    """
    tables = own_tables(tx)
    for name in reversed(tables):
        tx.execute(f"delete from {_quoted(name)}")
    beside = open_reader(path_beside(database))
    try:
        beside.execute("begin")
        return sum(_copy(tx, beside, name) for name in tables)
    finally:
        beside.close()


def _copy(tx: Transaction, beside: sqlite3.Connection, name: str) -> int:
    columns = [str(row["name"]) for row in tx.execute("select name from pragma_table_info(:name)", name=name)]
    rows = beside.execute(f"select {', '.join(map(_quoted, columns))} from {_quoted(name)}")
    count = 0

    def parameters() -> Iterator[Mapping[str, Any]]:
        nonlocal count
        names = [f"c{at}" for at in range(len(columns))]
        for row in rows:
            count += 1
            yield dict(zip(names, row, strict=True))

    values = ", ".join(f":c{at}" for at in range(len(columns)))
    tx.executemany(f"insert into {_quoted(name)} ({', '.join(map(_quoted, columns))}) values ({values})", parameters())
    return count


def _refers_to(tx: Transaction, name: str) -> set[str]:
    rows: list[Row] = tx.execute('select "table" as other from pragma_foreign_key_list(:name)', name=name)
    return {str(row["other"]) for row in rows}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
