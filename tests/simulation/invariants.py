"""The oracle: what the simulation knows and the code does not, and the promises that it checks.

A violation is named by the number of its invariant: 1 loss or needless gap, 2 double, 3 order, 4 freed early,
5 liveness, 6 books, 7 bounds, 8 expiry.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from forebay.identity import Origin, Place
from forebay.sequences import joined
from tests.simulation.database import Database, Outbox
from tests.simulation.events import ARCHIVE, Body, Event

if TYPE_CHECKING:
    from tests.simulation.broker import Stream
    from tests.simulation.reader import Consumer
    from tests.simulation.world import World


class ViolationError(Exception):
    """A promise was broken."""


class Oracle:
    """Who wrote what where, and what happened to it.

    Attributes:
        places: per origin and body, every place that it was ever written under.
        histories: what lives of outboxes wrote that a restore ended.
        branched: origins with more than one life, clones and restores: their gaps are judged more mildly.
        cloned: destinations with two machines: each has what the other confirmed as gaps.
        live_gaps: places of such origins that were closed while somebody still had the event.
        owed: per consumer what it lost by a restore from a backup younger than the grace: the nodes still have it.
        revived: stream sequences that a rollback brought back after they had been lost: a reader that is past them has
            no reason to look there again, and its gap is on record.
        taken_back: what a rollback took from which sequence of a stream, by its message id.
        soft: how often what happened, for the curious.
    """

    def __init__(self) -> None:
        self.places: dict[tuple[Origin, Body], list[Place]] = defaultdict(list)
        self.histories: list[list[tuple[Body, str, Place]]] = []
        self.branched: set[Origin] = set()
        self.withheld: set[Body] = set()
        self.pushed_out: set[Body] = set()
        self.cloned: set[str] = set()
        self.live_gaps: set[tuple[str, Place]] = set()
        self.archive_restored = False
        self.owed: dict[str, set[Place]] = defaultdict(set)
        self.resends = 0
        self.revived: set[tuple[str, int]] = set()
        self.taken_back: set[tuple[str, int, str]] = set()
        self.soft: Counter[str] = Counter()

    def wrote(self, event: Event) -> None:
        """Note where an event was written."""
        self.places[event.origin, event.body].append(event.place)

    def branch(self, outboxes: dict[str, Outbox], *, ended: bool) -> None:
        """Note that outboxes get a second life; with ``ended`` the first one is over."""
        self.branched |= {outbox.origin for outbox in outboxes.values()}
        if ended:
            self.histories += [outbox.history for outbox in outboxes.values()]

    def restored(self, world: World, consumer: Consumer, backup: Database, age: int) -> None:
        """Note that a consumer's database is put back to a backup of ``age`` ticks (O1)."""
        if age >= world.pace.grace:
            self.owed[consumer.name].clear()
            return
        for epoch, outcomes in consumer.db.outcomes.items():
            known = backup.outcomes.get(epoch, {})
            had = (at for at, outcome in outcomes.items() if outcome == "applied" and at not in known)
            self.owed[consumer.name] |= {Place(epoch, at) for at in had}

    def freed(self, world: World, origin: Origin, place: Place, needed: list[str], *, whole: bool) -> None:
        """Check that every consumer that a node knew to need it had, or passed, what leaves the node (4)."""
        for name in needed:
            if not any(place in (each.had if whole else each.seen) for each in world.takers(name)):
                world.fail("4-freed-early", origin, place, "for", name)

    def closed(self, world: World, consumer: Consumer, origin: Origin, place: Place, stream_end: int) -> None:
        """Check that a gap is made only where nobody has the event any more (1)."""
        for node in world.all_nodes():
            if any(box.origin == origin and box.has(place) for box in node.outboxes):
                self._needless(world, consumer, origin, place, f"on {node.name} ({node.number})")
        archive = world.consumers[ARCHIVE]
        if consumer is not archive and place in archive.db.bodies:
            self._needless(world, consumer, origin, place, "in the archive")
        if place in self.owed[consumer.name]:
            self._needless(world, consumer, origin, place, "it was confirmed less than a grace before a restore")
        stream = world.streams[consumer.stream]
        for sequence, message in stream.messages.items():
            if not message.carries(place) or sequence > stream_end:
                continue
            overlooked = origin.destination in self.cloned and self._overgrown(stream, sequence)
            if (stream.created, sequence) not in self.revived and not overlooked:
                self._needless(world, consumer, origin, place, f"in the stream at {sequence}")

    def _overgrown(self, stream: Stream, sequence: int) -> bool:
        """Whether behind a sequence a message stands again where it stood before a rollback.

        A position there holds (S5), though other messages have grown before it. What is passed over so is missed, and
        sent again (C2); but not to one of two machines of a destination after the other has confirmed it (C1).
        """
        return any(
            at > sequence and (stream.created, at, message.message_id) in self.taken_back
            for at, message in stream.messages.items()
        )

    def done(self, world: World, consumer: Consumer, event: Event) -> None:
        """Check that a command is not done after it has expired (8)."""
        if event.expires is not None and world.tick > event.expires:
            world.fail("8-done-late", consumer.name, event, "at", world.tick)

    def _needless(self, world: World, consumer: Consumer, origin: Origin, place: Place, where: str) -> None:
        self.soft["needless gap of a branched origin"] += 1
        # What a consumer had, and lost by its own restore from a backup older than the grace, may be a gap (O1).
        # Of two machines of a destination one confirms for the other, even while a clone of the sender has it still.
        mine = place not in consumer.had or place in self.owed[consumer.name]
        if mine and not (origin.destination in self.cloned and where.startswith("on ")):
            self.live_gaps.add((consumer.name, place))
        if origin not in self.branched and origin.destination not in self.cloned:
            world.fail("1-needless-gap", consumer.name, origin, place, where)


def check(world: World) -> None:
    """Check what must hold after everything has healed and drained."""
    for consumer in world.consumers.values():
        _check_inbox(world, consumer)
        _check_doubles(world, consumer)
        order = {event.body: at for at, event in reversed(list(enumerate(consumer.db.effects)))}
        for node in world.all_nodes():
            for outbox in node.outboxes:
                if consumer.needs(outbox.origin):
                    _check_losses(world, consumer, outbox, order)
        _check_order(world, consumer, order)


def _check_inbox(world: World, consumer: Consumer) -> None:
    for origin, rows in consumer.db.epochs.items():
        held: Counter[str] = Counter()
        for epoch, (lane, _, watermark, ranges, missing, wanted, dropped, withheld, *_) in rows.items():
            where = (consumer.name, origin, lane, epoch[-4:])
            outcomes = consumer.db.outcomes.get(epoch, {})
            held[lane] += sum(last - first + 1 for first, last in ranges)
            if ranges or dropped or withheld:
                world.fail("5-held-for-ever", *where, "watermark", watermark, ranges, dropped, withheld)
            if sorted(outcomes) != list(range(1, watermark + 1)):
                world.fail("6-books", *where, watermark, outcomes)
            without = [at for at, what in outcomes.items() if what in ("gap", "dropped")]
            if list(missing) != joined((at, at) for at in without) or wanted:
                world.fail("6-missing", *where, missing, without, wanted)
        if any(count > world.pace.held_events for count in held.values()):
            world.fail("7-held", consumer.name, origin, held)
    if consumer.db.held:
        world.fail("6-held-bodies", consumer.name, list(consumer.db.held))


def _check_doubles(world: World, consumer: Consumer) -> None:
    counts = Counter(event.body for event in consumer.db.effects)
    double = [body for body, count in counts.items() if count > 1]
    if double and consumer.name != ARCHIVE:
        world.fail("2-double" + ("-derived" if isinstance(double[0], tuple) else ""), consumer.name, double[:3])
    places = Counter(event.place for event in consumer.db.effects)
    if again := [place for place, count in places.items() if count > 1]:
        world.fail("2-double-place", consumer.name, again[:3])


def _check_losses(world: World, consumer: Consumer, outbox: Outbox, order: dict[Body, int]) -> None:
    oracle, origin = world.oracle, outbox.origin
    alone = {event.body for event in consumer.db.alone}
    for body, _, _ in outbox.history:
        if body in order:
            continue
        places = oracle.places[origin, body]
        outcomes = {consumer.db.outcomes.get(place.epoch, {}).get(place.sequence) for place in places}
        if body not in alone and not outcomes & {"gap", "dropped", "late"}:
            world.fail("1-lost", consumer.name, origin, body, places, outcomes)
        if body in oracle.pushed_out:
            continue
        if body not in alone and outcomes == {"dropped"} and consumer.name != ARCHIVE:
            world.fail("1-dropped-unasked", consumer.name, origin, body, places)
        if (
            body in oracle.withheld
            and origin not in oracle.branched
            and origin.destination not in oracle.cloned
            and not oracle.archive_restored
        ):
            world.fail("1-withheld-without-effect", consumer.name, origin, body, places, outcomes)
        needless = [place for place in places if (consumer.name, place) in oracle.live_gaps]
        if any(consumer.db.outcomes[place.epoch].get(place.sequence) == "gap" for place in needless):
            world.fail("1-lost-in-needless-gap", consumer.name, origin, body, needless)


def _check_order(world: World, consumer: Consumer, order: dict[Body, int]) -> None:
    """Check that effects have the order of each life that wrote them: per key, and over all that were never parked.

    An event counts in the life under whose place it took effect: the archive keeps every place, and what a restored
    emitter emits again has another.
    """
    taken = {event.place: at for at, event in reversed(list(enumerate(consumer.db.effects)))}
    live = [outbox.history for node in world.all_nodes() for outbox in node.outboxes]
    for history in [*world.oracle.histories, *live]:
        latest: dict[str, tuple[int, Body]] = {}
        highest = (-1, 0)
        for body, key, place in history:
            at = taken.get(place)
            if at is None:
                at = order.get(body) if consumer.name != ARCHIVE else None
                if at is not None:
                    latest[key] = max(latest.get(key, (-1, 0)), (at, body))
                continue
            if at < latest.get(key, (-1, 0))[0]:
                world.fail("3-order-of-key", consumer.name, body, "before", latest[key][1], key)
            latest[key] = (at, body)
            if body not in consumer.parked_ever and isinstance(body, int):
                if at < highest[0]:
                    world.fail("3-order-of-origin", consumer.name, body, "before", highest[1])
                highest = (at, body)
