"""A schedule: a scheduler picks what happens next in a world; after a while it heals, drains and is checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tests.simulation.database import Outbox
from tests.simulation.events import DESTINATIONS, LATECOMER
from tests.simulation.faults import STRIKES
from tests.simulation.intake import Intake
from tests.simulation.invariants import ViolationError, check
from tests.simulation.node import Node
from tests.simulation.pace import PACE, Pace
from tests.simulation.reader import Consumer
from tests.simulation.rules import ALL, Rules
from tests.simulation.world import World

ROUNDS = 60
"""Rounds in which a healed world must have drained (5)."""

RETRY_WITHHELD = 5
"""Rounds after which a withheld body is tried again, limits or not (B2)."""


class Result(NamedTuple):
    """What a schedule came to."""

    seed: int
    violation: str | None
    rounds: int
    events: int
    resends: int
    soft: dict[str, int]


class Schedule:
    """What happens in one world, step by step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._strikes = [name for name in sorted(world.faults) if name in STRIKES]
        self._strikes += ["withhold"] * 2 * ("withhold" in world.faults)

    def run(self) -> None:
        """Let things happen, heal, drain and check.

        Raises:
            ViolationError: a promise was broken.
        """
        for _ in range(self.world.pace.steps):
            self._something_happens()
        self._heal()
        self._drain()
        check(self.world)

    def _something_happens(self) -> None:
        self.world.tick += 1
        what = self.world.rng.random()
        if self._strikes and self.world.chance(self.world.pace.share):
            STRIKES[self.world.rng.choice(self._strikes)](self.world)
        elif what < 0.06:
            self._write()
        elif what < 0.25:
            node = self.world.rng.choice(self.world.all_nodes())
            if node.is_open:
                node.relay(self.world.rng.choice(list(node.lanes.values())))
        elif what < 0.55:
            self._read()
        elif what < 0.74:
            self._confirm(self.world.rng.choice(self.world.all_nodes()))
        elif what < 0.96:
            self.world.travel()
        else:
            consumer = self.world.any_consumer()
            if consumer.active:
                self._retry(consumer)
        for node in self.world.processes():
            if not node.is_open and self.world.chance(0.05):
                node.open()

    def _write(self) -> None:
        node = self.world.rng.choice(self.world.writers())
        if node.is_open:
            outbox = self.world.rng.choice(list(node.store.outboxes.values()))
            for _ in range(self.world.rng.randint(1, 3)):
                if outbox.origin.destination and not self._has_room(outbox):
                    return
                key, expires = self.world.rng.choice("kl"), self.world.expiry() if outbox.origin.destination else None
                event = outbox.append(self.world, key, self.world.new_body(), expires=expires)
                self.world.say("write", node.number, event)

    def _has_room(self, outbox: Outbox) -> bool:
        if len(outbox.rows) + len(outbox.withheld) < self.world.pace.room:
            return True
        self.world.oracle.soft["blocked"] += 1
        if not self.world.rules.core_blocks:
            outbox.push_out(min([*outbox.rows, *outbox.withheld]))
            return True
        return False

    def _read(self) -> None:
        consumer = self.world.any_consumer()
        if consumer.active:
            reader = consumer.readers[self.world.rng.randrange(consumer.partitions)]
            if reader.buffer and self.world.chance(0.6):
                reader.commit()
            elif self.world.chance(0.15):
                reader.redeliver()
            else:
                reader.fetch(self.world.rng.randint(1, 12))

    def _confirm(self, node: Node) -> None:
        if node.is_open:
            node.learn()
            for name in node.needed:
                node.ask(name)
            node.free()

    def _retry(self, consumer: Consumer) -> None:
        intake = Intake(self.world, consumer)
        intake.retry()
        intake.finish()

    def _heal(self) -> None:
        self.world.say("--- HEAL")
        self.world.healed = True
        self.world.arrive_all()
        self.world.failing.clear()
        self.world.refused.clear()
        if LATECOMER in self.world.consumers and not self.world.consumers[LATECOMER].active:
            del self.world.consumers[LATECOMER]
        self.world.stream.confirmed_by = self.world.confirmed_by
        self.world.removed.clear()
        for node in self.world.processes():
            if not node.is_open:
                node.open()
        for node in self.world.nodes:  # life goes on: one more event each
            for outbox in node.outboxes:
                outbox.append(self.world, "k", self.world.new_body())
        self._command(DESTINATIONS)
        self.world.disconnect()

    def _command(self, destinations: Iterable[str]) -> None:
        """Send one more command from each outbox: a destination is asked only while there is something here for it."""
        for process in (self.world.emitter, *self.world.desks):
            for outbox in process.store.outboxes.values():
                if outbox.origin.destination in destinations:
                    outbox.append(self.world, "k", self.world.new_body())

    def _settled(self) -> bool:
        outboxes = [outbox for node in self.world.all_nodes() for outbox in node.outboxes]
        return (
            not self.world.net
            and not any(outbox.rows or outbox.dropped or outbox.withheld for outbox in outboxes)
            and not any(consumer.db.parked or consumer.db.undecided for consumer in self.world.consumers.values())
            # One of two machines has a command confirmed that the other has still to read.
            and all(each.readers[0].at_end() for to in self.world.oracle.cloned for each in self.world.takers(to))
        )

    def _drain(self) -> None:
        for self.world.rounds in range(ROUNDS):
            self.world.tick += self.world.pace.grace + 1
            if self.world.rounds % 10 == 9:  # what one of two machines confirmed is freed, and the other hears it later
                self._command(self.world.oracle.cloned)
            for node in self.world.all_nodes():
                for lane in node.lanes.values():
                    if self.world.rounds % RETRY_WITHHELD == 0:
                        lane.try_withheld()
                    node.relay(lane)
            for _ in range(2):
                for reader in self.world.readers():
                    reader.fetch(1000)
                    reader.fetch(1000)
                    reader.commit()
                    reader.redeliver()
                for consumer in self.world.consumers.values():
                    self._retry(consumer)
            for node in self.world.all_nodes():
                self._confirm(node)
                self.world.arrive_all()
                node.free()
            if self._settled() and self.world.rounds > 2:
                return
        left = [
            (node.name, node.number, *outbox.origin[2:], list(outbox.rows), outbox.dropped, list(outbox.withheld))
            for node in self.world.all_nodes()
            for outbox in node.outboxes
            if outbox.rows or outbox.dropped or outbox.withheld
        ]
        parked = [
            (name, *each) for name, consumer in self.world.consumers.items() for each in consumer.db.parked.items()
        ]
        undecided = [(name, *consumer.db.undecided[:3]) for name, consumer in self.world.consumers.items()]
        self.world.fail("5-not-drained", left, parked[:3], undecided)


def simulate(
    seed: int, faults: Iterable[str], *, rules: Rules = ALL, pace: Pace = PACE, verbose: bool = False
) -> Result:
    """Run one schedule."""
    world = World(seed, faults, rules=rules, pace=pace, verbose=verbose)
    try:
        Schedule(world).run()
    except ViolationError as violation:
        return _result(world, seed, str(violation))
    except Exception as error:  # the code that ships must not raise, whatever happens
        if verbose:
            raise
        return _result(world, seed, f"raised: {type(error).__name__}: {error}")
    return _result(world, seed, None)


def _result(world: World, seed: int, violation: str | None) -> Result:
    return Result(seed, violation, world.rounds, world.bodies, world.oracle.resends, dict(world.oracle.soft))
