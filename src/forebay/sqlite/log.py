"""The write-ahead log's size: bounded, also beside a query that does not end.

SQLite can begin the log anew only when nobody reads a snapshot in it. Queries of this process are given a second and
are ended then. A reader of another process (a backup, a shell) cannot be ended: beside it the log may grow to
``MOST``, and then nothing more is written until it has gone. So the log has at most ``LIMIT`` bytes and what one group
of units wrote, or short ones within ``LOOK_INTERVAL``; with readers of other processes, ``MOST`` and as much.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path

from forebay.errors import StoreBusyError
from forebay.sqlite.connection import BUSY_TIMEOUT, JOURNAL_SIZE_LIMIT
from forebay.sqlite.readers import Readers

LIMIT = JOURNAL_SIZE_LIMIT
"""Bytes above which the log is begun anew after a group; smaller than the ballast, so that a full disk takes it."""

MOST = 64 * 1024 * 1024
"""Bytes at which writes wait for a reader of another process."""

ROOM = LIMIT
"""Bytes that the log's file takes from the start: freeing 1,000 rows writes about 1 MiB."""

READER_GRACE = 1.0
"""Seconds that queries under way have to end before they are interrupted; writes wait meanwhile."""

OUTSIDE_TIMEOUT = 0.2
"""Seconds that one attempt waits for readers of other processes."""

LOOK_INTERVAL = 0.02
"""Seconds between looks at a log that was short: as long as a group may take. Each look gives the interpreter away."""

logger = logging.getLogger(__name__)


class Log:
    """The log of one database, looked after on the writer's thread."""

    def __init__(self, path: Path, readers: Readers) -> None:
        self._path = path.with_name(f"{path.name}-wal")
        self._readers = readers
        self._next = LIMIT
        self._seen = MOST + 1  # nobody has looked yet
        self._looked = 0.0
        self._kept = False

    @property
    def size(self) -> int:
        """Bytes of the file; 0 where there is none."""
        try:
            self._seen = os.stat(self._path).st_size  # noqa: PTH116 - after every group: Path costs as much again
        except OSError:
            self._seen = 0
        return self._seen

    def refusal(self, connection: sqlite3.Connection) -> StoreBusyError | None:
        """Return why nothing may be written now; None if it may.

        Groups make the log long, and ``bound`` looks at it after them: there is no need to look before them, too.
        """
        if self._seen <= MOST:
            return None
        size = self.size
        if size <= MOST or self.restart(connection):
            return None
        return StoreBusyError(
            f"a reader of another process keeps the log, which has {size} bytes", hint="end that reader"
        )

    def bound(self, connection: sqlite3.Connection) -> None:
        """Begin the log anew if it is above its limit; call it between groups. Its file is cut with the next commit."""
        now = time.monotonic()
        if self._seen <= LIMIT and now < self._looked + LOOK_INTERVAL:
            return
        self._looked = now
        size = self.size
        if size <= LIMIT or (size > self._next and self.restart(connection)):
            self._next = LIMIT
            if self._kept:
                self._kept = False
                logger.info("store.log_cut", extra={"path": str(self._path)})
            return
        if size <= self._next:
            return
        self._next = size + LIMIT  # not after every group: each attempt lets writers and queries wait
        if not self._kept:
            self._kept = True
            logger.warning("store.log_kept", extra={"path": str(self._path), "bytes": size})

    def allocate(self) -> None:
        """Have room on the disk for what draining writes, in the log's own file: a full disk cannot take it away.

        SQLite reads the zeros behind the last frame as the log's end. It has no lock on this file that opening it here
        could lose.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size < ROOM:
                    os.posix_fallocate(descriptor, 0, ROOM)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("store.checkpoint_failed", extra={"error": str(error)})

    def restart(self, connection: sqlite3.Connection) -> bool:
        """Move the log into the database and begin it anew in its own file, which then needs no room on the disk.

        Returns:
            Whether it could be done: no reader outside of this process stands in the way, and the disk has room.
        """
        try:
            if _checkpoint(connection, 0.0):
                return True
            self._readers.pause(READER_GRACE)
            try:
                return _checkpoint(connection, OUTSIDE_TIMEOUT)
            finally:
                self._readers.resume()
        except sqlite3.Error as error:
            logger.warning("store.checkpoint_failed", extra={"error": str(error)})
            return False


def _checkpoint(connection: sqlite3.Connection, timeout: float) -> bool:
    """Return whether the whole log was moved, waiting at most so long for readers."""
    connection.execute(f"PRAGMA busy_timeout={int(timeout * 1000)}")
    try:
        return not connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT * 1000)}")
