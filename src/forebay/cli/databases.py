"""The databases of a data folder, opened to be looked at, also while nothing runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from forebay.errors import ConfigurationError, StoreError

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
