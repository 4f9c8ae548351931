"""Bringing a schema up to that of this release."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from forebay.errors import ConfigurationError, ForebayError
from forebay.postgres.address import Address
from forebay.postgres.failures import first_line, mapped
from forebay.postgres.session import Connection, create_schema
from forebay.postgres.statements import is_complete, refused_word
from forebay.scripts import Dialect, MigrationSet, Script, read_scripts

POSTGRES = Dialect("postgres", is_complete, refused_word)

LOCK_WAIT = 60
"""Seconds that a process waits for another one that is migrating."""

_OWN = b"""
    create table if not exists forebay_migration (
      migration_set text not null, name text not null, applied_at timestamptz not null default now(),
      primary key (migration_set, name));
    create table if not exists forebay_opening (one integer primary key check (one = 1), opening text not null);
    insert into forebay_opening (one, opening) values (1, '') on conflict do nothing;
    create table if not exists forebay_turn (one integer primary key)"""
"""The adapter's own: what was applied, the latest opening of the database (I2), and what writers take turns by."""


def migrate(connection: Connection, address: Address, sets: Sequence[MigrationSet]) -> None:
    """Create the schema where it is missing and apply what is pending.

    Each migration is applied together with its record in a transaction of its own, under a lock: several processes may
    start at once. Migrations that are recorded but unknown here are a newer release's: its schema serves this one too.

    Raises:
        ConfigurationError: the files are misnumbered, or one of them fails; those before it are applied.
        StoreError: the database failed.
    """
    scripts = [(migrations.name, read_scripts(migrations, POSTGRES)) for migrations in sets]
    if len({name for name, _ in scripts}) < len(scripts):
        raise ConfigurationError("two sets of migrations have the same name", hint="give each its own")
    try:
        connection.execute(f"set lock_timeout = '{LOCK_WAIT}s'".encode())
        connection.execute("select pg_advisory_lock(hashtext('forebay migrations'), hashtext($1))", [address.schema])
        try:
            create_schema(connection, address)
            connection.execute(_OWN)
            for name, steps in scripts:
                for step in steps:
                    _apply(connection, name, step)
        finally:
            if not connection.closed:
                connection.execute(
                    "select pg_advisory_unlock(hashtext('forebay migrations'), hashtext($1))", [address.schema]
                )
                connection.execute(b"reset lock_timeout")
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"{address} cannot be set up: {first_line(error)}",
            hint="let this role create the schema, or create it for this role: create schema ... authorization ...",
        ) from error
    except psycopg.Error as error:
        raise mapped(error) or ConfigurationError(f"{address} cannot be set up: {first_line(error)}") from error


def _apply(connection: Connection, name: str, step: Script) -> None:
    where = "where migration_set = $1 and name = $2"
    if connection.execute(f"select 1 from forebay_migration {where}".encode(), [name, step.name]).fetchone():
        return
    with connection.transaction():
        for statement in step.statements:
            try:
                connection.execute(statement.encode())
            except psycopg.Error as error:
                raise _failed(name, step, statement, error) from error
        connection.execute("insert into forebay_migration (migration_set, name) values ($1, $2)", [name, step.name])


def _failed(owner: str, script: Script, statement: str, error: psycopg.Error) -> ForebayError:
    known = mapped(error)
    if known is not None and not isinstance(error, psycopg.IntegrityError):
        return known
    return ConfigurationError(
        f"migration {script.name} of {owner!r} fails: {first_line(error)} (in: {' '.join(statement.split())[:120]})",
        hint="correct the file; nothing of it was kept",
    )
