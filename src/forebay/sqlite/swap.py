"""Putting another file in a database's place, so that a crash at any line leaves the one or the other.

What is replaced is never deleted: it is set aside under another name, with its log.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from forebay.errors import StoreError


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make a file's contents durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(path: Path, suffix: str) -> Path:
    """Return the file ``<name><suffix>`` in the same folder."""
    return path.with_name(f"{path.name}{suffix}")


def replace(path: Path, new: Path, *, why: str) -> Path | None:
    """Put ``new`` in the place of the database ``path``, and what was there aside.

    ``new`` is whole, synced, in the same folder and without a log. Calling it again after a crash goes on where it
    ended: ``new`` is moved last.

    Args:
        path: the database; there may be none. Nobody has it open.
        new: the file that takes its place.
        why: one word that the names of the old files get, such as ``damaged``.

    Returns:
        Where the old database is now; None if there was nothing.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        aside = None
        log = beside(path, "-wal")
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
        if any(beside(path, suffix).exists() for suffix in ("", "-wal")):
            aside = _unused(path, why)
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    beside(path, suffix).rename(beside(aside, suffix))
        beside(path, "-shm").unlink(missing_ok=True)
        sync_folder(path.parent)
        new.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot put {new} in the place of {path}: {error.strerror}") from error
    return aside


def _unused(path: Path, why: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    names = [f"{path.name}.{why}-{stamp}", *(f"{path.name}.{why}-{stamp}-{number}" for number in range(2, 1000))]
    free = (path.with_name(name) for name in names)
    return next(each for each in free if not each.exists() and not beside(each, "-wal").exists())
