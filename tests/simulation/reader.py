"""A consumer and its readers: the counterpart of ``forebay.consumer`` and ``forebay.answering``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.identity import Origin, Place, parse_message_id, partition_of
from forebay.protocol.confirmation import VERSION, Answer, EpochAnswer, Question
from tests.simulation.broker import Durable, Stream
from tests.simulation.closing import Closing, Statement
from tests.simulation.database import Database, Outbox
from tests.simulation.events import EVENTS, Body, Message, Position
from tests.simulation.intake import Intake

if TYPE_CHECKING:
    from tests.simulation.world import World


class Consumer:
    """A consumer: its database, its durables, and the reader that holds the lock of each partition.

    ``destination`` is set where it takes commands. ``had`` and ``seen`` are the oracle's: the places that it ever had
    or gave up, and those that it ever passed.
    """

    stream = EVENTS
    destination = ""

    def __init__(self, name: str, services: list[str], partitions: int, outboxes: list[Outbox]) -> None:
        self.name = name
        self.services = services
        self.partitions = partitions
        self.db = Database(outboxes)
        self.durables = [Durable() for _ in range(partitions)]
        self.readers: dict[int, Reader] = {}
        self.active = True
        self.had: set[Place] = set()
        self.seen: set[Place] = set()
        self.parked_ever: set[Body] = set()
        self._wanted: dict[tuple[Origin, int], bool] = {}

    def needs(self, origin: Origin) -> bool:
        """Whether it must have the events of an origin (S3)."""
        return not origin.destination and (origin.service in self.services or "*" in self.services)

    def wants(self, origin: Origin, partition: int) -> bool:
        """Whether the durable's filter takes this origin's events (S2)."""
        found = self._wanted.get((origin, partition))
        if found is None:
            found = self.needs(origin) and partition_of(origin.node, self.partitions) == partition
            self._wanted[origin, partition] = found
        return found

    def take_over(self, world: World, partition: int) -> Reader:
        """Give a partition to a new reader, in a process of its own."""
        self.db.opened()
        reader = self.readers[partition] = self._reader(world, partition)
        return reader

    def _reader(self, world: World, partition: int) -> Reader:
        return Reader(world, self, partition)


class Reader:
    """Reads one partition while it holds the lock; all of it is volatile."""

    def __init__(self, world: World, consumer: Consumer, partition: int) -> None:
        self._world = world
        self.consumer = consumer
        self.partition = partition
        self.synced = False
        self.incarnation = ""
        self.committed = 0
        self.buffer: list[tuple[int, Message]] = []
        self.answers: dict[str, Answer] = {}
        self._closing = Closing(world, self)
        self._jumped = False

    @property
    def durable(self) -> Durable:
        """The durable of its partition."""
        return self.consumer.durables[self.partition]

    @property
    def stream(self) -> Stream:
        """The stream that it reads."""
        return self._world.streams[self.consumer.stream]

    @property
    def holds_lock(self) -> bool:
        """Whether it may commit (S7)."""
        return self.consumer.readers.get(self.partition) is self

    # --- reading

    def sync(self) -> None:
        """Set the durable to the database's position, if that stands in this very stream (S5)."""
        stream, durable, rules = self.stream, self.durable, self._world.rules
        position = self.consumer.db.positions.get(self.partition)
        if position and (position.incarnation != stream.created or position.sequence > stream.last):
            position = None
        if position and rules.position_names_message and stream.message_id_at(position.sequence) != position.message_id:
            position = None
        self.committed = position.sequence if position else 0
        if rules.position_is_truth or durable.next is None:
            durable.next = self.committed + 1
        durable.lost.clear()
        self.buffer.clear()
        self.synced, self._jumped, self.incarnation = True, False, stream.created

    def fetch(self, limit: int) -> None:
        """Pull what is pending; a jump in the consumer sequences begins anew from the position (S5, S6)."""
        if not self.synced:
            self.sync()
            return
        world, durable, stream = self._world, self.durable, self.stream
        messages = stream.messages
        for sequence in stream.between(durable.next or 1):
            message = messages[sequence]
            if not self.consumer.wants(message.origin, self.partition):
                continue
            expires = message.events[0].expires
            if expires is not None and world.tick > expires and not world.rules.expiry_in_sequence:
                continue
            if limit == 0:
                return
            limit -= 1
            durable.next, durable.delivered = sequence + 1, sequence
            if world.strikes("dlvloss", 0.1):
                durable.lost.append(sequence)
                self._jumped = True
            elif self._jumped and world.rules.runs_on:
                self._begin_anew()
                return
            else:
                self.buffer.append((sequence, message))

    def redeliver(self) -> None:
        """``ack_wait`` is over: what was delivered and lost comes again."""
        if self.synced and self.durable.lost:
            if self._world.rules.runs_on:
                self._begin_anew()
            else:
                self.durable.lost.clear()

    def _begin_anew(self) -> None:
        self.commit()
        if self.holds_lock:
            self.sync()

    def commit(self) -> None:
        """Take what was pulled in one transaction, with the position that it leads to; a zombie cannot."""
        buffer, self.buffer = self.buffer, []
        if not buffer or not self.holds_lock:
            return
        intake, db = Intake(self._world, self.consumer), self.consumer.db
        for sequence, message in buffer:
            identity = parse_message_id(message.message_id)
            events = message.events
            if identity is None or (identity.place, identity.last) != (events[0].place, events[-1].place.sequence):
                raise AssertionError(f"{message.message_id} does not name {events}")
            if self._world.rules.identity and len(events) > 1:
                intake.take_frame(events, sequence)
            elif self._world.rules.identity:
                intake.take(events[0], sequence)
            elif sequence > db.highest:
                for event in events:
                    intake.take(event, sequence, anew=True)
            db.highest = max(db.highest, sequence)
        intake.finish()
        db.positions[self.partition] = Position(self.incarnation, sequence, message.message_id)
        self.committed = sequence

    def at_end(self) -> bool:
        """Whether nothing is pending or under way: then the stream's end counts as read."""
        if not self.synced or self.buffer or self.durable.lost or self.incarnation != self.stream.created:
            return False
        return not self._pending(self.durable.next or 1)

    def _pending(self, first: int) -> bool:
        stream, wants = self.stream, self.consumer.wants
        return any(wants(stream.messages[sequence].origin, self.partition) for sequence in stream.between(first))

    # --- answering

    def answer(self, node: str, question: Question) -> Answer | None:
        """Answer a node from the inbox (C1), and take note of what it says; None while it does not read."""
        if not self.synced or not self.holds_lock or not self.consumer.active:
            return None
        stream, at_end = self.stream, self.at_end()
        answer = self.answers[node] = Answer(
            v=VERSION,
            consumer=self.consumer.name,
            store=self.consumer.name,
            clock="",
            incarnation=stream.created,
            stream_end=stream.last,
            position=stream.last if at_end else self.committed if self.incarnation == stream.created else 0,
            epochs=self._passed(node, question),
            confirmed_by=stream.confirmed_by,
        )
        self._heard(node, question, stream.created, stream.last, at_end=at_end)
        return answer

    def _passed(self, node: str, question: Question) -> dict[str, EpochAnswer]:
        epochs: dict[str, EpochAnswer] = {}
        for said in question.origins:
            rows = self.consumer.db.epochs.get((node, said.service), {})
            for link in said.chain:
                if (row := rows.get(link.epoch)) is not None:
                    missing = list(row[4]) if self._world.rules.missing else []
                    epochs[link.epoch] = EpochAnswer(row[2], list(row[3]), missing, list(row[5]))
        return epochs

    def _heard(self, node: str, question: Question, incarnation: str, end: int, *, at_end: bool) -> None:
        for said in question.origins:
            origin = Origin(node, said.service, said.lane, self.consumer.destination)
            statement = Statement(origin, said, incarnation, end)
            if (ready := self._closing.heard(statement, at_end=at_end)) is not None:
                self._world.step_by_step(self._closing.act(ready))
