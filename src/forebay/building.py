"""One attempt at a rebuild: passes over the archive into the tables beside, each smaller than the one before (F3).

What is due is replayed in the archive's own order, which is nearly the order in which it happened over all origins;
what the archive does not have in the order of its origin, and what had its effect later, is read by its place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio

from forebay.archive_reading import ArchiveReader
from forebay.closing import delivery_of
from forebay.consumer import Consumer
from forebay.crash_points import reach
from forebay.delivery import Delivery
from forebay.envelope import identify
from forebay.errors import ForebayError, LinkError, MessageError
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS, parse_message_id, partition_of
from forebay.positions import positions_of
from forebay.projection import Effects, Lacking, Rebuild, advance, asked, effects, had_effect
from forebay.protocol.archive import ArchivedMessage
from forebay.protocol.rebuilding import Plan
from forebay.replaying import Progress, Step, begin, later, load, passed, plan, progress, replay
from forebay.sequences import within
from forebay.taken import HandlerFailedError
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

REST = 0.5
"""Pause after each step, as a part of the time that it took: the consumer of the same process goes first."""

TOLD = 1.0
"""Seconds between notes of how far it is, for people."""


class StandsError(ForebayError):
    """A rebuild cannot go on until somebody does something; the message says what."""


class GivenUpError(ForebayError):
    """Somebody gave the rebuild up meanwhile."""


class Building:
    """One attempt: its plan is in memory, and on the disk with each step.

    Args:
        rebuild: what was asked for.
        handlers: the service's.
        consumer: whose inbox says what had an effect.
        store: where that is.
        beside: the tables that are built.
        archive: what is read.

    Attributes:
        replayed: events, over all attempts.
        lacking: what the latest pass did not find in the archive.
        effects: what had an effect when the latest pass was planned.
    """

    def __init__(
        self,
        rebuild: Rebuild,
        handlers: Handlers,
        consumer: Consumer,
        store: UnitStore,
        beside: UnitStore,
        archive: ArchiveReader,
    ) -> None:
        self._rebuild = rebuild
        self._handlers = handlers
        self._consumer = consumer
        self._store = store
        self._beside = beside
        self._archive = archive
        self._plan = Plan([])
        self._position = self._end = self._seen_before = 0
        self._archive_id = ""
        self._planned = False
        self._began_at = 0
        self._told_at = 0.0
        self.replayed = 0
        self.lacking: list[Lacking] = []
        self.effects: list[Effects] = []

    async def begun(self, version: int, seen_before: int) -> Progress:
        """Take up what is there, or begin.

        Args:
            version: of the read model that the handlers make.
            seen_before: milliseconds since 1970; the inbox has met what was archived before.

        Raises:
            StandsError: the archive is another one than before.
            LinkError, TopologyError: the archive cannot be read now.
        """
        page = await self._archive.scan(0, self._handlers.services, 1)
        known = await self._beside.read(progress)
        if known is None:
            await self._beside.write(begin, self._rebuild.id, version, page.store, page.end, seen_before)
            known = await self._beside.read(progress)
        if known is None or known.archive != page.store:
            raise StandsError(
                "the archive is another one than before: `forebay projection stop` gives this rebuild up, begin another"
            )
        self._position, self._end, self._seen_before = known.position, known.archive_end, known.seen_before
        self._began_at = known.started_at
        self._archive_id, self._planned, self.replayed = known.archive, known.planned, known.replayed
        if known.planned:
            self._plan = await self._beside.read(load)
        return known

    async def run_pass(self, *, still: bool) -> int:
        """Replay what had an effect as of now; return how many events that were.

        Args:
            still: nothing takes effect meanwhile: then what the archive does not have is ``lacking``.

        Raises:
            StandsError: an event cannot be replayed.
            GivenUpError: nobody wants it any more.
            LinkError: the archive does not answer, or is not as far as the consumer.
        """
        before = self.replayed
        if not self._planned or still:
            self.effects = await self._store.read(effects)
            self._plan = await self._beside.write(plan, self.effects)
            self._plan.saved()
        await self._scan(still)
        await self._foreign(still)
        read = await self._store.read(positions_of, self._consumer.stream)
        self.lacking = []
        for each, (first, last) in self._plan.left():
            partition = partition_of(each.origin.node, PARTITIONS)
            # Only a pass in which nothing takes effect may conclude anything from what the archive does not have.
            upto = read[partition].sequence if still and partition in read else 0
            async for events in self._archive.events(each.origin, each.epoch, first, last, upto=upto):
                found = [event for event in events if within(event.sequence, each.todo)]
                for event in found:
                    each.take(event.sequence)
                await self._apply(self._step(found), still)
            left = [(max(first, low), min(last, high)) for low, high in each.todo if low <= last and high >= first]
            self.lacking += [Lacking(each.origin, each.epoch, *places) for places in left]
        await self._beside.write(passed)
        self._planned = False
        return self.replayed - before

    async def _scan(self, still: bool) -> None:
        """Replay in the archive's order, up to its end."""
        while True:
            page = await self._archive.scan(self._position, self._handlers.services)
            if page.store != self._archive_id:
                raise LinkError("the archive was replaced")
            put_off: list[int] = []
            due = [event for event in page.events if await self._is_due(event, put_off)]
            self._position, self._end = page.position, page.end
            await self._apply(self._step(due, later=put_off), still)
            if not page.more:
                return

    async def _is_due(self, event: ArchivedMessage, put_off: list[int]) -> bool:
        """Whether an event is to be replayed now; its place is done then."""
        identity = identify(event.subject, event.headers)
        message_id = parse_message_id(event.headers["Nats-Msg-Id"])
        if message_id is None:
            seen = event.stored_at < self._seen_before * 1_000_000
            key = identity.node, identity.service, event.headers["Nats-Msg-Id"]

            def look(tx: Transaction) -> bool:
                return had_effect(tx, *key, seen=seen)

            if not await self._store.read(look):
                put_off.append(event.sequence)
                return False
            return True
        place = identity.node, identity.service, message_id.epoch, message_id.first
        if not self._plan.due(*place):
            return False
        self._plan.take(*place)
        return True

    async def _foreign(self, still: bool) -> None:
        """Look again at foreign events that had no effect when they were met."""
        for position in await self._beside.read(later):
            page = await self._archive.scan(position - 1, self._handlers.services, 1)
            due = [event for event in page.events if event.sequence == position and await self._is_due(event, [])]
            if due or not page.events or page.events[0].sequence != position:
                await self._apply(self._step(due, came=[position]), still)

    def _step(self, events: Sequence[ArchivedMessage], *, later: Sequence[int] = (), came: Sequence[int] = ()) -> Step:
        return Step(
            deliveries=_deliveries(events),
            before=self.replayed,
            position=self._position,
            end=self._end,
            later=list(later),
            came=list(came),
        )

    async def _apply(self, step: Step, still: bool) -> None:
        begun = time.monotonic()
        try:
            await self._write(step)
        except (HandlerFailedError, MessageError) as error:
            raise StandsError(f"{error}; correct the handler, then let the rebuild go on") from error
        self.replayed += len(step.deliveries)
        reach("rebuild.stepped")
        if begun - self._told_at >= TOLD:
            self._told_at = begun
            far = self.replayed, self._position, self._end, self._began_at
            await self._store.write(advance, self._rebuild, *far)
        now = await self._store.read(asked)
        if now is None or now.id != self._rebuild.id:
            raise GivenUpError("the rebuild was given up")
        if not still:
            await anyio.sleep((time.monotonic() - begun) * REST)

    async def _write(self, step: Step) -> None:
        try:
            await self._beside.write(replay, self._handlers, step, self._plan, one_by_one=False)
            self._plan.saved()
        except HandlerFailedError as error:
            if error.alone:
                raise
            await self._beside.write(self._find_failing, step)

    def _find_failing(self, work: UnitOfWork, step: Step) -> None:
        """Raise what tells which event of a batch it is; nothing of it is kept."""
        replay(work, self._handlers, step, self._plan, one_by_one=True)
        raise StandsError("a handler failed on a batch of events, and on none of them alone")


def _deliveries(events: Sequence[ArchivedMessage]) -> list[Delivery]:
    return [delivery_of(partition_of(event.subject.split(".")[2], PARTITIONS), event) for event in events]
