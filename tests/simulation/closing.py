"""Acting on what nodes say of their places, a transaction at a time: the counterpart of ``forebay.closing``.

What a floor closes, what is beyond it and where to read again from are told by ``forebay.protocol.closing``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from forebay.identity import Origin, Place, parse_place
from forebay.protocol.closing import given_up, is_beyond, known_prevs, lost, next_hole, open_below, own_branch, targets
from forebay.protocol.confirmation import OriginQuestion
from tests.simulation.events import ARCHIVE, Position
from tests.simulation.intake import Intake

if TYPE_CHECKING:
    from forebay.protocol.inbox import OriginInbox
    from tests.simulation.reader import Reader
    from tests.simulation.world import World


class Statement(NamedTuple):
    """What a node said of one of its origins, and the stream's end as of then (B4)."""

    origin: Origin
    said: OriginQuestion
    incarnation: str
    stream_end: int

    @property
    def floor(self) -> Place | None:
        """What the node no longer has."""
        return parse_place(self.said.floor) if self.said.floor else None

    @property
    def chain(self) -> dict[str, Place | None]:
        """The node's epochs, each with the place before it."""
        return {link.epoch: parse_place(link.prev) for link in self.said.chain}

    def same(self, other: Statement) -> bool:
        """Whether the other says the same, in the same stream."""
        mine, theirs = self.said, other.said
        return (mine.floor, mine.drops, mine.withheld, self.incarnation) == (
            theirs.floor,
            theirs.drops,
            theirs.withheld,
            other.incarnation,
        )


class Closing:
    """Acts on statements for one reader; one waits per origin, a newer one takes its place (B4)."""

    def __init__(self, world: World, reader: Reader) -> None:
        self._world = world
        self._reader = reader
        self._consumer = reader.consumer
        self._waiting: dict[Origin, Statement] = {}
        self._acting: set[Origin] = set()

    def heard(self, statement: Statement, *, at_end: bool) -> Statement | None:
        """Take note of a statement that says something new; return the one that counts now, if any."""
        if not self._says_something(statement):
            return None
        origin, reader = statement.origin, self._reader
        waiting = self._waiting.get(origin)
        if waiting is None or at_end or not waiting.same(statement):
            self._waiting[origin] = waiting = statement
        read = at_end or reader.committed >= waiting.stream_end or not self._world.rules.read_to_end
        if read and waiting.incarnation == reader.incarnation and origin not in self._acting:
            return self._waiting.pop(origin)
        return None

    def act(self, statement: Statement) -> Iterator[None]:
        """Close what a statement closes; between the transactions, where it yields, others may come."""
        self._acting.add(statement.origin)
        try:
            if not self._reader.holds_lock:
                return
            self._decide(statement)
            if statement.floor is None:
                return
            for epoch, first, last in self._open_places(statement, statement.floor):
                yield
                events = self._world.archived(statement.origin, epoch, first, last, statement.stream_end)
                if events is None or not self._reader.holds_lock:
                    return  # the archive is not that far: the node says it again
                intake = Intake(self._world, self._consumer)
                for event in events:
                    intake.take(event, 0)
                intake.finish()
            yield
            if self._reader.holds_lock:
                self._close(statement, statement.floor)
        finally:
            self._acting.discard(statement.origin)

    def _says_something(self, statement: Statement) -> bool:
        said, rows = statement.said, self._consumer.db.epochs.get(statement.origin[:2], {})
        places = [Place(each.epoch, each.last) for each in said.drops]
        places += [Place(each.epoch, each.sequence) for each in said.withheld]
        if any(place.epoch not in rows or rows[place.epoch][2] < place.sequence for place in places):
            return True
        if any(row[5] for row in rows.values() if row[0] == said.lane):
            return True
        if statement.floor is None:
            return False
        inbox = Intake(self._world, self._consumer).whole(statement.origin)
        return is_beyond(inbox, said.lane, statement.floor, statement.chain)

    def _open_places(self, statement: Statement, floor: Place) -> list[tuple[str, int, int]]:
        if self._consumer.name == ARCHIVE or self._consumer.destination or not self._world.rules.ask_archive:
            return []
        inbox = Intake(self._world, self._consumer).whole(statement.origin)
        upto = targets(inbox, statement.origin.lane, floor, statement.chain)
        wanted = lost(inbox, upto, _listed(statement))
        return [*((place.epoch, place.sequence, place.sequence) for place in wanted), *open_below(inbox, upto)]

    def _decide(self, statement: Statement) -> None:
        """Take note of drops and withheld places, and pass what they let pass (O3, O4)."""
        intake, origin, said = Intake(self._world, self._consumer), statement.origin, statement.said
        inbox = intake.whole(origin)
        prevs = known_prevs(inbox, origin.lane, statement.chain)
        for place in inbox.drop([(each.epoch, each.first, each.last) for each in said.drops], origin.lane, prevs):
            intake.lose(origin, inbox, place, "dropped")
        inbox.withhold([(each.epoch, each.sequence, each.key) for each in said.withheld], origin.lane, prevs)
        intake.drain(origin, inbox)
        intake.finish()

    def _close(self, statement: Statement, floor: Place) -> None:
        """Pass what lies below a floor: what is held takes effect, what nobody has is a gap (B4, B5, B7)."""
        world, origin, intake = self._world, statement.origin, Intake(self._world, self._consumer)
        inbox = intake.whole(origin)
        prevs = known_prevs(inbox, origin.lane, statement.chain)
        upto = targets(inbox, origin.lane, floor, statement.chain)
        own = own_branch(floor, prevs)
        if not world.rules.go_back:
            _forget_given_up(inbox, origin.lane, 0)
        for place in lost(inbox, upto, _listed(statement)) if world.rules.resolve else ():
            world.oracle.closed(world, self._consumer, origin, place, statement.stream_end)
            intake.lose(origin, inbox, place, "gap")
            _leave(inbox, place.epoch, place.sequence, own)
        intake.drain(origin, inbox)
        while (hole := next_hole(inbox, upto)) is not None:
            inbox.take_on(hole.epoch, origin.lane, prevs.get(hole.epoch))
            for sequence in range(hole.first, hole.last + 1):
                world.oracle.closed(world, self._consumer, origin, Place(hole.epoch, sequence), statement.stream_end)
            intake.skip(inbox, hole.epoch, hole.last, "gap")
            _leave(inbox, hole.epoch, hole.last, own)
            intake.drain(origin, inbox)
        intake.leave_branch(origin, inbox)
        back_to = given_up(inbox, upto)
        if back_to is not None:
            _forget_given_up(inbox, origin.lane, back_to)
        intake.finish()
        if back_to is not None:
            self._go_back(back_to)

    def _go_back(self, sequence: int) -> None:
        world, reader, before = self._world, self._reader, sequence - 1
        world.say("GO BACK", self._consumer.name, "to", sequence)
        if not world.rules.forget_with_position and world.chance(0.5):
            self._consumer.take_over(world, reader.partition)  # a crash in between
            return
        # A destination may not look at the stream: it reads all of it again.
        message_id = None if self._consumer.destination else reader.stream.message_id_at(before)
        position = Position(reader.incarnation, before if message_id else 0, message_id or "")
        self._consumer.db.positions[reader.partition] = position
        reader.synced = False


def _forget_given_up(inbox: OriginInbox, lane: str, back_to: int) -> None:
    """Forget what will be met again when the stream is read from ``back_to``."""
    for state in inbox.epochs.values():
        if state.lane == lane and state.given_up is not None and state.given_up[2] >= back_to:
            state.given_up, state.changed = None, True


def _leave(inbox: OriginInbox, epoch: str, sequence: int, own: dict[str, int]) -> None:
    """Note that a gap lies beyond the emitter's own chain: what descends from there is emitted again (B5)."""
    last = own.get(epoch, 0)
    if sequence > last:
        state = inbox.epochs[epoch]
        state.abandoned_after = last if state.abandoned_after is None else min(last, state.abandoned_after)
        state.changed = True


def _listed(statement: Statement) -> set[Place]:
    listed = {Place(each.epoch, each.sequence) for each in statement.said.withheld}
    for each in statement.said.drops:
        listed |= {Place(each.epoch, sequence) for sequence in range(each.first, each.last + 1)}
    return listed
