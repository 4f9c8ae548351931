"""One process per database: a file lock that dies with the process that holds it (rule S7)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from forebay.errors import ConfigurationError
from forebay.sqlite.connection import make_folder


class FileLock:
    """An advisory lock on ``<path>.lock``. The kernel releases it however the process ends.

    Args:
        path: the database.
        of: what the lock is for, where that is not the database; named in the error.
    """

    def __init__(self, path: Path, *, of: Path | None = None) -> None:
        self._of = of or path
        self._path = path.with_name(f"{path.name}.lock")
        self._descriptor: int | None = None

    def acquire(self, address: str = "") -> None:
        """Take the lock at once.

        Args:
            address: where this process answers HTTP, for those who ask who has the lock.

        Raises:
            ConfigurationError: another process has it, or there can be no such file.
        """
        make_folder(self._path.parent)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"cannot open {self._path}: {error.strerror}", hint="give this user the right to, or another folder"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise ConfigurationError(
                f"{self._of} is in use by process {holder.process}", hint="stop that one, or give another data folder"
            ) from None
        with contextlib.suppress(OSError):  # who holds it is for people; a full disk must not keep a node from opening
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {address}".strip().encode() + b"\n")
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; may be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Holder(NamedTuple):
    """Who has a lock: its process, and where that answers HTTP, as ``host:port``; empty where it did not say."""

    process: str
    address: str


def holder_of(path: Path) -> Holder | None:
    """Return who has the database ``path`` open; None if nobody has."""
    try:
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> Holder:
    process, _, address = os.read(descriptor, 320).decode(errors="replace").strip().partition(" ")
    return Holder(process or "unknown", address)
