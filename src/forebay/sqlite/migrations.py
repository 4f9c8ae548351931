"""Bringing a database up to the schema of this release."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from forebay.errors import ConfigurationError, ForebayError
from forebay.scripts import Dialect, MigrationSet, Script, read_scripts
from forebay.sqlite.failures import mapped
from forebay.sqlite.transaction import refused_word

if TYPE_CHECKING:
    from sqlite_utils.db import Database
    from sqlite_utils.migrations import Migrations

# Only SQLite's own tokenizer knows whether a semicolon ends a statement or stands in a string or a trigger.
SQLITE = Dialect("sqlite", sqlite3.complete_statement, refused_word)


def migrate(connection: sqlite3.Connection, sets: Sequence[MigrationSet]) -> None:
    """Apply what is pending, each migration together with its record in a transaction of its own.

    Migrations that are recorded but unknown here are a newer release's: its schema serves this one too. Safe beside
    another process that does the same.

    Raises:
        ConfigurationError: the files are misnumbered, or one of them fails; those before it are applied.
        StoreError: the database failed.
    """
    scripts = [(migrations.name, read_scripts(migrations, SQLITE)) for migrations in sets]
    if len({name for name, _ in scripts}) < len(scripts):
        raise ConfigurationError("two sets of migrations have the same name", hint="give each its own")
    if _applied(connection) >= {(name, step.name) for name, steps in scripts for step in steps}:
        return
    # Imported here: it is needed when a schema changes, and weighs more than the rest of the adapter.
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

    database = Database(connection, recursive_triggers=False, execute_plugins=False)
    # A migration that builds a table anew drops the old one, which would delete what refers to its rows.
    connection.execute("PRAGMA foreign_keys=OFF")
    try:
        for name, steps in scripts:
            known = Migrations(name)
            for step in steps:
                known(name=step.name)(_function(name, step))
            while _apply_next(connection, database, known):
                pass
    finally:
        connection.execute("PRAGMA foreign_keys=ON")


def _applied(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return set and name of the migrations that sqlite-utils has recorded."""
    try:
        if not connection.execute("select 1 from sqlite_master where name = '_sqlite_migrations'").fetchone():
            return set()
        return {(row[0], row[1]) for row in connection.execute("select migration_set, name from _sqlite_migrations")}
    except sqlite3.Error as error:
        raise mapped(error) or ConfigurationError(f"the migrations cannot be read: {error}") from error


def _apply_next(connection: sqlite3.Connection, database: Database, known: Migrations) -> bool:
    """Apply the first pending migration; return whether there was one."""
    try:
        if not known.pending(database):
            return False
        connection.execute("BEGIN IMMEDIATE")
        try:
            pending = [migration.name for migration in known.pending(database)]
            # Inside our transaction, apply() makes a savepoint, so the check for pending ones is under the lock too.
            known.apply(database, stop_before=pending[1:])
            if broken := connection.execute("PRAGMA foreign_key_check").fetchone():
                raise ConfigurationError(
                    f"migration {''.join(pending[:1])} of {known.name!r}: rows of {broken[0]} refer to nothing"
                )
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise mapped(error) or ConfigurationError(f"migrations {known.name!r}: {error}") from error
    return True


def _function(owner: str, script: Script) -> Callable[[Database], None]:
    def apply(database: Database) -> None:
        for statement in script.statements:
            try:
                database.conn.execute(statement)
            except sqlite3.Error as error:
                raise _failed(owner, script, statement, error) from error

    return apply


def _failed(owner: str, script: Script, statement: str, error: sqlite3.Error) -> ForebayError:
    known = mapped(error)
    if known is not None and not isinstance(error, sqlite3.IntegrityError):
        return known
    return ConfigurationError(
        f"migration {script.name} of {owner!r} fails: {error} (in: {' '.join(statement.split())[:120]})",
        hint="correct the file; nothing of it was kept",
    )
