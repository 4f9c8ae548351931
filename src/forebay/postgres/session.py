"""Database sessions: how they are set up, what is refused, and what a value is in Python and in PostgreSQL."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.rows import DictRow, dict_row
from psycopg.types.numeric import Int8BinaryDumper, NumericLoader
from psycopg.types.string import StrDumperUnknown

from forebay.errors import ConfigurationError, StoreError
from forebay.postgres.address import Address
from forebay.postgres.failures import first_line, store_error

Connection = psycopg.Connection[DictRow]

MIN_VERSION = 15
"""The oldest major version that is supported."""

CONNECT_TIMEOUT = 5
"""Seconds for a connection to come up."""

WRITER = "writer"
"""The role of the session that writes, and that holds the locks."""

SILENCE = 4
"""Seconds for which either end may be silent before the other ends the session: it dies with its host, its network and
its process, also where that is only frozen. What a dead session held, its locks, is free then."""

LOCK_TIMEOUT = 10
"""Seconds that a statement waits for a lock, which can only be another program's: a table under migration, say."""

_SETTINGS = {
    "application_name": "",
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO",
    "statement_timeout": "0",
    "lock_timeout": f"{LOCK_TIMEOUT}s",
    "jit": "off",
    # A table that is read as a whole is locked as a whole by SERIALIZABLE; the engine's are read by their keys.
    "enable_seqscan": "off",
    "client_min_messages": "warning",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": f"{SILENCE}s",
    "client_connection_check_interval": "1s",
}

_WRITER_SETTINGS = {
    "idle_in_transaction_session_timeout": f"{SILENCE}s",
    "idle_session_timeout": f"{SILENCE}s",
}
"""The writer says something every second: a frozen process loses its session, and its locks with it."""

_CHECKS = """
    select pg_is_in_recovery() as recovery, current_setting('fsync') as fsync,
      current_setting('synchronous_commit') as synchronous_commit,
      current_setting('default_transaction_read_only') as read_only,
      current_setting('server_version_num')::integer / 10000 as version,
      current_setting('server_encoding') as encoding, pg_backend_pid() as pid,
      (select backend_start from pg_stat_activity where pid = pg_backend_pid())::text as started"""


class Backend(NamedTuple):
    """The server's process behind a session; a process id alone can be another one's by now."""

    pid: int
    started: str


def connect(address: Address, role: str) -> Connection:
    """Open a session: autocommit, ``search_path`` set to the schema, rows as dictionaries.

    Args:
        address: the database and the schema, which need not exist.
        role: what the session is for, shown to the server's operators.

    Raises:
        StoreError: the server does not answer, or refuses.
    """
    try:
        connection: Connection = psycopg.connect(
            address.with_options(
                connect_timeout=CONNECT_TIMEOUT,
                keepalives=1,
                keepalives_idle=2,
                keepalives_interval=1,
                keepalives_count=2,
                tcp_user_timeout=SILENCE * 1000,
            ),
            autocommit=True,
            row_factory=dict_row,
            cursor_factory=psycopg.RawCursor,
        )
    except psycopg.Error as error:
        raise _not_opened(address, error) from None  # libpq may repeat what it was given
    try:
        connection.prepared_max = 500
        settings = {
            **_SETTINGS,
            **(_WRITER_SETTINGS if role == WRITER else {}),
            "application_name": f"{_name(address, role)}{socket.gethostname()}/{os.getpid()}",
        }
        _adapt(connection)
        connection.execute(
            "select "
            + ", ".join(f"set_config(${2 * at + 1}, ${2 * at + 2}, false)" for at in range(len(settings) + 1)),
            [part for pair in [*settings.items(), ("search_path", _quoted(address.schema))] for part in pair],
        )
    except psycopg.Error as error:
        connection.close()
        raise store_error(error, f"setting up a session of {address}") from error
    return connection


def check(connection: Connection, address: Address) -> Backend:
    """Refuse a server that would not keep what it acknowledges, or on which session locks cannot work.

    Raises:
        ConfigurationError: a person has to change something.
        StoreError: it is a replica, or does not answer: where servers change their roles that may pass.
    """
    try:
        row = connection.execute(_CHECKS).fetchone()
    except psycopg.Error as error:
        raise store_error(error, f"checking {address}") from error
    assert row is not None  # noqa: S101 - a select without a table
    if row["version"] < MIN_VERSION:
        raise ConfigurationError(f"{address.shown} is PostgreSQL {row['version']}", hint=f"use {MIN_VERSION} or newer")
    if row["encoding"] != "UTF8":
        raise ConfigurationError(f"{address.shown} has the encoding {row['encoding']}", hint="create it with UTF8")
    if row["pid"] != connection.info.backend_pid:
        raise ConfigurationError(
            f"there is a connection pool in front of {address.shown}: locks of a session cannot be relied on",
            hint="give the address of the server itself",
        )
    if row["fsync"] == "off":
        raise ConfigurationError(f"{address.shown} runs with fsync=off and loses data", hint="set fsync=on")
    if row["synchronous_commit"] == "off":
        raise ConfigurationError(
            f"{address.shown} has synchronous_commit=off: it loses what it has acknowledged",
            hint="set synchronous_commit=on for this database or role",
        )
    if row["recovery"]:
        raise StoreError(f"{address.shown} is a replica", hint="give the primary's address")
    if row["read_only"] == "on":
        raise StoreError(f"{address.shown} accepts no writes: default_transaction_read_only is on")
    return Backend(row["pid"], row["started"])


def end_backend(connection: Connection, backend: Backend) -> None:
    """End a session of ours that was lost from sight, and wait until it is gone: its COMMIT may still be under way.

    Raises:
        StoreError: it does not end.
    """
    ended = connection.execute(
        "select pg_terminate_backend(pid, 5000) as gone from pg_stat_activity"
        " where pid = $1 and backend_start = $2::timestamptz",
        [backend.pid, backend.started],
    ).fetchone()
    if ended is not None and not ended["gone"]:
        raise StoreError(f"the session {backend.pid} of before does not end", hint="see pg_stat_activity")


def end_frozen(connection: Connection, address: Address) -> None:
    """End the writers of other processes that have said nothing for a while.

    The time-outs of idle sessions do that only where the server waits for the next statement. Any other message turns
    them off: in the middle of a pipeline it takes a session for active, or for an idle one that is about to go on, and
    leaves it alone, and its locks with it, for as long as its process is frozen. Raises ``psycopg.Error``.
    """
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and usename = current_user and pid <> pg_backend_pid()"
        " and wait_event = 'ClientRead' and starts_with(application_name, $1)"
        f" and clock_timestamp() - state_change > interval '{SILENCE} s'",
        [_name(address, WRITER)],
    )


def _name(address: Address, role: str) -> str:
    """Return what the names of the sessions of a role begin with; the server cuts names at 63 bytes."""
    return f"forebay {address.schema} {role} "[:63]


def create_schema(connection: Connection, address: Address) -> None:
    """Create the service's schema where it is missing. Raises ``psycopg.Error``."""
    found = connection.execute("select 1 from pg_namespace where nspname = $1", [address.schema]).fetchone()
    if found is None:
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(address.schema)))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _not_opened(address: Address, error: psycopg.Error) -> StoreError:
    said = first_line(error)
    return StoreError(f"{address.shown} cannot be opened: {said}", hint="is the server up, and the address right?")


class _Int(Int8BinaryDumper):
    """Every integer is a ``bigint``, so that a statement has one plan and sums do not overflow at 32767."""


class _Bool(Dumper):
    """A bool goes into integer columns (0 and 1, as on SQLite) and into boolean ones: the column decides."""

    oid = 0

    def dump(self, obj: Any) -> Buffer | None:
        return b"1" if obj else b"0"


class _Text(StrDumperUnknown):
    """U+0000, which a text cannot hold here, is kept as U+FFFD: what comes from outside must not stop a consumer."""

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)


class _Numeric(Loader):
    """A number without a fraction is an ``int``: the sum of a ``bigint`` column is numeric."""

    def __init__(self, oid: int, context: Any = None) -> None:
        super().__init__(oid, context)
        self._other = NumericLoader(oid, context)

    def load(self, data: Buffer) -> Any:
        text = bytes(data)
        return int(text) if text.lstrip(b"-").isdigit() else self._other.load(data)


def _adapt(connection: Connection) -> None:
    connection.adapters.register_dumper(int, _Int)
    connection.adapters.register_dumper(bool, _Bool)
    connection.adapters.register_dumper(str, _Text)
    connection.adapters.register_loader("numeric", _Numeric)
