"""The databases of a data folder, opened to be looked at, also while nothing runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from forebay.errors import ConfigurationError, StoreError
from forebay.transaction import Transaction

T = TypeVar("T")

DATA = "Folder of the databases, as `forebay up` and `forebay run` have it."
"""What the option ``--data`` means to the commands that read."""


class Found(NamedTuple):
    """One service's database in a data folder."""

    node: str
    service: str
    path: Path

    def rows(self, sql: str, **params: Any) -> list[dict[str, Any]]:
        """Run a query on a read-only connection; no rows where the engine's tables are not there yet.

        Raises:
            StoreError: the database cannot be read.
        """
        from sqlite_utils import Database

        connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            database = Database(connection)
            return list(database.query(sql, params)) if database["forebay_origin"].exists() else []
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path} cannot be read: {error}", hint="is it a service's database?") from error
        finally:
            connection.close()

    @property
    def reads(self) -> bool:
        """Whether its service has ever read a stream."""
        return bool(self.rows("select 1 from forebay_position limit 1"))

    def read(self, query: Callable[[Transaction], T]) -> T | None:
        """Run a query function of the engine on a read-only connection; None where the tables are not there yet.

        Raises:
            StoreError: the database cannot be read.
        """
        from forebay.sqlite.transaction import SqliteTransaction

        connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
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


def databases(data: Path, node: str | None = None, service: str | None = None) -> Iterator[Found]:
    """Yield the databases of a data folder, the edge nodes' first, of one node or service where one is named.

    Raises:
        ConfigurationError: there is no such folder.
    """
    if not data.is_dir():
        raise ConfigurationError(f"there is no data folder {data}", hint="give --data or FOREBAY_DATA")
    for path in [*sorted(data.glob("nodes/*/*.db")), *sorted(data.glob("core/*.db"))]:
        found = Found(path.parent.name, path.stem, path)
        if node in (None, found.node) and service in (None, found.service):
            yield found
