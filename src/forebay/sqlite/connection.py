"""How connections to one SQLite file are set up.

WAL with ``synchronous=FULL`` lost no acknowledged row in replayed power cuts where ``NORMAL`` did. The WAL is kept
small by early checkpoints and a size limit, so that a full disk can be got out of. Memory stays bounded: no mmap, and
a page cache of 2 MB a connection.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forebay.errors import ConfigurationError, StoreError
from forebay.sqlite.failures import primary_code, store_error

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another connection's lock."""
MIN_BYTES = 64 * 1024
"""The least ``max_bytes`` that is not refused: a schema alone takes some pages."""

_WAL_AUTOCHECKPOINT = 256  # pages
JOURNAL_SIZE_LIMIT = 4 * 1024 * 1024
"""Bytes that the log keeps after a checkpoint."""

_CACHE_SIZE = -2000  # negative: KiB
_UNUSABLE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY})

Connect = Callable[..., sqlite3.Connection]
"""``sqlite3.connect`` or a stand-in for it."""


def make_folder(folder: Path) -> None:
    """Create ``folder`` and what is missing above it, durably.

    SQLite syncs the folder of its files, but not the entry of that folder itself: after a power cut it could be gone.

    Raises:
        ConfigurationError: it cannot be created.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        raise ConfigurationError(
            f"cannot create the folder {folder} of the database: {error.strerror}",
            hint="create it, or give the service's user the right to, or choose another path",
        ) from error


def open_writer(
    path: Path, max_bytes: int | None, connect: Connect = sqlite3.connect, *, create: bool = True
) -> sqlite3.Connection:
    """Open the one connection that writes; usable on the calling thread alone.

    Args:
        path: the database file, absolute; its folder must exist.
        max_bytes: the most that the file may grow to; None for no limit.
        connect: opens the connection.
        create: whether a missing file is created; never in a reopening, where that would be a loss in silence.

    Raises:
        StoreError: the file cannot be opened, is no database, or cannot have a write-ahead log.
    """
    with _told(path):
        uri = f"{path.as_uri()}?mode={'rwc' if create else 'rw'}"
        connection = connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            _set_up_writer(connection, max_bytes)
        except BaseException:
            connection.close()
            raise
    return connection


def open_reader(path: Path, connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """Open a connection that can only read; any thread may use it, one at a time.

    Raises:
        StoreError: the file cannot be opened.
    """
    with _told(path):
        uri = f"{path.as_uri()}?mode=ro"
        connection = connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            _pragma(connection, "query_only", "ON")
            _bound_memory(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def truncate_log(connection: sqlite3.Connection) -> None:
    """Move the whole write-ahead log into the database, synced, and cut it to nothing.

    Raises:
        StoreError: it failed, or some connection still holds a snapshot.
    """
    try:
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.Error as error:
        raise store_error(error, "the checkpoint of the write-ahead log") from error
    if busy:
        raise StoreError("the checkpoint of the write-ahead log waits for a reader of another process")


def _set_up_writer(connection: sqlite3.Connection, max_bytes: int | None) -> None:
    connection.row_factory = sqlite3.Row
    # It counts only before the first page is written, which switching to WAL does.
    _pragma(connection, "auto_vacuum", "INCREMENTAL")
    mode = _pragma(connection, "journal_mode", "WAL")
    if mode != "wal":
        raise StoreError(
            f"the database has no write-ahead log: its journal mode is {mode!r}", hint="keep it on a local file system"
        )
    _pragma(connection, "synchronous", "FULL")
    _pragma(connection, "wal_autocheckpoint", _WAL_AUTOCHECKPOINT)
    _pragma(connection, "journal_size_limit", JOURNAL_SIZE_LIMIT)
    # Some builds write zeros over every page that is freed: wear, and freeing would need room on a full disk.
    _pragma(connection, "secure_delete", "OFF")
    _pragma(connection, "foreign_keys", "ON")
    _bound_memory(connection)
    if max_bytes is not None:
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        _pragma(connection, "max_page_count", max_bytes // page_size)


def _bound_memory(connection: sqlite3.Connection) -> None:
    _pragma(connection, "mmap_size", 0)
    _pragma(connection, "cache_size", _CACHE_SIZE)
    _pragma(connection, "temp_store", "MEMORY")


def _pragma(connection: sqlite3.Connection, name: str, value: str | int) -> Any:
    row = connection.execute(f"PRAGMA {name}={value}").fetchone()
    return None if row is None else row[0]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn SQLite's failures into a ``StoreError`` that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        known = store_error(error, f"opening the database {path}")
        if primary_code(error) in _UNUSABLE:
            known.hint = "check that it is a SQLite file which the service's user may read and write"
        raise known from error
