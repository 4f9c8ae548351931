"""A destination: the service of a node that takes commands, and its reader, which may not look at the stream.

The counterpart of ``forebay.receiving`` and ``forebay.command_answering``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from forebay.identity import Origin
from forebay.protocol.confirmation import VERSION, Answer, Question
from tests.simulation.events import COMMANDS, Position
from tests.simulation.reader import Consumer, Reader

if TYPE_CHECKING:
    from tests.simulation.world import World


class Receiver(Consumer):
    """A destination's database and durable; a clone reads from the same durable, with a database of its own."""

    stream = COMMANDS

    def __init__(self, destination: str) -> None:
        super().__init__(destination, [], 1, [])
        self.destination = destination

    def needs(self, origin: Origin) -> bool:
        """Whether a command is for it."""
        return origin.destination == self.destination

    def wants(self, origin: Origin, partition: int) -> bool:  # noqa: ARG002 - there is one
        """Whether its durable's filter takes a command."""
        return origin.destination == self.destination

    def twin(self, name: str) -> Self:
        """Return the service of a cloned machine."""
        twin = type(self)(self.destination)
        twin.name, twin.db, twin.durables = name, self.db.copy(), self.durables
        twin.had, twin.seen, twin.parked_ever = set(self.had), set(self.seen), set(self.parked_ever)
        return twin

    def _reader(self, world: World, partition: int) -> Reader:
        return CommandReader(world, self, partition)


class CommandReader(Reader):
    """Reads a destination's durable: what is delivered first shows whether the database's position stands (S5)."""

    _expected: Position | None = None
    _distrusted: Position | None = None
    _left_at: int | None = None

    def sync(self) -> None:
        """Set the durable to the position itself, whose message has to come first; without it to the beginning."""
        stream, durable = self.stream, self.durable
        if not durable.registered:
            return
        position = self.consumer.db.positions.get(self.partition)
        stands = position is not None and position.incarnation == stream.created and position != self._distrusted
        self._expected = position if stands and position is not None and position.sequence else None
        begin = self._expected.sequence if self._expected else 1
        if not self._pending(begin):
            begin = 1  # nothing stands there: it would never deliver
        self.committed = 0
        durable.next, durable.delivered = begin, begin - 1
        self._left_at = begin
        if self._expected is not None and not self._world.rules.position_met:
            self.committed, self._expected = self._expected.sequence, None
            durable.next = self._left_at = self.committed + 1
        durable.lost.clear()
        self.buffer.clear()
        self.synced, self._jumped, self.incarnation = True, False, stream.created

    def fetch(self, limit: int) -> None:
        """Pull what is pending; another reader of the durable is a jump (S6)."""
        if not self.durable.registered:
            self.synced = False
        if self.synced and self.durable.next != self._left_at:
            self._begin_anew()
        if self.synced and self._expected is not None:
            self._meet(self._expected)
        super().fetch(limit)
        self._left_at = self.durable.next

    def _meet(self, expected: Position) -> None:
        """See whether the first message is the one that the position names; else read all of the stream."""
        durable, stream = self.durable, self.stream
        for sequence in stream.between(durable.next or 1):
            if not self.consumer.wants(stream.messages[sequence].origin, self.partition):
                continue
            self._expected = None
            if (sequence, stream.message_id_at(sequence)) == (expected.sequence, expected.message_id):
                self.committed = sequence
                durable.next, durable.delivered = sequence + 1, sequence
            else:
                self._distrusted = expected
                self.synced = False
            return

    def at_end(self) -> bool:
        """Whether nothing is pending or under way, and what the durable delivered was committed here."""
        return super().at_end() and self.durable.registered and self.durable.delivered <= self.committed

    def answer(self, node: str, question: Question) -> Answer | None:
        """Answer the core, which says how the stream stands (C1)."""
        if not self.synced or not self.holds_lock or not self.durable.registered:
            return None
        incarnation, end = question.incarnation or "", question.stream_end or 0
        mine = self.incarnation == incarnation
        at_end = mine and self.at_end()
        answer = self.answers[node] = Answer(
            v=VERSION,
            consumer=self.consumer.name,
            store=self.consumer.name,
            clock="",
            incarnation=incarnation,
            stream_end=end,
            position=end if at_end else min(self.committed if mine else 0, end),
            epochs=self._passed(node, question),
        )
        self._heard(node, question, incarnation, end, at_end=at_end)
        return answer
