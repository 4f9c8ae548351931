"""Where intents wait for their reader: files beside a SQLite database, rows of a PostgreSQL one.

The command line must not write to a SQLite database that a process has open, so it leaves a file. PostgreSQL takes rows
from anyone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Protocol

import anyio

from forebay.errors import ConfigurationError
from forebay.transaction import Store, Transaction

logger = logging.getLogger(__name__)

LIMIT = 100
"""Intents that are looked at together."""


class IntentBox(Protocol):
    """Intents that wait, each under a name that it never shares with another."""

    async def waiting(self) -> dict[str, bytes]:
        """Return what waits, by name, the oldest first. Raises ``StoreError``."""
        ...

    async def leave(self, intent: bytes) -> str:
        """Leave an intent; return its name. Raises ``StoreError`` or ``ConfigurationError``."""
        ...

    async def remove(self, name: str) -> None:
        """Take an intent out that was executed; nothing happens where it is gone. Raises ``StoreError``."""
        ...

    async def set_aside(self, name: str) -> None:
        """Take an intent out that cannot be read, and keep it for people. Raises ``StoreError``."""
        ...


class IntentFolder:
    """The files beside a SQLite database."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._folder = folder_of(database)

    async def leave(self, intent: bytes) -> str:
        """Leave a file. Raises ``ConfigurationError``."""
        return await anyio.to_thread.run_sync(leave_file, self._database, intent)

    async def waiting(self) -> dict[str, bytes]:
        """Return the files' contents by name."""
        try:
            # Here, not on a thread: it takes some microseconds, and is asked twice a second for as long as it runs.
            if not any(path.suffix == ".json" for path in self._folder.iterdir()):
                return {}
        except OSError:
            return {}
        return await anyio.to_thread.run_sync(self._read)

    async def remove(self, name: str) -> None:
        """Delete a file."""
        with contextlib.suppress(OSError):
            await anyio.Path(self._folder / f"{name}.json").unlink()

    async def set_aside(self, name: str) -> None:
        """Rename a file."""
        with contextlib.suppress(OSError):
            await anyio.Path(self._folder / f"{name}.json").rename(self._folder / f"{name}.unreadable")

    def _read(self) -> dict[str, bytes]:
        found = {}
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []:
            try:
                found[path.stem] = path.read_bytes()
            except OSError as error:
                logger.warning("consumer.intent_unreadable", extra={"intent": path.stem, "reason": str(error)})
        return found


class IntentRows:
    """The rows of a PostgreSQL database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def leave(self, intent: bytes) -> str:
        """Leave a row. Raises ``StoreError``."""
        return await self._store.write(leave_row, intent)

    async def waiting(self) -> dict[str, bytes]:
        """Return the rows' contents by id."""
        return {row[0]: row[1] for row in await self._store.read(_waiting)}

    async def remove(self, name: str) -> None:
        """Delete a row."""
        await self._store.write(_remove, name)

    async def set_aside(self, name: str) -> None:
        """Mark a row."""
        await self._store.write(_set_aside, name)


def leave_file(database: Path, intent: bytes) -> str:
    """Leave an intent for the process that has a SQLite database open, or the next that does; return its name.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    folder, name = folder_of(database), uuid.uuid4().hex
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        draft = folder / f".{name}"
        with draft.open("xb") as file:
            file.write(intent)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / f"{name}.json")
    except OSError as error:
        raise ConfigurationError(
            f"cannot leave the request in {folder}: {error.strerror}", hint="run as the user whose database it is"
        ) from error
    return name


def leave_row(tx: Transaction, intent: bytes) -> str:
    """Leave an intent in a PostgreSQL database for its reader; return its name."""
    name = uuid.uuid4().hex
    tx.execute(
        "insert into forebay_intent_waiting (id, intent, left_at) values (:id, :intent, :now)",
        id=name,
        intent=intent.decode(),
        now=time.time_ns() // 1_000_000,
    )
    return name


def folder_of(database: Path) -> Path:
    """Where intents for a SQLite database are left."""
    return database.with_suffix(".intents")


def _waiting(tx: Transaction) -> list[tuple[str, bytes]]:
    rows = tx.execute(
        "select id, intent from forebay_intent_waiting where unreadable = 0 order by left_at, id limit :limit",
        limit=LIMIT,
    )
    return [(row["id"], row["intent"].encode()) for row in rows]


def _remove(tx: Transaction, name: str) -> None:
    tx.execute("delete from forebay_intent_waiting where id = :id", id=name)


def _set_aside(tx: Transaction, name: str) -> None:
    tx.execute("update forebay_intent_waiting set unreadable = 1 where id = :id", id=name)
