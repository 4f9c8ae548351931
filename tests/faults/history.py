"""The record of one run: what was acknowledged, what took effect, and what was left. It can be kept as JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Write(msgspec.Struct, frozen=True):
    """One reading that a client wrote; ``message_id`` is None while nobody answered.

    Attributes:
        number: given out once; per meter the numbers rise in the order in which its client wrote them.
        unit: readings of one request have one: they are there together or not at all.
    """

    number: int
    node: str
    meter: str
    lane: str
    unit: int
    message_id: str | None = None


class Effect(msgspec.Struct, frozen=True):
    """One row of a consumer's table of effects; the list has their order."""

    message_id: str
    node: str
    service: str
    lane: str
    meter: str
    number: int
    cause: str | None = None


class Epoch(msgspec.Struct, frozen=True):
    """One epoch of an outbox: the place before it (``none`` for the first) and its last sequence."""

    epoch: str
    lane: str
    prev: str
    last: int


class Books(msgspec.Struct, frozen=True):
    """The books of one lane, and the rows that are really there."""

    lane: str
    written: int
    confirmed: int
    pending: int
    dropped: int = 0
    withheld: int = 0


class OutboxState(msgspec.Struct, frozen=True):
    """What one store with an outbox holds at the end.

    Attributes:
        node, service: whose it is.
        domain: number and message id of each row that a unit of work wrote beside its event.
        rows: message ids of the events that are still there.
        integrity: SQLite's own verdict on the file.
    """

    node: str
    service: str
    domain: list[tuple[int, str]] = []
    rows: list[str] = []
    epochs: list[Epoch] = []
    books: list[Books] = []
    integrity: str = "ok"


class ConsumerState(msgspec.Struct, frozen=True):
    """What one consumer holds at the end: its effects in order, and its totals by node, service and meter."""

    consumer: str
    effects: list[Effect] = []
    totals: dict[str, tuple[int, int]] = {}
    parked: list[str] = []
    integrity: str = "ok"


class FreedEarly(msgspec.Struct, frozen=True):
    """An acknowledged event that was off its node's disk while a consumer did not have it."""

    node: str
    message_id: str
    consumer: str


class History(msgspec.Struct, kw_only=True):
    """One run.

    Attributes:
        faults: how often each fault was injected.
        crashed: the crash points at which a process ended, and how often.
        lost_with_disk: numbers that were written into a database that a fault then took away.
        restored: nodes, the core among them, whose database went back: what it had emitted since is not in it.
        damaged: nodes whose disk took rows of their tables, not all of which belong together any more.
        waited: meters of which an event had to wait by itself while those of other meters went on.
        rewritten: numbers that may have two events, because the first one went with such a database.
    """

    seed: int
    scenario: str
    faults: dict[str, int] = {}
    crashed: dict[str, int] = {}
    writes: list[Write] = []
    outboxes: list[OutboxState] = []
    consumers: list[ConsumerState] = []
    freed_early: list[FreedEarly] = []
    lost_with_disk: set[int] = set()
    rewritten: set[int] = set()
    restored: set[str] = set()
    damaged: set[str] = set()
    waited: set[str] = set()

    def save(self, path: Path) -> None:
        """Keep it, for a look at what a checker said."""
        path.write_bytes(msgspec.json.encode(self))


def load(path: Path) -> History:
    """Read a history that was kept."""
    return msgspec.json.decode(path.read_bytes(), type=History)
