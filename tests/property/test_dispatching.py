"""Whatever the broker answers, each destination's commands are stored in order, and none waits for another for ever."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay import Command, Lane, UnitOfWork, UnitStore
from forebay.command import Destination
from forebay.destinations import DestinationConfirming, Destinations
from forebay.dispatching import CommandRelay
from forebay.jetstream.outcomes import Denied, Outcome, Stored, Uncertain
from forebay.jetstream.publishing import Outgoing
from forebay.outbox import Outbox
from forebay.registry import known, note_registered, remove_node
from forebay.scripts import MigrationSet
from forebay.sqlite import SqliteStore
from forebay.testing.waiting import until

NODES = ["store-1", "store-2", "store-3", "store-4"]
ENGINE = MigrationSet("forebay", files("forebay") / "migrations")


class Ledger(Command, service="stock", kind="ledger"):
    number: int


class Urgent(Command, service="stock", kind="urgent", lane="urgent"):
    number: int


class Broker:
    """A publisher that stores, loses, or refuses as it is told; whether an uncertain message is stored, too."""

    max_payload = 1 << 20
    timeout = 1.0

    def __init__(self) -> None:
        self.fates: list[str] = []
        self.refusing: set[str] = set()
        self.stored: list[tuple[str, str]] = []

    def wire_bytes(self, message: Outgoing) -> int:
        return len(message.body) + 200

    def prepare(self, messages: Sequence[Outgoing]) -> None:
        """Leave it all to ``publish``."""

    async def publish(
        self,
        messages: Sequence[Outgoing],
        *,
        atomic: bool,  # noqa: ARG002
        prepared: object,  # noqa: ARG002
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        halted: set[tuple[str, str]] = set()
        for message in messages:
            origin = (message.subject.split(".")[1], message.headers["forebay-lane"])
            fate = self.fates.pop() if self.fates else "stored"
            if origin[0] in self.refusing:
                outcomes.append(Denied(message.subject, "not now"))
            elif fate == "lost" or origin in halted:  # what follows a lost one of its origin is not sent before it
                outcomes.append(Uncertain("no answer"))
                halted.add(origin)
            elif fate == "unanswered":
                self._store(message)
                outcomes.append(Uncertain("no answer"))
                halted.add(origin)
            else:
                outcomes.append(Stored(self._store(message), duplicate=False))
        return outcomes

    def _store(self, message: Outgoing) -> int:
        self.stored.append((message.subject.split(".")[1], message.headers["Nats-Msg-Id"]))
        return len(self.stored)


class System:
    def __init__(self, store: SqliteStore, outbox: Outbox) -> None:
        self.now = 0.0
        self.broker = Broker()
        self.store = UnitStore(store, outbox)
        connection = cast("Any", SimpleNamespace(connected=True, generation=1))
        self.relay = CommandRelay(outbox, self.store, connection, cast("Any", self.broker))
        self.relay._clock = lambda: self.now
        self.written: dict[str, list[str]] = {node: [] for node in NODES}

    async def write(self, node: str, lane: str, count: int) -> None:
        def unit(tx: UnitOfWork) -> list[str]:
            make = Urgent if lane == "urgent" else Ledger
            return [tx.send(make(number=each), to=node) for each in range(count)]

        self.written[node] += await self.store.write(unit)

    async def drain(self) -> None:
        """Send until nothing is left to be sent now, and let all pauses end before."""
        self.now += 3600.0
        for _ in range(200):
            if not await self.relay._send_next():
                return
        raise AssertionError("it sends for ever")

    def first_copies(self, node: str) -> list[str]:
        return list(dict.fromkeys(message_id for to, message_id in self.broker.stored if to == node))


def in_order(ids: list[str]) -> bool:
    """Whether the ids of each epoch (an origin has one here) ascend by one from 1."""
    seen: dict[str, int] = {}
    for message_id in ids:
        epoch, _, sequence = message_id.rpartition("-")
        if int(sequence) != seen.get(epoch, 0) + 1:
            return False
        seen[epoch] = int(sequence)
    return True


writes = st.tuples(st.just("write"), st.sampled_from(NODES), st.sampled_from(["ledger", "urgent"]), st.integers(1, 9))
fates = st.tuples(
    st.just("fates"), st.lists(st.sampled_from(["stored", "lost", "unanswered"]), max_size=12), st.none(), st.none()
)
drains = st.tuples(st.just("drain"), st.none(), st.none(), st.none())
refuses = st.tuples(st.just("refuse"), st.sets(st.sampled_from(NODES), max_size=2), st.none(), st.none())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(writes, fates, drains, refuses), max_size=12))
def test_each_destination_is_served_in_order_and_none_hinders_another_i1(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(_run(steps))


async def _run(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox("core", "orders", [Lane("urgent"), Lane("ledger")], sends=True)
        store = await SqliteStore.open(Path(folder) / "orders.db", migrations=[ENGINE])
        try:
            await store.write(outbox.bind, "s1")
            system = System(store, outbox)
            for what, one, lane, count in steps:
                match what:
                    case "write":
                        await system.write(one, lane, count)
                    case "fates":
                        system.broker.fates = list(one)
                    case "refuse":
                        system.broker.refusing = set(one)
                    case _:
                        await system.drain()
                for node in NODES:
                    assert in_order(system.first_copies(node))
            system.broker.fates = []
            for _ in range(6):  # pauses of what was refused grow batches of two again
                await system.drain()
            for node in set(NODES) - system.broker.refusing:
                assert set(system.first_copies(node)) == set(system.written[node]), "others do not hinder it"
            system.broker.refusing = set()
            for _ in range(6):
                await system.drain()
            for node in NODES:
                assert set(system.first_copies(node)) == set(system.written[node])
                assert in_order(system.first_copies(node))
        finally:
            await store.close()


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[System]:
    outbox = Outbox("core", "orders", [Lane("urgent"), Lane("ledger")], sends=True)
    store = await SqliteStore.open(folder / "orders.db", migrations=[ENGINE])
    try:
        await store.write(outbox.bind, "s1")
        yield System(store, outbox)
    finally:
        await store.close()


async def test_a_destination_whose_commands_are_all_freed_is_not_looked_at_for_ever(tmp_path: Path) -> None:
    def free_everything(tx: UnitOfWork) -> None:
        tx.execute("delete from forebay_outbox")
        tx.execute("update forebay_origin set bytes = 0")

    async with opened(tmp_path) as system:
        await system.write("store-1", "ledger", 3)
        await system.drain()
        await system.store.write(free_everything)
    async with opened(tmp_path) as system:
        await system.drain()  # takes note of what is on the disk
        await system.drain()  # of what was written since, as it does whenever it is woken
        await system.write("store-1", "ledger", 2)
        await system.drain()
        assert [message_id.rpartition("-")[2] for message_id in system.first_copies("store-1")] == ["1", "2"]


async def test_a_destination_whose_last_commands_were_dropped_is_not_looked_at_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path) as system:
        await system.drain()
        await system.write("store-1", "ledger", 3)
        await system.write("store-2", "ledger", 1)
        await system.store.write(remove_node, "store-1", "it was closed")
        await system.drain()
        assert system.first_copies("store-1") == []
        assert system.first_copies("store-2") == system.written["store-2"]
        system.written["store-1"].clear()
        await system.write("store-1", "ledger", 1)
        await system.drain()
        assert system.first_copies("store-1") == system.written["store-1"]


async def test_s4_a_node_that_was_removed_is_not_registered_again_until_a_person_does_it(tmp_path: Path) -> None:
    to = Destination("store-1", "stock")
    async with opened(tmp_path) as system:
        await system.write("store-1", "ledger", 1)
        await system.store.write(note_registered, to)
        assert await system.store.read(known) == [to]
        await system.store.write(remove_node, "store-1", "it was closed")
        assert await system.store.read(known) == []
        await system.store.write(note_registered, to)
        assert await system.store.read(known) == [to]


async def test_a_destination_that_something_is_sent_to_while_it_confirms_the_rest_is_asked_on(tmp_path: Path) -> None:
    nothing = cast("Any", None)

    async with opened(tmp_path) as system:
        outbox = system.relay._outbox
        connection = cast("Any", SimpleNamespace(wait_connected=anyio.lowlevel.checkpoint))
        asked = Destinations(outbox, system.store, connection)
        asked.attach(system.relay)

        class Racing(DestinationConfirming):
            turns = 0

            async def turn(self) -> bool:
                self.turns += 1
                self.due = float("inf")
                if self.turns == 1:
                    asked.forwarded(self.destination)
                return True

        one = Racing("store-1/stock", outbox, system.store, nothing, nothing)
        asked.asking[one.destination] = one
        async with anyio.create_task_group() as tasks:
            await tasks.start(asked.run)
            await until(lambda: not asked.asking)
            tasks.cancel_scope.cancel()
        assert one.turns == 2
