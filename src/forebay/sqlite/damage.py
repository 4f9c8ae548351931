"""Whether a database is sound when it is opened, and what was noted about it before.

Opening must not take longer for a longer backlog: SQLite's quick check reads every page, in 0.3 s for 500,000 events
from memory, and in seconds from a slow disk. So the check has ``CHECK_TIME`` before the database is opened, which is
enough for most; where it is not, it goes on beside the service. What it finds then, or what a statement stumbles over,
is noted in a file beside the database, and the process ends: the next opening salvages.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from threading import Timer
from typing import NamedTuple

from forebay.sqlite.connection import open_reader
from forebay.sqlite.failures import DamagedError, primary_code
from forebay.sqlite.frames import read_frames
from forebay.sqlite.swap import beside, sync_folder

CHECK_TIME = 1.0
"""Seconds for the check before a database is opened."""

logger = logging.getLogger(__name__)


class Examined(NamedTuple):
    """What an examination found.

    Attributes:
        damage: what is wrong; empty where nothing was found.
        whole: whether everything was looked at.
    """

    damage: str = ""
    whole: bool = True


def examine(path: Path, *, check_time: float = CHECK_TIME) -> Examined:
    """Examine a database that nobody has open; it is not changed.

    Raises:
        StoreError: it cannot be opened, for another reason than damage.
    """
    if noted := noted_damage(path):
        return Examined(noted)
    log = beside(path, "-wal")
    frames = read_frames(log)
    if not path.exists() or path.stat().st_size == 0:
        if frames is not None and any(frame.pages for frame in frames.frames):
            return Examined("the database file is gone or empty, its log is here")
        if marked_open(path):
            logger.error("store.file_missing", extra={"path": str(path)})
        return Examined()
    if frames is not None and frames.damaged:
        return Examined("the write-ahead log has a wrong checksum before confirmed transactions")
    if not log.exists() and marked_open(path):
        # Nothing tells what was in it: the newest epoch of the next write has its own place before it, as ever.
        logger.error("store.log_missing", extra={"path": str(log)})
    return _check(path, check_time)


def _check(path: Path, seconds: float) -> Examined:
    try:
        connection = open_reader(path)
        # From another thread: the check is one instruction to SQLite, which calls no progress handler meanwhile.
        timer = Timer(seconds, connection.interrupt)
        try:
            timer.start()
            found = connection.execute("select * from pragma_quick_check(1)").fetchall()
        finally:
            timer.cancel()
            timer.join()
            connection.close()
    except DamagedError as error:
        return Examined(str(error))
    except sqlite3.Error as error:
        if primary_code(error) == sqlite3.SQLITE_INTERRUPT:
            return Examined(whole=False)
        if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return Examined(f"the check fails: {error}")
        return Examined(whole=False)  # it is no verdict; opening tells what is the matter
    return Examined() if [tuple(row) for row in found] == [("ok",)] else Examined(f"the check fails: {found[0][0]}")


def note_damage(path: Path, reason: str) -> None:
    """Note durably that the next opening has to salvage; does nothing where that cannot be written."""
    try:
        beside(path, ".damaged").write_text(f"{reason}\n", encoding="utf-8")
        sync_folder(path.parent)
    except OSError as error:
        logger.warning("store.note_failed", extra={"error": str(error)})


def noted_damage(path: Path) -> str:
    """Return what was noted; empty if nothing was."""
    try:
        return beside(path, ".damaged").read_text(encoding="utf-8", errors="replace").strip() or "damaged"
    except OSError:
        return ""


def forget_damage(path: Path) -> None:
    """Take the note away: another database is in that place."""
    beside(path, ".damaged").unlink(missing_ok=True)


def mark_open(path: Path) -> None:
    """Note that the database is open, with its log beside it: a log that is missing later was taken away.

    The log's entry in the folder is made durable first, so that no power cut leaves the mark alone.
    """
    mark = beside(path, ".open")
    if mark.exists() or not beside(path, "-wal").exists():
        return
    try:
        sync_folder(path.parent)
        mark.touch()
        sync_folder(path.parent)
    except OSError as error:  # a full disk must not keep a node from opening
        logger.warning("store.note_failed", extra={"error": str(error)})


def marked_open(path: Path) -> bool:
    """Whether the database was not closed since it was opened."""
    return beside(path, ".open").exists()


def unmark_open(path: Path) -> None:
    """Note that the database was closed in order."""
    beside(path, ".open").unlink(missing_ok=True)
