"""One world, one seed: nodes, a broker, consumers and the network between them; ``schedule`` picks what happens.

What runs is the code that ships, the pure part of it: ``forebay.protocol``, ``forebay.sequences`` and
``forebay.identity``. Around it are in-memory stand-ins for databases, broker and network; there are no sockets, threads
or clocks but ``tick``. After a while faults stop, the world heals and drains, and the promises are checked.

Not modelled: foreign producers (I7), clocks (I8), bindings (I6, S4), uncertain COMMITs (O6), sizes and priorities,
several hubs, discards, what a command's handler emits, and a core database that is cloned with its consumers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator

from forebay.identity import Origin, partition_of
from forebay.protocol.confirmation import Answer, ConfirmedBy, Question
from tests.simulation.broker import Durable, Stream
from tests.simulation.database import Database, Outbox, Store
from tests.simulation.events import (
    ARCHIVE,
    COMMANDS,
    CORE,
    DERIVED,
    DESK,
    DESTINATIONS,
    EDGE,
    EMITTER,
    EVENTS,
    LATECOMER,
    Event,
    Message,
)
from tests.simulation.invariants import Oracle, ViolationError
from tests.simulation.lane import KNOWN, REFUSED, Outcome, Publish
from tests.simulation.node import Node
from tests.simulation.pace import PACE, Pace
from tests.simulation.reader import Consumer, Reader
from tests.simulation.receiver import Receiver
from tests.simulation.rules import ALL, Rules
from tests.simulation.sender import CoreNode, command_outboxes

_LEADING_ZEROS = re.compile("0{20,}")  # of epochs

LANES = ["ledger", "telemetry"]
"""Of the service that sends commands."""


class World:
    """Everything that a schedule is made of; the same arguments lead to the same run."""

    def __init__(
        self, seed: int, faults: Iterable[str], *, rules: Rules = ALL, pace: Pace = PACE, verbose: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.faults = frozenset(faults)
        self.rules = rules
        self.pace = pace
        self.verbose = verbose
        self.tick = self._numbers = self._epochs = self.bodies = self._incarnations = 0
        self.healed = False
        self.rounds = 0
        self.oracle = Oracle()
        self.net: list[tuple[str, Callable[[], object]]] = []
        self.failing: dict[tuple[str, object], int] = {}
        self.refused: set[object] = set()
        self.stream_copies: dict[str, list[Stream]] = {EVENTS: [], COMMANDS: []}
        self.node_backups: dict[int, Store] = {}
        self.database_backups: dict[str, tuple[Database, int]] = {}
        self.confirmed_by = ConfirmedBy(1, {ARCHIVE: ["*"], EMITTER: [EDGE], DERIVED: [CORE]})
        self.has_commands = "commands" in self.faults
        self.removed: set[str] = set()
        self.streams = {
            EVENTS: Stream(self.new_incarnation(), self.confirmed_by),
            COMMANDS: Stream(self.new_incarnation(), None),
        }
        emitted = [Outbox(Origin("core", CORE, "ledger"))]
        if self.has_commands:
            emitted += command_outboxes(self, "core", CORE, ["ledger"])
        self.consumers = {
            ARCHIVE: Consumer(ARCHIVE, ["*"], 1, []),
            EMITTER: Consumer(EMITTER, [EDGE], 2, emitted),
            DERIVED: Consumer(DERIVED, [CORE], 1, []),
        }
        if "late" in self.faults:
            added = self.consumers[LATECOMER] = Consumer(LATECOMER, [EDGE], 1, [])
            added.active = False
        frames = "frames" in self.faults
        self.nodes = [
            Node(self, name, EDGE, Store([Outbox(Origin(name, EDGE, lane), framed=framed) for lane, framed in lanes]))
            for name, lanes in (("n0", (("ledger", False), ("telemetry", frames))), ("n1", (("ledger", False),)))
        ]
        self.emitter = CoreNode(self, "core", CORE, self.consumers[EMITTER].db)
        self.desks: list[CoreNode] = []
        if self.has_commands:
            self.desks.append(CoreNode(self, "core", DESK, Store(command_outboxes(self, "core", DESK, LANES))))
            self.consumers |= {to: Receiver(to) for to in DESTINATIONS}
        for consumer in self.consumers.values():
            for partition in range(consumer.partitions):
                consumer.take_over(self, partition)

    # --- what the parts ask for

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return self.rng.random() < probability

    def strikes(self, fault: str, probability: float) -> bool:
        """Whether a fault happens that strikes everywhere."""
        return fault in self.faults and not self.healed and self.rng.random() < probability

    def say(self, *what: object) -> None:
        """Tell what happened, in a replay."""
        if self.verbose:
            print(_LEADING_ZEROS.sub("", f"{self.tick:5} {' '.join(map(str, what))}"))

    def fail(self, kind: str, *facts: object) -> None:
        """Report a violation.

        Raises:
            ViolationError: always.
        """
        raise ViolationError(_LEADING_ZEROS.sub("", f"{kind}: {' '.join(map(str, facts))}")[:600])

    def new_number(self) -> int:
        """Return a number that was not given yet."""
        self._numbers += 1
        return self._numbers

    def new_body(self) -> int:
        """Return an event's body that was not given yet."""
        self.bodies += 1
        return self.bodies

    def new_epoch(self) -> str:
        """Return a new epoch, above all earlier ones as a UUIDv7 is."""
        self._epochs += 1
        return f"{self._epochs:032x}"

    def new_incarnation(self) -> str:
        """Return when a stream is created."""
        self._incarnations += 1
        return f"incarnation {self._incarnations}"

    @property
    def stream(self) -> Stream:
        """The stream of events."""
        return self.streams[EVENTS]

    def writers(self) -> list[Node]:
        """Return the processes that write of their own accord: the edge's, and those that send commands."""
        return [*self.nodes, *self.desks]

    def processes(self) -> list[Node]:
        """Return the edge's processes and the core's."""
        return [*self.nodes, self.emitter, *self.desks]

    def all_nodes(self) -> list[Node]:
        """Return what forwards and asks: the processes, and of those that send commands a part per destination."""
        senders = [sender for process in (self.emitter, *self.desks) for sender in process.senders]
        return [*self.nodes, self.emitter, *senders]

    def any_stream(self) -> str:
        """Return the name of one of the streams."""
        return self.rng.choice((EVENTS, COMMANDS)) if self.has_commands else EVENTS

    def takers(self, name: str) -> list[Consumer]:
        """Return a consumer, or those who take the commands for a destination: its machine may be cloned."""
        return [each for key, each in self.consumers.items() if name in (key, each.destination)]

    def durable_of(self, destination: str) -> Durable:
        """Return a destination's durable."""
        return self.consumers[destination].durables[0]

    def has_registered(self, destination: str) -> bool:
        """Whether the core's registry has a destination: not one that was removed."""
        return destination not in self.removed

    def expiry(self) -> int | None:
        """Return when a command expires, if it does."""
        return self.tick + self.rng.randint(5, 80) if self.chance(0.3) else None

    def any_consumer(self) -> Consumer:
        """Return one of the consumers."""
        return self.rng.choice(list(self.consumers.values()))

    def fails(self, consumer: str, key: object) -> bool:
        """Whether a handler fails for a key now."""
        return self.failing.get((consumer, key), 0) > self.tick

    def disconnect(self) -> None:
        """Lose the readers' connections."""
        for reader in self.readers():
            reader.synced = False

    def readers(self) -> Iterator[Reader]:
        """Give all readers of all consumers."""
        for consumer in self.consumers.values():
            yield from list(consumer.readers.values())

    # --- the network

    def transmit(self, publish: Publish, group: list[int], messages: list[Message]) -> None:
        """Send messages, one or an atomic batch, to the broker; its acknowledgement comes now, later or never."""

        def store() -> list[Outcome]:
            stream = self.streams[COMMANDS if messages[0].origin.destination else EVENTS]
            if any(event.body in self.refused for message in messages for event in message.events):
                return [REFUSED] * len(messages)
            if len(messages) > 1 and any(message.message_id in stream.known for message in messages):
                return [KNOWN] * len(messages)
            return [stream.publish(message) for message in messages]

        def acknowledge(outcomes: list[Outcome]) -> None:
            for index, outcome in zip(group, outcomes, strict=True):
                publish.outcomes[index] = outcome

        def store_late() -> None:
            outcomes = store()
            self.net.append(("acknowledgement", lambda: acknowledge(outcomes)))

        if self.strikes("loss", 0.1):
            return
        if self.strikes("loss", 0.1):
            self.net.append(("publish", store_late))
            return
        outcomes = store()
        self.say("stored", outcomes, [message.message_id[-20:] for message in messages])
        if self.strikes("loss", 0.1):
            return
        if self.strikes("loss", 0.2):
            self.net.append(("acknowledgement", lambda: acknowledge(outcomes)))
        else:
            acknowledge(outcomes)

    def request(self, consumer: str, node: str, question: Question, hear: Callable[[Answer], None]) -> None:
        """Ask the reader of a node's partition; what it answers is heard later, if at all."""

        def arrive() -> None:
            asked = self.consumers.get(consumer)
            if asked and asked.destination and len(takers := self.takers(consumer)) > 1:
                asked = self.rng.choice(takers)
            reader = asked.readers[partition_of(node, asked.partitions)] if asked else None
            answer = reader.answers.get(node) if reader and self.strikes("zombie", 0.1) else None
            if answer is None and reader:
                answer = reader.answer(node, question)
            if answer is not None:
                self.net.append(("answer", lambda: hear(answer)))

        self.net.append(("question", arrive))

    def archived(self, origin: Origin, epoch: str, first: int, last: int, upto: int) -> list[Event] | None:
        """Return what the archive has of a range; None where it has not read up to a stream sequence (C5)."""
        archive = self.consumers[ARCHIVE]
        reader = archive.readers[partition_of(origin.node, archive.partitions)]
        if not reader.synced or reader.incarnation != self.stream.created:
            return None
        if reader.committed < upto and not reader.at_end():
            return None
        bodies, held = archive.db.bodies, archive.db.held
        found = {p: e for p, e in bodies.items() if p.epoch == epoch and first <= p.sequence <= last}
        found |= {p: e for p, (e, _) in held.items() if p.epoch == epoch and first <= p.sequence <= last}
        return [found[place] for place in sorted(found)]

    def step_by_step(self, steps: Iterator[None]) -> None:
        """Run transactions at once, or with others in between."""
        if self.healed or self.chance(0.7):
            for _ in steps:
                pass
        else:
            self.net.append(("transaction", lambda: self._step(steps)))

    def _step(self, steps: Iterator[None]) -> None:
        for _ in steps:
            self.net.append(("transaction", lambda: self._step(steps)))
            return

    def travel(self) -> None:
        """Let some of what is under way arrive, in some order."""
        for _ in range(1 + len(self.net) // 3):
            if not self.net:
                return
            kind, arrive = self.net.pop(self.rng.randrange(len(self.net)) if self.chance(0.3) else 0)
            if kind not in ("question", "answer") or not self.strikes("confloss", 0.1):
                arrive()

    def arrive_all(self) -> None:
        """Let all that is under way arrive, and what that sends."""
        while self.net:
            self.net.pop(0)[1]()
