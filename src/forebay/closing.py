"""Closing holes that nobody will fill: what a node says of its drops, withheld places and floor (O2 to O4, B4, B5, B7).

A statement counts once the reader has read to the stream's end as of the request that made it: until then the events
may still be on their way. What is open then comes from the archive, if there is one and it has it; the rest is a gap,
on record. Only the partition's reader does this, in the transactions of its inbox.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from forebay.archive_reading import ArchiveReader
from forebay.consumer import Consumer
from forebay.delivery import Delivery
from forebay.gaps import holes, record_gap
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS, Origin, Place, parse_place, partition_of
from forebay.inbox import Inbox, epochs_of
from forebay.intake import Intake
from forebay.parking import leave_branch
from forebay.protocol.archive import ArchivedMessage
from forebay.protocol.closing import given_up, is_beyond, known_prevs, lost, next_hole, open_below, own_branch, targets
from forebay.protocol.confirmation import OriginQuestion
from forebay.protocol.inbox import Due, OriginInbox, Step
from forebay.sequences import Range
from forebay.taken import Failing, InARow, Taken, message_id_of
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

NOT_HERE_ANY_MORE = "the node no longer has it"
DELETED = "the node no longer has it, and the archive's retention has deleted it"


Deleted = Mapping[str, Sequence[Range]]
"""Per epoch, the places that the archive had and has deleted."""


class Statement(NamedTuple):
    """What a node said of one of its origins, and the stream's end as of then."""

    node: str
    said: OriginQuestion
    incarnation: str
    stream_end: int

    @property
    def origin(self) -> Origin:
        """The origin that it speaks of."""
        return Origin(self.node, self.said.service, self.said.lane)

    @property
    def chain(self) -> dict[str, Place | None]:
        """The emitter's epochs, each with the place before it."""
        return {link.epoch: parse_place(link.prev) for link in self.said.chain}

    @property
    def floor(self) -> Place | None:
        """What the node no longer has."""
        return parse_place(self.said.floor) if self.said.floor else None

    def same(self, other: Statement) -> bool:
        """Whether the other says the same, in the same stream."""
        mine, theirs = self.said, other.said
        return (mine.floor, mine.drops, mine.withheld, self.incarnation) == (
            theirs.floor,
            theirs.drops,
            theirs.withheld,
            other.incarnation,
        )


class Closed(msgspec.Struct):
    """What closing did; ``back_to`` is the stream sequence to read again from for what was given up (B3)."""

    taken: Taken
    back_to: int | None = None


class Closing:
    """Acts on the statements of nodes for one consumer; one waits per origin, a newer one takes its place (B4)."""

    def __init__(self, consumer: Consumer, handlers: Handlers, store: UnitStore, archive: ArchiveReader | None) -> None:
        self._consumer = consumer
        self._handlers = handlers
        self._store = store
        self._archive = archive
        self._waiting: dict[Origin, Statement] = {}
        self._acting: set[Origin] = set()

    def heard(self, statement: Statement, partition: int, *, at_end: bool) -> Statement | None:
        """Take note of a statement that says something new; return the one to act on now, if any."""
        origin = statement.origin
        waiting = self._waiting.get(origin)
        if waiting is None or at_end or not waiting.same(statement):
            self._waiting[origin] = waiting = statement
        read = self._consumer.committed.get(partition, 0) >= waiting.stream_end
        if (at_end or read) and waiting.incarnation == self._consumer.incarnation and origin not in self._acting:
            return self._waiting.pop(origin)
        return None

    async def act(self, statement: Statement, partition: int) -> None:
        """Close what the statement closes.

        Raises:
            LinkError: the archive did not answer, or is not as far as the statement; the node asks again.
            StoreError: the database failed.
        """
        self._acting.add(statement.origin)
        try:
            await self._consumer.settle(decide, self._handlers, statement, partition, partition=partition)
            if statement.floor is None:
                return
            deleted = await self._fill_from_archive(statement, partition)
            closed = Closed(Taken())

            def run(work: UnitOfWork, failing: Failing) -> Taken:
                nonlocal closed
                closed = close(work, self._handlers, statement, partition, failing, deleted)
                return closed.taken

            await self._consumer.settle(run, partition=partition)
            if closed.taken.missing:
                origin = "/".join(statement.origin[:3])
                logger.error(
                    "consumer.gaps_recorded",
                    extra={"consumer": self._consumer.name, "origin": origin, "events": closed.taken.missing},
                )
            if closed.back_to is not None:
                await self._go_back(statement, partition, closed.back_to)
        finally:
            self._acting.discard(statement.origin)

    async def _fill_from_archive(self, statement: Statement, partition: int) -> Deleted:
        """Take in what the archive has; return what it had and has deleted."""
        deleted: dict[str, list[Range]] = {}
        if self._archive is None:  # as on a node: what nobody sends any more is a gap
            return deleted
        for epoch, first, last in await self._store.read(open_places, statement):
            places = deleted.setdefault(epoch, [])
            async for events in self._archive.events(
                statement.origin, epoch, first, last, upto=statement.stream_end, on_deleted=places.extend
            ):
                self._consumer.only_while_not_suspended()
                found = [delivery_of(partition, each) for each in events]
                await self._consumer.settle(take_aside, self._handlers, found, partition=partition)
        return deleted

    async def _go_back(self, statement: Statement, partition: int, sequence: int) -> None:
        position = (await self._consumer.position_before(sequence))._replace(incarnation=statement.incarnation)
        self._consumer.rewind(partition, position, partial(forget_given_up, statement=statement, back_to=sequence))


def says_something(tx: Transaction, statement: Statement) -> bool:
    """Whether a statement closes, drops or withholds a place that the inbox has not passed as it says."""
    if not statement.said.drops and not statement.said.withheld and not _is_open(tx, statement):
        return False  # as nearly always, and the epochs of a node may be many
    said, known = statement.said, Inbox(tx).whole(statement.node, statement.said.service)
    if any(not _passed(known, each.epoch, each.last) for each in said.drops):
        return True
    if any(not _passed(known, each.epoch, each.sequence) for each in said.withheld):
        return True
    if any(state.wanted for state in known.epochs.values() if state.lane == said.lane):
        return True
    return statement.floor is not None and is_beyond(known, said.lane, statement.floor, statement.chain)


def _is_open(tx: Transaction, statement: Statement) -> bool:
    """Whether a floor may have something to close: an origin that is not passed up to it, or that holds or wants."""
    floor = statement.floor
    if floor is not None:
        reached = epochs_of(tx, statement.node, statement.said.service, [floor.epoch]).get(floor.epoch)
        if reached is None or reached.passed.watermark < floor.sequence:
            return True
    return bool(
        tx.execute(
            "select 1 from forebay_inbox where node = :node and service = :service and lane = :lane"
            " and (held <> '[]' or wanted <> '[]' or decided <> '{}') limit 1",
            node=statement.node,
            service=statement.said.service,
            lane=statement.said.lane,
        )
    )


def open_places(tx: Transaction, statement: Statement) -> list[tuple[str, int, int]]:
    """Return what a statement's floor closes and the archive may have, the oldest first."""
    floor, known = statement.floor, Inbox(tx).whole(statement.node, statement.said.service)
    if floor is None:
        return []
    upto = targets(known, statement.said.lane, floor, statement.chain)
    wanted = [(place.epoch, place.sequence, place.sequence) for place in lost(known, upto, _listed(statement, known))]
    return [*wanted, *open_below(known, upto)]


def decide(
    work: UnitOfWork, handlers: Handlers, statement: Statement, partition: int, failing: Failing | None = None
) -> Taken:
    """Take note of drops and withheld places, and pass what they let pass."""
    intake = Intake(work, handlers, failing=failing)
    origin, said = statement.origin, statement.said
    known = intake.inbox.whole(origin.node, origin.service)
    prevs = known_prevs(known, origin.lane, statement.chain)
    for place in known.drop([(each.epoch, each.first, each.last) for each in said.drops], origin.lane, prevs):
        _lose(work, intake, origin, known, place, "drop", "the node's budget pushed it out while it was withheld")
    known.withhold([(each.epoch, each.sequence, each.key) for each in said.withheld], origin.lane, prevs)
    intake.drain(origin, known, partition)
    return intake.finish()


def take_aside(
    work: UnitOfWork, handlers: Handlers, deliveries: list[Delivery], failing: Failing | None = None
) -> Taken:
    """Take events that did not come from the stream: its position stays where it is.

    Where too many in a row fail (F2), those behind them are left: whoever asked for them stops, and asks again later.
    """
    intake = Intake(work, handlers, failing=failing)
    row = InARow(failing or {})
    for index, delivery in enumerate(deliveries):
        if row.full:
            break
        applied = intake.taken.applied
        intake.take(index, delivery)
        row.note(message_id_of(delivery.headers), applied=intake.taken.applied > applied)
    return intake.finish()


def close(
    work: UnitOfWork,
    handlers: Handlers,
    statement: Statement,
    partition: int,
    failing: Failing | None = None,
    deleted: Deleted | None = None,
) -> Closed:
    """Pass what lies below a statement's floor: what is held takes effect, what nobody has is a gap."""
    intake = Intake(work, handlers, failing=failing)
    origin, floor = statement.origin, statement.floor
    if floor is None:
        return Closed(intake.taken)
    known = intake.inbox.whole(origin.node, origin.service)
    prevs = known_prevs(known, origin.lane, statement.chain)
    upto = targets(known, origin.lane, floor, statement.chain)
    own = own_branch(floor, prevs)
    branched = False
    for place in lost(known, upto, _listed(statement, known)):
        _lose(work, intake, origin, known, place, "gap", _why(deleted, place.epoch, place.sequence, place.sequence))
        branched |= _leave(known, place.epoch, place.sequence, own)
    intake.drain(origin, known, partition)
    while (hole := next_hole(known, upto)) is not None:
        known.take_on(hole.epoch, origin.lane, prevs.get(hole.epoch))
        intake.skip(origin, known, Step(Due.DROPPED, *hole), "gap", _why(deleted, hole.epoch, hole.first, hole.last))
        branched |= _leave(known, hole.epoch, hole.last, own)
        intake.drain(origin, known, partition)
    if branched:
        leave_branch(work, origin, known.abandoned)
    return Closed(intake.finish(), given_up(known, upto))


def close_hole(
    work: UnitOfWork,
    handlers: Handlers,
    node: str,
    service: str,
    hole: tuple[str, int, int],
    why: str,
    failing: Failing | None = None,
) -> tuple[str, Taken]:
    """Turn an open hole (epoch, first, last) into a gap because a person says so; return the outcome in a sentence."""
    epoch, first, last = hole
    intake = Intake(work, handlers, failing=failing)
    known = intake.inbox.whole(node, service)
    open_here = [each for each in holes(work, node) if (each.service, each.epoch) == (service, epoch)]
    if not any((each.first, each.last) == (first, last) for each in open_here):
        return f"{epoch} {first}-{last} is not an open hole of {node}/{service}: `forebay gaps ls` lists them", Taken()
    if open_here[0].first != first:
        return f"{open_here[0].first}-{open_here[0].last} of the same epoch comes before it: close that first", Taken()
    origin = Origin(node, service, open_here[0].lane)
    known.take_on(epoch, origin.lane, None)
    intake.skip(origin, known, Step(Due.DROPPED, epoch, first, last), "gap", f"closed by a person: {why}")
    intake.drain(origin, known, partition_of(node, PARTITIONS))
    return f"{epoch} {first}-{last} is a gap now", intake.finish()


def close_deleted(
    work: UnitOfWork,
    handlers: Handlers,
    origin: Origin,
    epoch: str,
    deleted: Sequence[Range],
    failing: Failing | None = None,
) -> Taken:
    """Turn what the archive's retention deleted into a gap, as far as it is what an epoch waits for."""
    intake = Intake(work, handlers, failing=failing)
    known = intake.inbox.whole(origin.node, origin.service)
    known.take_on(epoch, origin.lane, None)
    passed = known.epochs[epoch].passed
    for first, last in deleted:
        upto = min(last, passed.ranges[0][0] - 1) if passed.ranges else last
        if first <= passed.watermark + 1 <= upto:
            step = Step(Due.DROPPED, epoch, passed.watermark + 1, upto)
            intake.skip(origin, known, step, "gap", DELETED)
    intake.drain(origin, known, partition_of(origin.node, PARTITIONS))
    return intake.finish()


def forget_given_up(work: UnitOfWork, statement: Statement, back_to: int) -> None:
    """Forget what was given up and is met again, where the stream is read again from ``back_to``."""
    inbox = Inbox(work)
    for state in inbox.whole(statement.node, statement.said.service).epochs.values():
        if state.lane == statement.said.lane and state.given_up is not None and state.given_up[2] >= back_to:
            state.given_up, state.changed = None, True
    inbox.save()


def _lose(
    work: UnitOfWork, intake: Intake, origin: Origin, known: OriginInbox, place: Place, kind: str, reason: str
) -> None:
    known.lose(place)
    intake.parking.lose(origin, place)
    record_gap(work, origin, place.epoch, (place.sequence, place.sequence), kind, reason)
    intake.taken.missing += 1


def _why(deleted: Deleted | None, epoch: str, first: int, last: int) -> str:
    """Say why nobody has some places."""
    there = (deleted or {}).get(epoch, [])
    return DELETED if any(low <= last and high >= first for low, high in there) else NOT_HERE_ANY_MORE


def _leave(known: OriginInbox, epoch: str, sequence: int, own: Mapping[str, int]) -> bool:
    """Note that a gap lies beyond the emitter's own chain: what descends from there is emitted again (B5)."""
    last = own.get(epoch, 0)
    if sequence <= last:
        return False
    state = known.epochs[epoch]
    state.abandoned_after = last if state.abandoned_after is None else min(last, state.abandoned_after)
    state.changed = True
    return True


def _listed(statement: Statement, known: OriginInbox) -> set[Place]:
    listed = {Place(each.epoch, each.sequence) for each in statement.said.withheld}
    for each in statement.said.drops:
        state = known.epochs.get(each.epoch)
        for first, last in state.wanted if state else ():
            listed |= {Place(each.epoch, at) for at in range(max(first, each.first), min(last, each.last) + 1)}
    return listed


def _passed(known: OriginInbox, epoch: str, sequence: int) -> bool:
    state = known.epochs.get(epoch)
    return state is not None and state.passed.watermark >= sequence


def delivery_of(partition: int, event: ArchivedMessage) -> Delivery:
    """Return an archived event as the stream delivered it, but for its place there."""
    return Delivery(partition, 0, event.stored_at, event.subject, event.headers, event.body)
