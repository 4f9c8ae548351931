"""One lane on its way to the stream: the counterpart of ``forebay.relay``, around the shipped ``Forwards``.

One publish is under way at a time, a batch or single messages; what is not acknowledged in time goes again, one by one
and under the same ids. Repairs go under fresh random suffixes (I4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from forebay.identity import MessageId, Place, retransmission_id
from forebay.protocol.forwards import Forwards
from forebay.protocol.resending import Forwarded
from forebay.sequences import Range, joined, without
from tests.simulation.database import Outbox
from tests.simulation.events import Event, Message

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMEOUT = 15
"""Ticks after which a publish, or the first answer, is not waited for any more."""

FRAME = 5
"""Events of a frame, at most."""

REFUSED = "refused"
KNOWN = "known"

Outcome = int | str | None
"""The sequence of an acknowledgement, a refusal, or nothing yet."""


class Publish:
    """One publish under way: the events of each of its messages, one or those of a frame."""

    def __init__(self, parts: list[list[Event]], *, repair: bool, atomic: bool, deadline: int) -> None:
        self.parts = parts
        self.repair = repair
        self.atomic = atomic
        self.deadline = deadline
        self.outcomes: list[Outcome] = [None] * len(parts)


class Lane:
    """How far one outbox has been forwarded since its store was opened; all of it is in memory (C3)."""

    def __init__(self, world: World, outbox: Outbox) -> None:
        self._world = world
        self._opened_at = world.tick
        self._begun = False
        self._singly = False
        self._under_way: Publish | None = None
        self.outbox = outbox
        self.sent: Place | None = None
        self.forwards = Forwards()
        self.again: dict[str, list[Range]] = {}
        self.trying: set[Place] = set()
        self._frame_limit = FRAME

    def relay(self, incarnation: str, confirmed_upto: Callable[[Outbox], Place | None], *, answered: bool) -> None:
        """Conclude what is under way if it can be, and send the next."""
        world = self._world
        if not self._begun:  # after reopening, a node asks before it sends (O1)
            if not answered and world.tick - self._opened_at < TIMEOUT:
                return
            self._begun = True
            self.sent = confirmed_upto(self.outbox)
        if (publish := self._under_way) is not None:
            if None in publish.outcomes and world.tick < publish.deadline and not world.healed:
                return
            self._under_way = None
            self._conclude(publish, incarnation)
        self._send(world.rng.randint(1, 5) if not world.healed else 50)

    def missed(self, epoch: str, ranges: Iterable[Range]) -> None:
        """Take note of places to send again."""
        if merged := joined([*self.again.get(epoch, ()), *ranges]):
            self.again[epoch] = merged

    def known_forwards(self) -> dict[str, list[Forwarded]]:
        """Return what was forwarded of each epoch; an earlier process's as of an unknown incarnation."""
        found: dict[str, list[Forwarded]] = {}
        epochs = {place.epoch: place for place in self.outbox.prefix()}
        for place in sorted(self.trying):
            epochs[place.epoch] = max(place, epochs.get(place.epoch, place))
        for epoch in sorted(epochs):
            upto = 0
            if self.sent is not None and epoch <= self.sent.epoch:
                upto = self.sent.sequence if epoch == self.sent.epoch else epochs[epoch].sequence
            if segments := self.forwards.filled(epoch, upto):
                found[epoch] = segments
        return found

    def try_withheld(self) -> None:
        """Send the withheld bodies whole, under the same message ids: limits have changed (O4)."""
        for place in sorted(self.outbox.withheld):
            if place not in self.trying:
                self.trying.add(place)
                self.missed(place.epoch, [(place.sequence, place.sequence)])

    # --- one publish

    def _send(self, limit: int) -> None:
        world = self._world
        events = self._repairs(limit)
        repair = bool(events)
        if not repair:
            sent = self.sent
            rows = self.outbox.rows
            events = [e for place, e in rows.items() if sent is None or place > sent][:limit]
            if not events:
                return
        parts = self._parts(events)
        ids = [str(MessageId(part[0].place.epoch, part[0].place.sequence, part[-1].place.sequence)) for part in parts]
        if repair:
            world.oracle.resends += len(events)
            if world.rules.suffix:
                ids = [retransmission_id(each) for each in ids]
        messages = [Message(name, tuple(part)) for name, part in zip(ids, parts, strict=True)]
        atomic = not self._singly and world.strikes("batch", 0.5)
        publish = self._under_way = Publish(parts, repair=repair, atomic=atomic, deadline=world.tick + TIMEOUT)
        groups = [list(range(len(messages)))] if atomic else [[index] for index in range(len(messages))]
        for group in groups:
            world.transmit(publish, group, [messages[index] for index in group])

    def _parts(self, events: list[Event]) -> list[list[Event]]:
        """Cut events into messages: frames are cut anew each time, wherever it may be (I4)."""
        if not self.outbox.framed:
            return [[event] for event in events]
        parts: list[list[Event]] = []
        room = 0
        for event in events:
            epoch, sequence = event.place
            if room and parts[-1][-1].place == Place(epoch, sequence - 1) and event.place not in self.trying:
                parts[-1].append(event)
                room -= 1
            else:
                parts.append([event])
                room = 0 if event.place in self.trying else self._world.rng.randint(1, self._frame_limit) - 1
        return parts

    def _repairs(self, limit: int) -> list[Event]:
        while self.again:
            epoch, ((first, last), *_) = next(iter(self.again.items()))
            rows, withheld = self.outbox.rows, self.outbox.withheld
            events = []
            for sequence in range(first, last + 1):
                place = Place(epoch, sequence)
                event = rows.get(place) or (withheld.get(place) if place in self.trying else None)
                if event is not None:
                    events.append(event)
            if events:
                return events[:limit]
            self._repaired(epoch, last)
        return []

    def _repaired(self, epoch: str, upto: int) -> None:
        left = without(self.again.get(epoch, ()), [(1, upto)])
        if left:
            self.again[epoch] = left
        else:
            self.again.pop(epoch, None)

    def _conclude(self, publish: Publish, incarnation: str) -> None:
        """Note how far the acknowledgements reach without a break, and what became of the next message."""
        stored = 0
        while stored < len(publish.outcomes) and isinstance(publish.outcomes[stored], int):
            stored += 1
        places = [event.place for part in publish.parts[:stored] for event in part]
        highest = max((each for each in publish.outcomes[:stored] if isinstance(each, int)), default=0)
        for epoch in dict.fromkeys(place.epoch for place in places):
            sequences = [place.sequence for place in places if place.epoch == epoch]
            self.forwards.record(epoch, Forwarded(sequences[0], sequences[-1], incarnation, highest))
        if places and publish.repair:
            self._repaired(*places[-1])
        elif places:
            self.sent = places[-1]
        self._singly = stored < len(publish.outcomes)
        if self._singly and not publish.atomic and publish.outcomes[stored] == REFUSED:
            refused = publish.parts[stored]
            if len(refused) == 1:
                self._withhold(refused[0], repair=publish.repair)
            self._frame_limit = max(1, len(refused) // 2)  # a frame is never withheld: its events are tried by less
        else:
            self._frame_limit = min(FRAME, self._frame_limit * 2)

    def _withhold(self, event: Event, *, repair: bool) -> None:
        """Move a body that the broker refuses for itself beside the outbox; the lane goes on (O4)."""
        place, outbox = event.place, self.outbox
        self.trying.discard(place)
        if repair:
            self._repaired(*place)
        if outbox.rows.pop(place, None) is not None:
            outbox.withheld[place] = event
            self._world.oracle.withheld.add(event.body)
            self._world.oracle.soft["withheld"] += 1
            self._world.say("WITHHOLD", event)
