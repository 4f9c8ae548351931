"""Session locks: who reads a partition, who is a member, who is in charge of what only one process may do (rule S7).

They are advisory locks of the writing session. They die with it, and so with its process, its host, or its network: a
reader that lost its lock cannot commit. Members are counted by a lock that all of them share, so no heartbeat has to be
written, and a database that was restored knows no members of before.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

from forebay.postgres.session import Connection

_HELD = """
    select pid, classid::bigint as class, objid::bigint as number from pg_locks
    where locktype = 'advisory' and objsubid = 2 and granted and classid::bigint in ($1, $2)
      and database = (select oid from pg_database where datname = current_database())"""


class SessionLocks:
    """The locks of one schema; its methods take the writing session outside a transaction, and raise ``psycopg.Error``.

    The keys of advisory locks are two integers; the first is a checksum of the schema's name and of what is locked.
    Should two names share one, their processes would only keep each other waiting.
    """

    def __init__(self, schema: str) -> None:
        self._reader = reader_key(schema)
        self._member = _key(f"forebay member {schema}")
        self._charge = _key(f"forebay charge {schema}")

    def join(self, connection: Connection) -> None:
        """Become a member, once for a session."""
        connection.execute("select pg_advisory_lock_shared($1::integer, 0)", [_signed(self._member)])

    def held(self, connection: Connection) -> Mapping[int, set[int]]:
        """Return the partitions that each member's session holds, by the server's process id."""
        found: dict[int, set[int]] = {}
        readers = []
        for row in connection.execute(_HELD, [self._member, self._reader]).fetchall():
            if row["class"] == self._member:
                found[row["pid"]] = set()
            else:
                readers.append((row["pid"], row["number"]))
        for pid, partition in readers:
            found.setdefault(pid, set()).add(partition)
        return found

    def take(self, connection: Connection, partition: int) -> bool:
        """Become the reader of a partition that this session does not hold; False if another one is."""
        return self._try(connection, self._reader, partition)

    def give(self, connection: Connection, partition: int) -> None:
        """Give a partition up."""
        connection.execute("select pg_advisory_unlock($1::integer, $2::integer)", [_signed(self._reader), partition])

    def take_charge(self, connection: Connection) -> bool:
        """Take charge of what one process does for the schema; False if another one has it."""
        return self._try(connection, self._charge, 0)

    @staticmethod
    def _try(connection: Connection, key: int, number: int) -> bool:
        row = connection.execute(
            "select pg_try_advisory_lock($1::integer, $2::integer) as taken", [_signed(key), number]
        ).fetchone()
        return bool(row and row["taken"])


READERS = """
    select l.objid::bigint as partition, a.application_name as process
    from pg_locks l join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.classid::bigint = :key
      and l.database = (select oid from pg_database where datname = current_database())"""
"""Which process reads which partition, for people; ``key`` is what ``reader_key`` returns."""


def reader_key(schema: str) -> int:
    """Return the first half of the keys of a schema's locks of partitions, as ``pg_locks`` shows it."""
    return _key(f"forebay reader {schema}")


def _key(text: str) -> int:
    return crc32(text.encode())


def _signed(key: int) -> int:
    """Return the key as the functions take it; ``pg_locks`` shows it without a sign."""
    return key - 2**32 if key >= 2**31 else key
