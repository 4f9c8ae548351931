"""One transaction of a consumer: what ``forebay.intake`` and ``forebay.closing`` do, on an in-memory database.

Every decision is the shipped ``OriginInbox``'s; here are only the effects, the parking and the rows that are written
back. Epochs are read as the engine reads them: an arrival meets its own epoch, the one before it and those that hold
or decide something, so that a rule which silently needs more of them fails here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from forebay.identity import Origin, Place
from forebay.protocol.inbox import Due, OriginInbox, Verdict
from tests.simulation.database import Database, row_of, state_of, waits
from tests.simulation.events import ARCHIVE, DESTINATIONS, EMITTER, Event

if TYPE_CHECKING:
    from tests.simulation.reader import Consumer
    from tests.simulation.world import World


class Intake:
    """One transaction's intake; ``finish`` commits it."""

    def __init__(self, world: World, consumer: Consumer) -> None:
        self._world = world
        self._consumer = consumer
        self._rules = world.rules
        self._inboxes: dict[tuple[str, str], OriginInbox] = {}
        self.db: Database = consumer.db

    def of(self, event: Event) -> OriginInbox:
        """Return the inbox of an event's node and service with the epochs that an arrival meets."""
        inbox = self._inbox(event.origin)
        prev = event.prev.epoch if event.prev else ""
        if event.place.epoch not in inbox.epochs or (prev and prev not in inbox.epochs):
            for epoch, row in self.db.epochs.get(event.origin[:2], {}).items():
                if epoch not in inbox.epochs and (epoch == event.place.epoch or epoch == prev or waits(row)):
                    inbox.epochs[epoch] = state_of(row)
        return inbox

    def whole(self, origin: Origin) -> OriginInbox:
        """Return the inbox of a node and service with all of its epochs."""
        inbox = self._inbox(origin)
        for epoch, row in self.db.epochs.get(origin[:2], {}).items():
            if epoch not in inbox.epochs:
                inbox.epochs[epoch] = state_of(row)
        return inbox

    def _inbox(self, origin: Origin) -> OriginInbox:
        known = self._inboxes.get(origin[:2])
        if known is None:
            known = self._inboxes[origin[:2]] = OriginInbox({}, self._world.pace.held_events)
        return known

    def take_frame(self, events: tuple[Event, ...], stream_sequence: int) -> None:
        """Take a frame as a whole where it stands next to the watermark, else event by event (I4)."""
        origin, first, prev = events[0].origin, events[0].place, events[0].prev
        inbox, last = self.of(events[0]), events[-1].place.sequence
        if self._consumer.name != ARCHIVE and inbox.repeats(first, last, origin.lane):
            return
        if not self._follows(inbox, first, last, prev if self._rules.prev else None, origin.lane):
            for event in events:
                self.take(event, stream_sequence)
            return
        for event in events:
            self._apply(inbox, event)
            self._record(event.place, "applied", event)
        inbox.settle_frame(first, last)
        self.drain(origin, inbox)
        self._world.oracle.soft["frames taken as a whole"] += 1

    def _follows(self, inbox: OriginInbox, first: Place, last: int, prev: Place | None, lane: str) -> bool:
        follows = inbox.follows(first, last, prev, lane)
        passed = inbox.epochs[first.epoch].passed
        if not self._rules.frame_borders:  # what is new of it counts, wherever it begins
            return follows or (first.sequence <= passed.watermark < last and not passed.ranges)
        if not self._rules.frame_next:
            return follows or (first.sequence > passed.watermark and not passed.ranges)
        return follows

    def take(self, event: Event, stream_sequence: int, *, anew: bool = False) -> None:
        """Make an event's effect, hold it, keep it aside or pass over it; ``anew`` is without dedup by identity."""
        inbox, place = self.of(event), event.place
        prev = event.prev if self._rules.prev else None
        match inbox.judge(place, prev, event.origin.lane):
            case Verdict.APPLY:
                self._apply(inbox, event)
                inbox.settle(place)
                self._record(place, "applied", event)
                self.drain(event.origin, inbox)
            case Verdict.HOLD:
                inbox.hold(place)
                self.db.held[place] = (event, stream_sequence)
                excess = inbox.overfull(event.origin.lane)
                if excess is not None:
                    inbox.give_up(excess, self.db.held.pop(excess)[1])
                    self._world.oracle.soft["given up for lack of room"] += 1
                    self._world.say("GIVE UP", self._consumer.name, excess)
            case Verdict.LATE:
                inbox.found(place)
                self._stand_alone(event)
                self._record(place, "late", event)
            case Verdict.FILL:
                inbox.found(place)
                self._fill(event)
            case Verdict.DUPLICATE:
                if anew and place not in self.db.held:
                    self._apply(inbox, event)
            case Verdict.FOREIGN_LANE:
                raise AssertionError(f"{event} came under another lane")

    def drain(self, origin: Origin, inbox: OriginInbox) -> None:
        """Pass what is due now."""
        while (step := inbox.due()) is not None:
            place = Place(step.epoch, step.first)
            if step.due is Due.HELD:
                event, _ = self.db.held.pop(place)
                self._apply(inbox, event)
                inbox.settle(place)
                self._record(place, "applied", event)
            elif step.due is Due.DROPPED:
                self.skip(inbox, step.epoch, step.last, "dropped")
            else:
                self.db.parked.setdefault((origin, step.key), []).append((place, None))
                inbox.want(place)
                self._record(place, "wanted")
                self._world.say("WANTED", self._consumer.name, place)

    def skip(self, inbox: OriginInbox, epoch: str, upto: int, outcome: str) -> None:
        """Pass places without their events, on record."""
        first = inbox.epochs[epoch].passed.watermark + 1
        inbox.skip(epoch, upto)
        for sequence in range(first, upto + 1):
            self._record(Place(epoch, sequence), outcome)
        self._world.say(outcome.upper(), self._consumer.name, epoch[-4:], first, upto)

    def lose(self, origin: Origin, inbox: OriginInbox, place: Place, outcome: str) -> None:
        """Give up the body of a wanted place; its key goes on."""
        inbox.lose(place)
        for key, queue in list(self.db.parked.items()):
            if key[0] == origin and (place, None) in queue:
                queue.remove((place, None))
                if not queue:
                    del self.db.parked[key]
        self._record(place, outcome)
        self._world.say(outcome.upper(), self._consumer.name, place, "its body is given up")

    def leave_branch(self, origin: Origin, inbox: OriginInbox) -> None:
        """Let what waits in the parking and was left behind by a restore stand alone (B5)."""
        for key, queue in list(self.db.parked.items()):
            left = [e for place, e in queue if e and e.cause and key[0] == origin and inbox.abandoned(place)]
            if left and self._rules.abandon:
                self.db.parked[key] = [each for each in queue if each[1] not in left]
                for event in left:
                    self._stand_alone(event)
                if not self.db.parked[key]:
                    del self.db.parked[key]

    def retry(self) -> None:
        """Try what is parked: each key in order, until its head fails again or lacks its body."""
        for key in list(self.db.parked):
            queue = self.db.parked[key]
            while queue and queue[0][1] is not None and not self._world.fails(self._consumer.name, key):
                event = queue.pop(0)[1]
                if event is not None:
                    self._act(event)
            if not queue:
                del self.db.parked[key]

    def finish(self) -> None:
        """Write back the epochs that say that they changed, and no other."""
        for origin, inbox in self._inboxes.items():
            changed = list(inbox.changed())
            if changed:
                rows = self.db.epochs.setdefault(origin, {})
                rows.update((epoch, row_of(state)) for epoch, state in changed)

    # --- effects

    def _apply(self, inbox: OriginInbox, event: Event) -> None:
        key = (event.origin, event.key)
        if self._consumer.name == ARCHIVE:
            self.db.bodies[event.place] = event
        if event.cause and self._rules.abandon and inbox.abandoned(event.place):
            self._stand_alone(event)
        elif key in self.db.parked or self._world.fails(self._consumer.name, key):
            self.db.parked.setdefault(key, []).append((event.place, event))
            self._consumer.parked_ever.add(event.body)
            self._world.say("park", self._consumer.name, event)
        else:
            self._act(event)

    def _act(self, event: Event) -> None:
        if event.cause and self._rules.cause and self._consumer.name != ARCHIVE:
            cause = (event.origin.node, event.origin.service, event.cause)
            if cause in self.db.causes:
                return
            self.db.causes.add(cause)
        self.db.effects.append(event)
        if event.expires is not None and self._world.tick > event.expires and self._rules.expiry:
            self.db.expired.add(event.body)
            self._world.oracle.soft["expired"] += 1
            self._world.say("EXPIRED", self._consumer.name, event)
            return
        self._world.oracle.done(self._world, self._consumer, event)
        self._world.say("effect", self._consumer.name, event)
        if self._consumer.name == EMITTER:
            self._emit(event)

    def _emit(self, event: Event) -> None:
        """Emit an event because of another one, and send a command because of some (B5)."""
        world, key = self._world, f"{event.origin.node}/{event.origin.lane}/{event.key}"
        self.db.outboxes["ledger"].append(world, key, ("d", event.body), str(event.place))
        if world.has_commands and isinstance(event.body, int) and event.body % 3:
            destination = DESTINATIONS[event.body % 3 - 1]
            outbox = self.db.outboxes[f"ledger to {destination}"]
            outbox.append(world, key, ("c", event.body), str(event.place), world.expiry())

    def _fill(self, event: Event) -> None:
        queue = self.db.parked[event.origin, event.key]
        queue[queue.index((event.place, None))] = (event.place, event)
        self._consumer.parked_ever.add(event.body)
        if self._consumer.name == ARCHIVE:
            self.db.bodies[event.place] = event
        self._record(event.place, "applied", event)
        self._world.oracle.soft["filled"] += 1
        self._world.say("fill", self._consumer.name, event)

    def _stand_alone(self, event: Event) -> None:
        self.db.alone.append(event)
        self._world.say("LATE", self._consumer.name, event)

    def _record(self, place: Place, outcome: str, event: Event | None = None) -> None:
        self.db.outcomes.setdefault(place.epoch, {})[place.sequence] = outcome
        self._consumer.seen.add(place)
        if event is not None or outcome in ("gap", "dropped"):
            self._consumer.had.add(place)
