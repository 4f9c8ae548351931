"""The databases of a data folder, opened to be looked at, also while nothing runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from forebay.errors import ConfigurationError, StoreError
from forebay.identity import PARTITIONS
from forebay.intent_box import leave_file
from forebay.stores import postgres_store
from forebay.transaction import Transaction

T = TypeVar("T")

STORE = "The PostgreSQL database of core services, instead of a data folder."
"""What the option ``--store`` means to the commands that read."""

DATA = "Folder of the databases, as `forebay up` and `forebay run` have it."
"""What the option ``--data`` means to the commands that read."""


class Found(Protocol):
    """One service's database, wherever it is."""

    @property
    def node(self) -> str:
        """The node that it belongs to."""
        ...

    @property
    def service(self) -> str:
        """The service that it belongs to."""
        ...

    @property
    def reads(self) -> bool:
        """Whether its service has ever read a stream."""
        ...

    @property
    def http(self) -> str | None:
        """Where the process that has it open answers HTTP, as ``host:port``; None where that is not known."""
        ...

    def readers(self) -> dict[int, str]:
        """Return the process that reads each partition, as far as one does."""
        ...

    def rows(self, statement: str, /, **params: Any) -> list[dict[str, Any]]:
        """Run a query on a snapshot. Raises ``StoreError``."""
        ...

    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name."""
        ...

    def read(self, query: Callable[[Transaction], T]) -> T | None:
        """Run a query function of the engine on a snapshot; None without its tables. Raises ``StoreError``."""
        ...

    def leave(self, intent: bytes) -> str:
        """Leave an intent for the process that reads; return its name."""
        ...


class FoundFile(NamedTuple):
    """One service's database in a data folder; see ``Found``."""

    node: str
    service: str
    path: Path

    def rows(self, sql: str, /, **params: Any) -> list[dict[str, Any]]:
        """Run a query on a read-only connection; no rows where the engine's tables are not there yet.

        Raises:
            StoreError: the database cannot be read.
        """
        from sqlite_utils import Database

        connection = self._connect()
        try:
            database = Database(connection)
            return list(database.query(sql, params)) if database["forebay_origin"].exists() else []
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path} cannot be read: {error}", hint="is it a service's database?") from error
        finally:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        from forebay.sqlite.library import check_library

        check_library()
        try:
            return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self.path} cannot be opened: {error}", hint="may you read it?") from error

    @property
    def reads(self) -> bool:
        """Whether its service has ever read a stream."""
        return bool(self.rows("select 1 from forebay_position limit 1"))

    @property
    def http(self) -> str | None:
        """Where the process that has it open answers HTTP."""
        from forebay.sqlite.lock import holder_of

        holder = holder_of(self.path)
        return holder.address or None if holder is not None else None

    def readers(self) -> dict[int, str]:
        """Return the process that has the file, which reads all partitions."""
        from forebay.sqlite.lock import holder_of

        holder = holder_of(self.path)
        return {} if holder is None else dict.fromkeys(range(PARTITIONS), f"process {holder.process}")

    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name."""
        return bool(self.rows("select 1 from sqlite_master where name = :name", name=name))

    def leave(self, intent: bytes) -> str:
        """Leave an intent for the process that has it open. Raises ``ConfigurationError``."""
        return leave_file(self.path, intent)

    def read(self, query: Callable[[Transaction], T]) -> T | None:
        """Run a query function of the engine on a read-only connection; None where the tables are not there yet.

        Raises:
            StoreError: the database cannot be read.
        """
        from forebay.sqlite.transaction import SqliteTransaction

        connection = self._connect()
        connection.row_factory = sqlite3.Row
        try:
            if not connection.execute("select 1 from sqlite_master where name = 'forebay_gap'").fetchone():
                return None
            connection.execute("begin")  # all of it on one snapshot
            return query(SqliteTransaction(connection, "reading", writes=False))
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path} cannot be read: {error}", hint="is it a service's database?") from error
        finally:
            connection.close()


def files(data: Path, node: str | None = None, service: str | None = None) -> Iterator[FoundFile]:
    """Yield the databases of a data folder, the edge nodes' first, of one node or service where one is named.

    Raises:
        ConfigurationError: there is no such folder.
    """
    if not data.is_dir():
        raise ConfigurationError(f"there is no data folder {data}", hint="give --data or FOREBAY_DATA")
    for path in [*sorted(data.glob("nodes/*/*.db")), *sorted(data.glob("core/*.db"))]:
        found = FoundFile(path.parent.name, path.stem, path)
        if node in (None, found.node) and service in (None, found.service):
            yield found


def databases(
    data: Path, node: str | None = None, service: str | None = None, *, store: str | None = None
) -> Iterator[Found]:
    """Yield the databases of a data folder, or of a PostgreSQL database where ``store`` is its URL.

    Raises:
        ConfigurationError: there is none.
        StoreError: the server does not answer.
    """
    if store is None:
        yield from files(data, node, service)
    else:
        postgres_store()  # says what to install, where it is missing
        from forebay.cli.schemas import schemas

        yield from schemas(store, node, service)
