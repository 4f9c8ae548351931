"""What a person asks of a service's state: recorded by the command line or HTTP, executed by its process alone (S7).

The command line leaves an intent where it waits (``intent_box``); the process that reads takes it within ``INTERVAL``,
or at its next start. The outcome stands in the database, under the intent's name, and an intent is executed once
however often it is read.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Protocol

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.closing import close_hole
from forebay.committing import Committing
from forebay.errors import StoreError
from forebay.followers import Followers
from forebay.gaps import holes
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS, partition_of
from forebay.intent_box import IntentBox
from forebay.partitions import NotTheReaderError
from forebay.projection import ask, stop
from forebay.redrive import discard, retry
from forebay.registry import remove_node
from forebay.relay import Relay
from forebay.taken import Failing, Taken
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between looks for what waits."""

PATIENCE = 10.0
"""Seconds for which another process's outcome is waited for."""


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


class RebuildProjection(msgspec.Struct, frozen=True, tag="rebuild"):
    """Build the service's read model anew from the archive, or let a rebuild that stands go on."""

    accept_lacking: bool = False


class StopRebuild(msgspec.Struct, frozen=True, tag="stop-rebuild"):
    """Give a rebuild up."""


class RetryWithheld(msgspec.Struct, frozen=True, tag="retry-withheld"):
    """Send again now what the broker refused for itself: its limits have changed (O4)."""


Intent = Retry | Discard | CloseHole | RemoveFollower | RemoveNode | RebuildProjection | StopRebuild | RetryWithheld


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
        box: where they wait.
        readers: the service's own; none for one that only emits.
        followers: who follows it, where it emits.
        relay: what sends its events, where it emits.
    """

    def __init__(
        self,
        name: str,
        handlers: Handlers,
        store: UnitStore,
        box: IntentBox,
        readers: Sequence[Reader],
        followers: Followers | None = None,
        relay: Relay | None = None,
    ) -> None:
        self._name = name
        self._handlers = handlers
        self._store = store
        self._box = box
        self._readers = list(readers)
        self._followers = followers
        self._relay = relay

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look for what waits until cancelled."""
        task_status.started()
        while True:
            try:
                for name, intent in (await self._box.waiting()).items():
                    await self._take(name, intent)
            except StoreError as error:
                logger.warning("consumer.intents_unknown", extra={"reason": str(error)})
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
        partition = await self._store.read(_partition_of, intent)
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
                case RebuildProjection(accept_lacking=accept_lacking):
                    said = ask(work, accept_lacking=accept_lacking)
                case StopRebuild():
                    said = stop(work)
                case RetryWithheld():
                    withheld = self._relay.withheld if self._relay is not None else 0
                    said = (
                        f"{withheld} withheld events are tried again now"
                        if withheld
                        else f"{self._name} withholds nothing"
                    )
            _record(work, name, intent, said)
            return taken

        if self._readers:
            await self._readers[0].committing.settle(run, partition=partition)
        else:
            await self._store.write(run, {})
        for reader in self._readers:
            reader.look_again()
        if isinstance(intent, RemoveFollower) and self._followers is not None:
            await self._followers.removed()
        if isinstance(intent, RetryWithheld) and self._relay is not None:
            self._relay.retry_withheld()
        logger.warning("consumer.intent_executed", extra={"consumer": self._name, "outcome": said})
        return said

    async def ask(self, intent: Intent) -> str:
        """Execute an intent, or have it executed by the process that reads its partition; return the outcome.

        Raises:
            StoreError: the database failed.
        """
        try:
            return await self.execute(intent)
        except NotTheReaderError:
            name = await self._box.leave(msgspec.json.encode(intent))
        with anyio.move_on_after(PATIENCE):
            while True:
                if (outcome := await self._store.read(outcome_of, name)) is not None:
                    return outcome
                await anyio.sleep(INTERVAL)
        return "left for the process that reads the partition"

    async def _take(self, name: str, written: bytes) -> None:
        extra = {"intent": name}
        try:
            intent = msgspec.json.decode(written, type=Intent)
        except msgspec.DecodeError as error:
            logger.warning("consumer.intent_unreadable", extra={**extra, "reason": str(error)})
            await self._box.set_aside(name)
            return
        try:
            await self.execute(intent, name)
            await self._box.remove(name)
        except NotTheReaderError:
            return  # it stays for the process that reads the partition
        except StoreError as error:  # it stays: it is tried again
            logger.warning("consumer.intent_waits", extra={**extra, "reason": str(error)})


def _partition_of(tx: Transaction, intent: Intent) -> int | None:
    """Return whose reader executes an intent; None where it concerns no partition."""
    match intent:
        case Retry(id=parked) | Discard(id=parked):
            rows = tx.execute("select partition from forebay_parked where id = :id", id=parked)
            return int(rows[0]["partition"]) if rows else None
        case CloseHole(node=node):
            return partition_of(node, PARTITIONS)
        case _:
            return None


def outcome_of(tx: Transaction, name: str) -> str | None:
    """Return what became of an intent, or None while it waits."""
    rows = tx.execute("select outcome from forebay_intent where id = :id", id=name)
    return str(rows[0]["outcome"]) if rows else None


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
