"""An inbox row and an effect for each message, in a transaction of its own: the idempotency table of the textbooks.

Runs in the peers' own environments and imports nothing of forebay. SQLite with WAL and ``synchronous=FULL``, PostgreSQL
as it comes: both have a message on disk before it is acknowledged, as forebay's stores have.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Protocol


class InboxTable(Protocol):
    """Where messages take effect."""

    def apply(self, message_id: str, subject: str, event: dict[str, Any]) -> None:
        """Let a message take effect unless it has; on disk when this returns."""


class SqliteInbox:
    """In a SQLite database."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(
            "pragma journal_mode=wal; pragma synchronous=full;"
            "create table if not exists inbox (message_id text primary key) without rowid, strict;"
            "create table if not exists effect (position integer primary key, node text not null,"
            " number integer not null, cents integer not null) strict;"
        )

    def apply(self, message_id: str, subject: str, event: dict[str, Any]) -> None:
        """See ``InboxTable``."""
        execute = self._database.execute
        execute("begin immediate")
        try:
            known = execute("insert into inbox values (?) on conflict do nothing", (message_id,)).rowcount == 0
            if not known:
                execute("insert into effect (node, number, cents) values (?, ?, ?)", _effect(subject, event))
        except BaseException:
            execute("rollback")
            raise
        execute("commit")


class PostgresInbox:
    """In a PostgreSQL database."""

    def __init__(self, url: str) -> None:
        import psycopg  # type: ignore[import-not-found, unused-ignore]

        self._connection: Any = psycopg.connect(url)
        self._connection.execute("create table if not exists inbox (message_id text primary key)")
        self._connection.execute(
            "create table if not exists effect (position bigint generated always as identity primary key,"
            " node text not null, number bigint not null, cents bigint not null)"
        )
        self._connection.commit()

    def apply(self, message_id: str, subject: str, event: dict[str, Any]) -> None:
        """See ``InboxTable``."""
        with self._connection.transaction():
            insert = "insert into inbox values (%s) on conflict do nothing"
            if self._connection.execute(insert, (message_id,)).rowcount:
                effect = "insert into effect (node, number, cents) values (%s, %s, %s)"
                self._connection.execute(effect, _effect(subject, event))


def open_inbox(place: str) -> InboxTable:
    """Open the inbox at a path, or at a ``postgresql:`` URL."""
    return PostgresInbox(place) if place.startswith("postgresql:") else SqliteInbox(place)


def _effect(subject: str, event: dict[str, Any]) -> tuple[str, int, int]:
    return subject.split(".")[2], event["number"], event["cents"]
