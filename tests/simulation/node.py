"""A node's process: it writes, forwards, asks, and frees what is confirmed. All but its store is volatile.

The judgement is the shipped one: ``Confirmations`` says what is ripe (O1), ``missed`` what has to be sent again (C2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from forebay.identity import Place
from forebay.protocol.confirmation import VERSION, Answer, Confirmations, ConfirmedBy, OriginQuestion, Question
from forebay.protocol.resending import Forwarded, missed
from tests.simulation.database import Outbox, Store
from tests.simulation.events import EVENTS
from tests.simulation.lane import Lane

if TYPE_CHECKING:
    from tests.simulation.world import World

_NOBODY = Confirmations()  # a consumer that has not answered yet

PATIENCE = 25
"""Ticks after which a question without an answer is asked anew."""


class Asked(NamedTuple):
    """A question under way, what had been forwarded by then, per lane and epoch (C2), and whether rows were here."""

    number: int
    at: int
    forwarded: dict[str, dict[str, list[Forwarded]]]
    something: bool


class Node:
    """A process with a store open; a clone is another one of the same name.

    Attributes:
        destination: whom its commands are for; empty where it sends events.
    """

    stream = EVENTS
    destination = ""

    def __init__(self, world: World, name: str, service: str, store: Store) -> None:
        self._world = world
        self.name = name
        self.service = service
        self.number = world.new_number()
        self.store = store
        self.open()

    def open(self) -> None:
        """Open the store: everything that was in memory is gone."""
        self._begin()
        self.store.opened()

    def close(self) -> None:
        """Die."""
        self.is_open = False

    @property
    def outboxes(self) -> list[Outbox]:
        """The outboxes that it forwards."""
        return [box for box in self.store.outboxes.values() if box.origin.destination == self.destination]

    def _begin(self) -> None:
        world = self._world
        self.is_open = True
        self.generation = world.new_number()
        self.incarnation = world.streams[self.stream].created
        self.lanes = {outbox.origin.lane: Lane(world, outbox) for outbox in self.outboxes}
        self._asked: dict[str, Asked] = {}
        self._versions: dict[str, int] = {}
        self._said: dict[str, Confirmations] = {}

    @property
    def needed(self) -> list[str]:
        """The consumers that need this node's events, as far as is known (S3)."""
        known = self.store.confirmed_by
        return known.needing(self.service) if known else []

    def relay(self, lane: Lane) -> None:
        """Forward some of a lane."""
        lane.relay(self.incarnation, self._confirmed_upto, answered=bool(self._said))

    def _confirmed_upto(self, outbox: Outbox) -> Place | None:
        """Return the place up to which all needed consumers have everything: it is not sent again."""
        found = None
        known = [self._said.get(name, _NOBODY) for name in self.needed]
        for epoch, first, last, aside in outbox.standing() if known else ():
            upto = min(each.watermark(epoch, first, aside) for each in known)
            if upto:
                found = Place(epoch, min(upto, last))
            if upto < last:
                break
        return found

    # --- asking

    def ask(self, consumer: str) -> None:
        """Ask a consumer, one question at a time (C1)."""
        world, asked = self._world, self._asked.get(consumer)
        if not self.is_open or (asked and world.tick - asked.at < PATIENCE and not world.healed):
            return
        origins = [each.question(world.rules) for each in self.outboxes if each.chain]
        forwarded = {name: lane.known_forwards() for name, lane in self.lanes.items()}
        number, generation = world.new_number(), self.generation
        self._asked[consumer] = Asked(number, world.tick, forwarded, any(box.prefix() for box in self.outboxes))

        def hear(answer: Answer) -> None:
            asked = self._asked.get(consumer)
            if self.is_open and self.generation == generation and asked and asked.number == number:
                self._hear(consumer, self._asked.pop(consumer), answer)  # late replies are ignored

        world.request(consumer, self.name, self._question(origins), hear)

    def _question(self, origins: list[OriginQuestion]) -> Question:
        return Question(VERSION, origins)

    def learn(self) -> None:
        """Ask any reader for the list of consumers."""
        if not self.needed:
            self._keep(self._world.stream.confirmed_by)

    def _keep(self, known: ConfirmedBy | None) -> None:
        mine = self.store.confirmed_by
        if known and known.consumers and (mine is None or known.version > mine.version or not self._newest):
            self.store.confirmed_by = known
        if known and (self.store.newest is None or known.version > self.store.newest.version):
            self.store.newest = known

    @property
    def _newest(self) -> bool:
        return self._world.rules.list_version

    def _hear(self, consumer: str, asked: Asked, answer: Answer) -> None:
        now = float(self._world.tick)
        self.incarnation = answer.incarnation  # the relay looks at the stream again, and sees the same
        self._said.setdefault(consumer, Confirmations()).record(answer, now)
        for name, epochs in asked.forwarded.items():
            for epoch, segments in epochs.items():
                if ranges := missed(epoch, segments, answer):
                    self._world.say("AGAIN", self.number, consumer, epoch[-4:], ranges)
                    self.lanes[name].missed(epoch, ranges)
        self._versions[consumer] = answer.confirmed_by.version if answer.confirmed_by else 0
        self._keep(answer.confirmed_by)

    def confirmed(self, place: Place) -> bool:
        """Whether every needed consumer confirmed a place in its latest answer."""
        needed = self.needed
        return bool(needed) and all(name in self._said and self._said[name].confirmed(place) for name in needed)

    # --- freeing

    def free(self) -> None:
        """Free what every needed consumer confirmed, and a grace later again, as a prefix (O1, O4)."""
        needed = self.needed
        if not needed or not self.is_open or any(name not in self._said for name in needed):
            return
        if not self._list_stands(needed):
            return
        known = [self._said[name] for name in needed]
        for outbox in self.outboxes:
            while (head := outbox.head()) is not None and self._free_some(outbox, *head, known):
                pass
            for place in [each for each in outbox.withheld if each in outbox.passed]:
                if all(self._ripe(each, *place) >= place.sequence for each in known):
                    self._freed(outbox, place, whole=True)
                    outbox.passed.discard(place)
                    outbox.confirmed += 1
                    del outbox.withheld[place]
            if not outbox.balanced:
                self._world.fail("6-node-books", outbox.origin, vars(outbox))

    def _list_stands(self, needed: list[str]) -> bool:
        kept = self.store.confirmed_by.version if self.store.confirmed_by else 0
        return not self._newest or all(self._versions[name] == kept for name in needed)

    def _free_some(self, outbox: Outbox, place: Place, last: int, known: list[Confirmations]) -> bool:
        """Let the floor pass the oldest part, rows, a drop or a withheld place; return whether it moved."""
        epoch, first = place
        if place in outbox.dropped:
            if any(each.ended(epoch, first, first) < first for each in known):
                return False
            outbox.dropped.discard(place)
            outbox.floor = max(place, outbox.floor or place)
        elif place in outbox.withheld:
            if not all(each.passed(place) for each in known):
                return False
            outbox.passed.add(place)
            outbox.floor = max(place, outbox.floor or place)
            self._freed(outbox, place, whole=False)
        else:
            upto = min(last, *(self._ripe(each, epoch, first) for each in known))
            for sequence in range(first, upto + 1):
                outbox.floor = Place(epoch, sequence)
                del outbox.rows[outbox.floor]
                outbox.confirmed += 1
                self._freed(outbox, outbox.floor, whole=True)
            return upto >= first
        return True

    def _ripe(self, known: Confirmations, epoch: str, first: int) -> int:
        world = self._world
        return known.ripe(epoch, world.pace.grace, first) if world.rules.grace else known.watermark(epoch, first)

    def _freed(self, outbox: Outbox, place: Place, *, whole: bool) -> None:
        lane = self.lanes[outbox.origin.lane]
        if whole:
            lane.forwards.forget(place.epoch, place.sequence)
            lane.trying.discard(place)
        self._world.say("free", self.number, place, "" if whole else "but its body")
        self._world.oracle.freed(self._world, outbox.origin, place, self._needing(), whole=whole)

    def _needing(self) -> list[str]:
        newest = self.store.newest
        return newest.needing(self.service) if newest else self.needed
