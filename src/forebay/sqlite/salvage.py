"""Salvage: out of a damaged database a sound one, with all rows that can be read.

The damaged files are never changed and never deleted. The new database is built beside them, table by table and row by
row, brought to this release's schema, mended by its owner, synced, and only then put in their place. A crash at any
line leaves either the damaged files where they were, or a new database that the next opening puts in place.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from forebay.errors import ConfigurationError, StoreError
from forebay.scripts import MigrationSet
from forebay.sqlite.connection import open_writer, truncate_log
from forebay.sqlite.damage import forget_damage, unmark_open
from forebay.sqlite.failures import store_error
from forebay.sqlite.image import make_image, open_image
from forebay.sqlite.migrations import migrate
from forebay.sqlite.pages import PageFile
from forebay.sqlite.reading import TableReader, quoted
from forebay.sqlite.swap import beside, replace, sync_file, sync_folder
from forebay.sqlite.transaction import SqliteTransaction
from forebay.transaction import Transaction

BATCH = 5000
"""Rows copied in one transaction."""

_MIGRATIONS = "_sqlite_migrations"

logger = logging.getLogger(__name__)


class Salvaging(NamedTuple):
    """What the owner of a database says about its salvage.

    Attributes:
        partial: whether a database that lacks rows is better than none. Not so for one whose tables answer for each
            other across what is lost, as an inbox does for its effects.
        mend: makes the salvaged rows consistent again, in one transaction, and returns what is known to be lost.
        derived: tables that ``mend`` begins anew, as they follow from the others: nothing is lost with them.
    """

    partial: bool
    mend: Callable[[Transaction], Sequence[str]] = lambda _: ()
    derived: Collection[str] = ()


def salvage(path: Path, migrations: Sequence[MigrationSet], reason: str, salvaging: Salvaging) -> None:
    """Set a damaged database aside and put one with what can be read of it in its place. Nobody has it open.

    Raises:
        ConfigurationError: something cannot be read, and ``salvaging`` wants all or nothing.
        StoreError: there is no room for the copies, or the new database cannot be written.
    """
    image, new = beside(path, ".image"), beside(path, ".salvaging")
    _remove(image, new)
    try:
        log_sound = make_image(path, image)
        source, target = open_image(image), open_writer(new, None)
        try:
            target.execute("PRAGMA synchronous=OFF")  # it counts only once it is synced as a whole
            target.execute("PRAGMA journal_mode=MEMORY").fetchone()
            target.execute("PRAGMA foreign_keys=OFF")
            unreadable = _rebuild(image, source, target, migrations, salvaging.derived)
            if not log_sound:
                unreadable.append("the write-ahead log")
            if unreadable and not salvaging.partial:
                raise ConfigurationError(
                    f"{path} is damaged ({reason}), and {', '.join(unreadable)} cannot be read in full",
                    hint="restore a backup with forebay restore, or move the file away to begin anew",
                )
            target.execute("BEGIN IMMEDIATE")
            lost = salvaging.mend(SqliteTransaction(target, "salvage"))
            target.execute("COMMIT")
            target.execute("PRAGMA journal_mode=WAL").fetchone()
            truncate_log(target)
        finally:
            source.close()
            target.close()
        sync_file(new)
        new.rename(beside(path, ".salvaged"))
        sync_folder(path.parent)
        aside = finish_salvage(path)
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be salvaged: {error.strerror}") from error
    except sqlite3.Error as error:
        raise store_error(error, f"salvaging {path}") from error
    finally:
        with suppress(OSError):
            _remove(image, new)
    logger.error(
        "store.salvaged",
        extra={
            "path": str(path),
            "reason": reason,
            "set_aside": str(aside),
            "unreadable": unreadable,
            "lost": list(lost),
        },
    )


def finish_salvage(path: Path) -> Path | None:
    """Put a salvaged database in its place, where a crash came between; return where the damaged one is then."""
    salvaged = beside(path, ".salvaged")
    if not salvaged.exists():
        return None
    aside = replace(path, salvaged, why="damaged")
    forget_damage(path)
    unmark_open(path)
    return aside


def _rebuild(
    image: Path,
    source: sqlite3.Connection,
    target: sqlite3.Connection,
    migrations: Sequence[MigrationSet],
    derived: Collection[str],
) -> list[str]:
    """Fill ``target``, but for what is ``derived``; return what could not be read in full by its own ways."""
    schema = _Schema(source)
    unreadable = [] if schema.whole else ["the schema"]
    if not schema.migrated:
        # What was applied is not known: this release's schema is made anew, and the rows go into it.
        migrate(target, migrations)
    for name, sql in schema.tables.items():
        if not _has(target, name):
            target.execute(sql)
    triggers = [row[0] for row in target.execute("select sql from sqlite_master where type = 'trigger'")]
    for name in [row[0] for row in target.execute("select name from sqlite_master where type = 'trigger'")]:
        target.execute(f"drop trigger {quoted(name)}")
    pages = PageFile(image)
    try:
        for name in [*schema.tables, "sqlite_sequence"]:
            if name in derived or (name == _MIGRATIONS and not schema.migrated):
                continue
            if not _copy(source, target, name, pages, schema.roots.get(name, 0)):
                unreadable.append(f"table {name}")
    finally:
        pages.close()
    for sql in [*schema.others, *triggers]:
        with suppress(sqlite3.OperationalError):  # it is there by a migration
            target.execute(sql)
    if schema.migrated:
        migrate(target, migrations)
    return unreadable


class _Schema:
    """What can be read of a database's schema.

    Attributes:
        tables: their statements by name, virtual ones before what they keep their contents in.
        roots: the pages at which the tables begin.
        others: the statements of indexes, triggers and views.
        migrated: whether it is known which migrations it has.
    """

    def __init__(self, source: sqlite3.Connection) -> None:
        self.tables: dict[str, str] = {}
        self.roots: dict[str, int] = {}
        self.others: list[str] = []
        self.migrated = False
        self.whole = True
        found = []
        try:
            for row in source.execute("select type, name, sql, rootpage from sqlite_master where sql is not null"):
                found.append(row)  # noqa: PERF402 - what was read before an error counts
        except (sqlite3.Error, UnicodeDecodeError):
            self.whole = False
        for kind, name, sql, root in sorted(
            found, key=lambda row: not str(row[2]).lower().startswith("create virtual")
        ):
            if kind != "table":
                self.others.append(sql)
            elif not str(name).startswith("sqlite_"):
                self.tables[name], self.roots[name] = sql, root
        if self.whole and _MIGRATIONS in self.tables:
            reader = TableReader(source, _MIGRATIONS)
            self.migrated = bool(list(reader.rows())) and reader.whole


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, table: str, pages: PageFile, root: int) -> bool:
    """Copy the rows of a table; return whether these are all."""
    try:
        reader = TableReader(source, table)
        known = {row[0] for row in target.execute("select name from pragma_table_info(?)", (table,))}
    except sqlite3.Error:
        return False
    if table == "sqlite_sequence":
        target.execute("delete from sqlite_sequence")
    filling = _Filling(target, table, reader.columns, known)
    for batch in _batches(reader.rows()):
        filling.add(batch)
    if not reader.whole and root:
        for batch in _batches(reader.rows_of_pages(pages, root)):
            filling.add(batch)
    return reader.whole and filling.whole


class _Filling:
    """Puts rows into one table of the new database; what is there already stays.

    Attributes:
        whole: False once the schema refused a row.
    """

    def __init__(self, target: sqlite3.Connection, table: str, columns: Sequence[str], known: set[str]) -> None:
        self._target = target
        self._table = quoted(table)
        self._columns = columns
        self._known = known | {"rowid"}
        self.whole = True

    def add(self, batch: Sequence[Sequence[Any]]) -> None:
        """Insert rows in one transaction; those that are shorter than the columns get their defaults."""
        self._target.execute("BEGIN")
        for length, rows in groupby(batch, key=len):
            at = [number for number, column in enumerate(self._columns[:length]) if column in self._known]
            names = ", ".join(quoted(self._columns[number]) for number in at)
            insert = f"insert or ignore into {self._table} ({names}) values ({', '.join('?' * len(at))})"
            values = [[row[number] for number in at] for row in rows]
            self._target.execute("SAVEPOINT rows")
            try:
                self._target.executemany(insert, values)
            except (sqlite3.IntegrityError, OverflowError):
                self._target.execute("ROLLBACK TO rows")
                self._add_each(insert, values)
            self._target.execute("RELEASE rows")
        self._target.execute("COMMIT")

    def _add_each(self, insert: str, values: Iterable[Sequence[Any]]) -> None:
        for row in values:
            try:
                self._target.execute(insert, row)
            except (sqlite3.IntegrityError, OverflowError):
                self.whole = False


def _batches(rows: Iterator[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _has(connection: sqlite3.Connection, table: str) -> bool:
    return bool(connection.execute("select 1 from sqlite_master where name = ?", (table,)).fetchone())


def _remove(*paths: Path) -> None:
    for path in paths:
        for suffix in ("", "-wal", "-shm", "-journal"):
            beside(path, suffix).unlink(missing_ok=True)
