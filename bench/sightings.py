"""When each effect was first seen in a consumer's database, from outside of its process."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

LOOK = 0.0005
"""Seconds between two looks: what a sighting may be late by."""


class Sightings:
    """Looks in a thread of its own; ``times`` is number → ``time.perf_counter()``, for the first effect of each.

    A look costs a read of a counter unless something was committed.
    """

    def __init__(self, path: Path, table: str = "effect") -> None:
        self.times: dict[int, float] = {}
        self.numbers: list[int] = []
        self.failed: Exception | None = None
        self._path = path
        self._table = table
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="sightings", daemon=True)

    def __enter__(self) -> Sightings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        try:
            connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
            position, version = 0, -1
            while not self._ended.wait(LOOK):
                now = connection.execute("pragma data_version").fetchone()[0]
                if now == version:
                    continue
                version = now
                query = f"select rowid, number from {self._table} where rowid > ? order by rowid"
                rows = connection.execute(query, (position,)).fetchall()
                seen = time.perf_counter()
                for position, number in rows:  # noqa: B007 - the last one counts
                    self.numbers.append(number)
                    self.times.setdefault(number, seen)
            connection.close()
        except sqlite3.Error as error:
            self.failed = error
