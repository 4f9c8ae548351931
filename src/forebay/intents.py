"""What a person asks of a consumer's state: recorded by the command line or HTTP, executed by its reader alone (S7).

The command line must not write to a database that a process has open. It leaves a file beside it, which the process
takes within ``INTERVAL``, or at its next start; the outcome stands in the database, under the file's name, and an
intent is executed once however often its file is read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.closing import close_hole
from forebay.committing import Committing
from forebay.errors import ConfigurationError, StoreError
from forebay.followers import Followers
from forebay.gaps import holes
from forebay.handlers import Handlers
from forebay.intake import Failing, Taken
from forebay.parking import discard, retry
from forebay.registry import remove_node
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between looks for files."""


class Retry(msgspec.Struct, frozen=True, tag="retry"):
    """Try a parked event again now."""

    id: int


class Discard(msgspec.Struct, frozen=True, tag="discard"):
    """Give a parked event up, on record; the next of its key goes on."""

    id: int
    why: str


class CloseHole(msgspec.Struct, frozen=True, tag="close"):
    """Turn an open hole into a gap, on record; what waits behind it goes on."""

    node: str
    service: str
    epoch: str
    first: int
    last: int
    why: str


class RemoveFollower(msgspec.Struct, frozen=True, tag="remove-follower"):
    """Keep nothing any more for a service of this node that followed the one whose database this is."""

    service: str
    why: str


class RemoveNode(msgspec.Struct, frozen=True, tag="remove-node"):
    """Give up what is under way between this service and a node that will not come back, on record.

    Its open holes become gaps; the commands that it has not confirmed are dropped.
    """

    node: str
    why: str


Intent = Retry | Discard | CloseHole | RemoveFollower | RemoveNode


class Reader(Protocol):
    """What has the state of origins in its hands: a consumer, or a follower."""

    committing: Committing

    def look_again(self) -> None:
        """Take note that inbox or parking were changed."""


class Intents:
    """Executes the intents for one service. Start it with ``run``.

    Args:
        name: the service's.
        handlers: of all of its readers.
        store: the service's.
        database: where that is.
        readers: the service's own; none for one that only emits.
        followers: who follows it, where it emits.
    """

    def __init__(
        self,
        name: str,
        handlers: Handlers,
        store: UnitStore,
        database: Path,
        readers: Sequence[Reader],
        followers: Followers | None = None,
    ) -> None:
        self._name = name
        self._handlers = handlers
        self._store = store
        self._folder = folder_of(database)
        self._readers = list(readers)
        self._followers = followers

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look for files until cancelled."""
        task_status.started()
        while True:
            for path in await anyio.to_thread.run_sync(_files, self._folder):
                await self._take(path)
            await anyio.sleep(INTERVAL)

    async def execute(self, intent: Intent, name: str | None = None) -> str:
        """Execute an intent, once for each name; return the outcome in a sentence.

        Raises:
            StoreError: the database failed.
        """
        name = name or uuid.uuid4().hex
        known = await self._store.read(outcome_of, name)
        if known is not None:
            return known
        said = ""

        def run(work: UnitOfWork, failing: Failing) -> Taken:
            nonlocal said
            taken = Taken()
            match intent:
                case Retry(id=parked):
                    said = retry(work, parked)
                case Discard(id=parked, why=why):
                    said = discard(work, parked, why)
                case CloseHole():
                    hole = (intent.epoch, intent.first, intent.last)
                    said, taken = close_hole(
                        work, self._handlers, intent.node, intent.service, hole, intent.why, failing
                    )
                case RemoveFollower(service=service, why=why):
                    followers = self._followers
                    said = followers.remove(work, service, why) if followers else f"{self._name} emits nothing"
                case RemoveNode(node=node, why=why):
                    said, taken = _remove(work, self._handlers, node, why, failing)
            _record(work, name, intent, said)
            return taken

        if self._readers:
            await self._readers[0].committing.settle(run)
        else:
            await self._store.write(run, {})
        for reader in self._readers:
            reader.look_again()
        if isinstance(intent, RemoveFollower) and self._followers is not None:
            await self._followers.removed()
        logger.warning("consumer.intent_executed", extra={"consumer": self._name, "outcome": said})
        return said

    async def _take(self, path: Path) -> None:
        file = anyio.Path(path)
        try:
            intent = msgspec.json.decode(await file.read_bytes(), type=Intent)
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("consumer.intent_unreadable", extra={"path": str(path), "reason": str(error)})
            with contextlib.suppress(OSError):
                await file.rename(path.with_suffix(".unreadable"))
            return
        try:
            await self.execute(intent, path.stem)
        except StoreError as error:  # the file stays: it is tried again
            logger.warning("consumer.intent_waits", extra={"path": str(path), "reason": str(error)})
        else:
            with contextlib.suppress(OSError):
                await file.unlink()


def leave(database: Path, intent: Intent) -> str:
    """Leave an intent for the process that has the database open, or the next that does; return its name.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    folder, name = folder_of(database), uuid.uuid4().hex
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        draft = folder / f".{name}"
        with draft.open("xb") as file:
            file.write(msgspec.json.encode(intent))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / f"{name}.json")
    except OSError as error:
        raise ConfigurationError(
            f"cannot leave the request in {folder}: {error.strerror}", hint="run as the user whose database it is"
        ) from error
    return name


def outcome_of(tx: Transaction, name: str) -> str | None:
    """Return what became of an intent, or None while it waits."""
    rows = tx.execute("select outcome from forebay_intent where id = :id", id=name)
    return str(rows[0]["outcome"]) if rows else None


def folder_of(database: Path) -> Path:
    """Where intents for a database are left."""
    return database.with_suffix(".intents")


def _remove(work: UnitOfWork, handlers: Handlers, node: str, why: str, failing: Failing) -> tuple[str, Taken]:
    """Close what a node still owed this service, and drop what this service still has for it."""
    taken, closed = Taken(), 0
    while open_here := holes(work, node):
        hole = open_here[0]
        _, part = close_hole(work, handlers, node, hole.service, (hole.epoch, hole.first, hole.last), why, failing)
        if not part.missing:
            break
        closed += hole.last - hole.first + 1
        for field in Taken.__struct_fields__:
            setattr(taken, field, getattr(taken, field) + getattr(part, field))
    dropped = remove_node(work, node, why)
    return f"{node} is removed: {closed} events are gaps now, {dropped} commands are dropped", taken


def _record(tx: Transaction, name: str, intent: Intent, outcome: str) -> None:
    now = time.time_ns() // 1_000_000
    tx.execute(
        "insert into forebay_intent (id, kind, arguments, done_at, outcome)"
        " values (:id, :kind, :arguments, :now, :outcome)",
        id=name,
        kind=type(intent).__struct_config__.tag,
        arguments=msgspec.json.encode(intent).decode(),
        outcome=outcome,
        now=now,
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []
