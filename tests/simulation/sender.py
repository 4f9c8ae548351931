"""A core service that sends commands: per destination a relay and who asks it, its only confirmer (I1, C1).

The counterpart of ``forebay.dispatching``, ``forebay.destinations`` and ``forebay.registry``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.identity import Origin
from forebay.protocol.confirmation import VERSION, Answer, OriginQuestion, Question
from tests.simulation.database import Outbox, Store
from tests.simulation.events import COMMANDS, DESTINATIONS
from tests.simulation.node import Asked, Node

if TYPE_CHECKING:
    from tests.simulation.world import World


class Sender(Node):
    """What sends the commands of one process to one destination; it shares the store, and lives and dies with it."""

    stream = COMMANDS

    def __init__(self, world: World, process: Node, destination: str) -> None:
        self._world = world
        self.name, self.service, self.number, self.store = process.name, process.service, process.number, process.store
        self.destination = destination
        self._begin()

    def _begin(self) -> None:
        super()._begin()
        self._said_all = True  # a process that finds nothing on its disk asks nobody

    def open(self) -> None:
        """Forget what was in memory; the process opens the store."""
        self._begin()

    @property
    def needed(self) -> list[str]:
        """The destination alone."""
        return [self.destination]

    def ask(self, consumer: str) -> None:
        """Ask the destination, while there is something here for it; make its durable again where that is gone."""
        world = self._world
        if self.is_open and world.has_registered(self.destination):
            world.durable_of(self.destination).registered = True
        if self._anything or not self._said_all:
            super().ask(consumer)

    @property
    def _anything(self) -> bool:
        told = self._world.has_registered(self.destination)
        return any(box.rows or box.withheld or (box.dropped and told) for box in self.outboxes)

    def _hear(self, consumer: str, asked: Asked, answer: Answer) -> None:
        super()._hear(consumer, asked, answer)
        # What was freed last moved the floor: the destination has to hear of that too, or its holes stay open.
        self._said_all = not asked.something or not self._world.rules.last_floor

    def learn(self) -> None:
        """Nobody else has to be asked who needs it."""

    def free(self) -> None:
        """Free what the destination has confirmed."""
        if self._world.rules.destination_answers:
            super().free()
            return
        for outbox in self.outboxes:
            sent = self.lanes[outbox.origin.lane].sent
            for place in [each for each in outbox.rows if sent is not None and each <= sent]:
                del outbox.rows[place]
                outbox.floor = place
                outbox.confirmed += 1
                self._freed(outbox, place, whole=True)

    def _question(self, origins: list[OriginQuestion]) -> Question:
        stream = self._world.streams[COMMANDS]  # the destination may not look at it
        return Question(VERSION, origins, incarnation=stream.created, stream_end=stream.last)

    def _list_stands(self, needed: list[str]) -> bool:  # noqa: ARG002 - there is no list
        return True

    def _needing(self) -> list[str]:
        return self.needed


class CoreNode(Node):
    """A process of the core: it has a sender for each destination that its store has outboxes for."""

    def __init__(self, world: World, name: str, service: str, store: Store) -> None:
        self.senders: list[Sender] = []
        super().__init__(world, name, service, store)
        known = {outbox.origin.destination for outbox in store.outboxes.values()}
        self.senders = [Sender(world, self, to) for to in DESTINATIONS if to in known]

    def open(self) -> None:
        """Open the store, for the senders too."""
        super().open()
        for sender in self.senders:
            sender.store = self.store
            sender.open()

    def close(self) -> None:
        """Die, with the senders."""
        super().close()
        for sender in self.senders:
            sender.close()

    def remove(self, destination: str) -> None:
        """Drop, on record, all that is here for a destination that will not come back (O3)."""
        for outbox in self.store.outboxes.values():
            if outbox.origin.destination != destination:
                continue
            for place, event in sorted({**outbox.rows, **outbox.withheld}.items()):
                outbox.push_out(place)
                self._world.oracle.pushed_out.add(event.body)
            if not self._world.rules.removal_on_record:
                outbox.dropped.clear()
        for sender in self.senders:
            if sender.destination == destination:
                for lane in sender.lanes.values():
                    lane.trying.clear()


def command_outboxes(world: World, name: str, service: str, lanes: list[str]) -> list[Outbox]:
    """Return an outbox for each destination and lane, each with a sequence of its own (I1)."""
    outboxes = [Outbox(Origin(name, service, lane, to)) for lane in lanes for to in DESTINATIONS]
    if not world.rules.sequence_per_destination:
        for outbox in outboxes:
            outbox.numbering = next(each for each in outboxes if each.origin.lane == outbox.origin.lane)
    return outboxes
