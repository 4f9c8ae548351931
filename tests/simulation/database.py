"""What is durable: a node's outboxes, and a consumer's database. It survives crashes, and is restored from backups."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Self

from forebay.identity import Origin, Place
from forebay.protocol.confirmation import ChainLink, ConfirmedBy, DroppedRange, OriginQuestion, WithheldPlace
from forebay.protocol.inbox import EpochState
from forebay.sequences import Range, SequenceSet, joined
from tests.simulation.events import Body, Event, Position
from tests.simulation.rules import Rules

if TYPE_CHECKING:
    from tests.simulation.world import World

EpochRow = tuple[Any, ...]
"""What a database keeps of an ``EpochState``."""


class Outbox:
    """The outbox of one origin.

    Attributes:
        rows: the events that are not freed.
        withheld: bodies that the broker refuses for themselves, beside the outbox (O4); True once the prefix has
            passed the place.
        dropped: places that the budget pushed out, until every needed consumer has passed them (O3).
        chain, ends: per epoch the place before it, and its last sequence.
        floor: what the node no longer has.
        framed: whether its events go in frames.
        numbering: whose places it takes: its own (I1).
        history: the oracle's: what this life of the outbox wrote.
    """

    def __init__(self, origin: Origin, *, framed: bool = False) -> None:
        self.origin = origin
        self.framed = framed
        self.numbering = self
        self.rows: dict[Place, Event] = {}
        self.withheld: dict[Place, Event] = {}
        self.passed: set[Place] = set()
        self.dropped: set[Place] = set()
        self.chain: dict[str, Place | None] = {}
        self.ends: dict[str, int] = {}
        self.floor: Place | None = None
        self.last: Place | None = None
        self.current: str | None = None
        self.written = self.confirmed = self.pushed_out = 0
        self.history: list[tuple[Body, str, Place]] = []

    def append(self, world: World, key: str, body: Body, cause: str | None = None, expires: int | None = None) -> Event:
        """Write an event under the next place of the current epoch, a new one after each opening (I2, I3, I5)."""
        numbers = self.numbering
        if numbers.current is None or numbers.last is None:
            numbers.current = world.new_epoch()
            numbers.chain[numbers.current] = numbers.last
            place = Place(numbers.current, 1)
        else:
            place = Place(numbers.current, numbers.last.sequence + 1)
        prev = self.chain[place.epoch] = numbers.chain[place.epoch]
        event = Event(self.origin, place, prev, key, body, cause, expires)
        self.rows[place] = event
        self.last = numbers.last = place
        self.ends[place.epoch] = place.sequence
        self.written += 1
        self.history.append((body, key, place))
        world.oracle.wrote(event)
        return event

    def has(self, place: Place) -> bool:
        """Whether the node still has the event."""
        return place in self.rows or place in self.withheld

    def prefix(self) -> list[Place]:
        """Return the places that the floor has not passed, ascending; dropped ones until they are settled."""
        if not self.dropped and not self.withheld:
            return list(self.rows)
        return sorted({*self.rows, *self.dropped, *(p for p in self.withheld if p not in self.passed)})

    def head(self) -> tuple[Place, int] | None:
        """Return the oldest place that the floor has not passed, and the last one of the rows that begin there."""
        prefix = self.prefix()
        if not prefix:
            return None
        last = prefix[0].sequence
        for place in prefix[1:]:
            if place not in self.rows or place != Place(prefix[0].epoch, last + 1):
                break
            last += 1
        return prefix[0], last

    def standing(self) -> list[tuple[str, int, int, list[Range]]]:
        """Return each epoch that has something here: its first place above the floor, its last, and what is aside."""
        found = []
        aside = sorted({*self.dropped, *self.withheld})
        for epoch in sorted({place.epoch for place in [*self.rows, *aside]}):
            first = self.floor.sequence + 1 if self.floor and self.floor.epoch == epoch else 1
            elsewhere = joined((place.sequence, place.sequence) for place in aside if place.epoch == epoch)
            found.append((epoch, first, self.ends[epoch], elsewhere))
        return found

    def question(self, rules: Rules) -> OriginQuestion:
        """Return what the node says of this origin (C1)."""
        dropped: dict[str, list[tuple[int, int]]] = {}
        for epoch, sequence in sorted(self.dropped):
            dropped.setdefault(epoch, []).append((sequence, sequence))
        chain = self.chain
        if not rules.chain_reaches_back:
            standing = self.standing()
            oldest = standing[0][0] if standing else max(chain)
            chain = {epoch: prev for epoch, prev in chain.items() if epoch >= oldest}
        return OriginQuestion(
            service=self.origin.service,
            lane=self.origin.lane,
            chain=[ChainLink(epoch, str(prev or "none")) for epoch, prev in chain.items()] if rules.chain else [],
            floor=str(self.floor) if self.floor else None,
            drops=[DroppedRange(epoch, *each) for epoch, places in dropped.items() for each in joined(places)],
            withheld=[WithheldPlace(*place, event.key) for place, event in sorted(self.withheld.items())],
        )

    def push_out(self, place: Place) -> None:
        """Drop an event: the consumers are told until all have passed its place (O3)."""
        if self.rows.pop(place, None) is None:
            del self.withheld[place]
        self.passed.discard(place)
        self.dropped.add(place)
        self.pushed_out += 1

    @property
    def balanced(self) -> bool:
        """Whether written = confirmed + pending + dropped + withheld (O3)."""
        return self.written == self.confirmed + len(self.rows) + self.pushed_out + len(self.withheld)


class Store:
    """A database with outboxes, and the list of consumers that the node keeps (S3).

    ``newest`` is the oracle's: the newest list that it ever saw.
    """

    def __init__(self, outboxes: list[Outbox]) -> None:
        self.outboxes = {name_of(outbox.origin): outbox for outbox in outboxes}
        self.confirmed_by: ConfirmedBy | None = None
        self.newest: ConfirmedBy | None = None

    def opened(self) -> None:
        """Begin a new epoch with the next write (I2)."""
        for outbox in self.outboxes.values():
            outbox.current = None

    def copy(self) -> Self:
        """Return a backup."""
        copied: Self = pickle.loads(pickle.dumps(self, -1))
        return copied


class Database(Store):
    """A consumer's database.

    Attributes:
        epochs: the inbox's rows, per node and service, as they were written back.
        held: the bodies of held events, each with its stream sequence.
        parked: per origin and key what waits in order, its events; None is a body that may still come (O4).
        alone: what was parked and blocks nothing: late, or left behind by a restore.
        bodies: the archive's.
        expired: commands that were passed in their place without being done.
        outcomes: the oracle's: what became of each passed place.
        highest: the highest stream sequence that was ever taken, for dedup by position, as the rule forbids it.
    """

    def __init__(self, outboxes: list[Outbox]) -> None:
        super().__init__(outboxes)
        self.positions: dict[int, Position] = {}
        self.epochs: dict[tuple[str, str], dict[str, EpochRow]] = {}
        self.held: dict[Place, tuple[Event, int]] = {}
        self.parked: dict[tuple[Origin, str | None], list[tuple[Place, Event | None]]] = {}
        self.alone: list[Event] = []
        self.causes: set[tuple[str, str, str]] = set()
        self.bodies: dict[Place, Event] = {}
        self.effects: list[Event] = []
        self.expired: set[Body] = set()
        self.outcomes: dict[str, dict[int, str]] = {}
        self.highest = 0

    @property
    def undecided(self) -> list[tuple[tuple[str, str], str]]:
        """The epochs that hold or gave up something, or know of drops and withheld places that are not reached."""
        return [
            (origin, epoch)
            for origin, rows in self.epochs.items()
            for epoch, row in rows.items()
            if row[3] or row[6] or row[7] or row[8]
        ]


def name_of(origin: Origin) -> str:
    """Return a store's name of an outbox."""
    return f"{origin.lane} to {origin.destination}" if origin.destination else origin.lane


def row_of(state: EpochState) -> EpochRow:
    """Return what a database keeps of an epoch."""
    return (
        state.lane,
        state.prev,
        state.passed.watermark,
        tuple(state.passed.ranges),
        tuple(state.missing),
        tuple(state.wanted),
        tuple(state.dropped),
        tuple(state.withheld.items()),
        state.given_up,
        state.abandoned_after,
    )


def state_of(row: EpochRow) -> EpochState:
    """Return an epoch as it is read from a database."""
    lane, prev, watermark, held, missing, wanted, dropped, withheld, given_up, abandoned_after = row
    state = EpochState(lane, prev, SequenceSet(watermark, held))
    state.missing, state.wanted, state.dropped = list(missing), list(wanted), list(dropped)
    state.withheld = dict(withheld)
    state.given_up, state.abandoned_after = given_up, abandoned_after
    return state


def waits(row: EpochRow) -> bool:
    """Whether an epoch's row is read with every arrival of its node's service: it holds, decides or was left behind."""
    return bool(row[3] or row[6] or row[7]) or row[9] is not None
