"""Confirmation against a real broker: what consumers answer, and what a node frees for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import TaskStatus

from forebay import Message, Service, UnitOfWork
from forebay.confirming import Confirming
from forebay.envelope import format_time
from forebay.errors import LinkError
from forebay.identity import Place, parse_message_id, partition_of
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.outcomes import Stored
from forebay.jetstream.publishing import Outgoing, Publisher
from forebay.jetstream.streams import api_request, stream_state
from forebay.jetstream.topology.confirmed_by import KEY, parse
from forebay.protocol.confirmation import ConfirmedBy
from forebay.running import RunningService
from forebay.tail import SHED_GRACE
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import (
    NODE,
    NOTES,
    DoorOpened,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    open_doors,
    rows,
    serving,
    until,
)

GRACE = 100.0
NEIGHBOUR = next(f"house-{n}" for n in range(2, 100) if partition_of(f"house-{n}") == partition_of(NODE))
"""A node in the same partition, whose epochs the same reader holds."""


ENDLESS = -1
"""The number of an event in whose handler a reader stays until ``go_on`` is set."""
busy, go_on = threading.Event(), threading.Event()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def listener(name: str) -> Service:
    service = Service(name)

    @service.on(DoorOpened)
    def write_down(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
        if event.number == ENDLESS:
            busy.set()
            assert go_on.wait(30)
        note(tx, message.node, event.number)

    return service


def by_hand(clock: Callable[[], float]) -> Callable[[RunningService], None]:
    """Let a test say when the node asks and frees."""

    def prepare(service: RunningService) -> None:
        assert service.relay is not None
        confirming = Confirming(
            service.outbox, service.store, service._connection, service.relay, grace=GRACE, clock=clock
        )

        async def run(*, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
            confirming.confirmed_by = await service.store.read(service.outbox.confirmed_by)
            task_status.started()

        confirming._asked.set()
        confirming.run = run  # type: ignore[method-assign]
        service.confirming = confirming

    return prepare


@asynccontextmanager
async def emitting(
    server: NatsServer, folder: Path, clock: Callable[[], float], *, node: str = NODE, **options: Any
) -> AsyncIterator[RunningService]:
    """Run the door of a node, which asks and frees when it is told to."""
    async with (
        connected(server.url, node=node) as connection,
        serving(door(**options), connection, folder, node=node, prepare=by_hand(clock)) as service,
    ):
        yield service


@asynccontextmanager
async def reading(server: NatsServer, folder: Path, name: str = "audit") -> AsyncIterator[RunningService]:
    async with (
        connected(server.url, node="core") as connection,
        serving(listener(name), connection, folder, node="core", schema=NOTES) as service,
    ):
        await until(lambda: service.consumer is not None and service.consumer.reading)
        yield service


def confirming_of(service: RunningService) -> Confirming:
    assert service.confirming is not None
    return service.confirming


def place_of(message_id: str) -> Place:
    identity = parse_message_id(message_id)
    assert identity is not None
    return identity.place


async def kept(service: RunningService) -> int:
    return int((await rows(service.store, "select count(*) from forebay_outbox"))[0][0])


async def confirmed(service: RunningService, ids: Sequence[str], by: Sequence[str] = ("audit",)) -> None:
    """Ask until every one of the events is confirmed by the consumers."""
    confirming = confirming_of(service)

    async def all_confirmed() -> bool:
        try:
            await confirming.ask()
        except LinkError:
            return False
        known = [confirming.whereabouts(place_of(each)) for each in ids]
        return all(set(each) == set(by) and all(yes for yes, _ in each.values()) for each in known)

    await eventually(all_confirmed, every=0.05)


async def question(service: RunningService) -> bytes:
    return msgspec.json.encode((await service.store.read(confirming_of(service)._prepare)).question)


async def answer(connection: Connection, body: bytes, *, node: str = NODE, consumer: str = "audit") -> dict[str, Any]:
    reply = await connection.request(f"confirm.event.{consumer}.{node}", body, timeout=5)
    return msgspec.json.decode(reply.body, type=dict[str, Any])


async def version(connection: Connection) -> int:
    """Return the version of the stream's list of consumers."""
    known = parse((await stream_state(connection, "EVENTS")).metadata.get(KEY))
    assert known is not None
    return known.version


async def set_list(connection: Connection, known: ConfirmedBy | None, text: str | None = None) -> None:
    """Write the stream's list of consumers; None takes it away."""
    config = (await stream_state(connection, "EVENTS")).config
    metadata = {name: value for name, value in (config.get("metadata") or {}).items() if name != KEY}
    if known is not None or text is not None:
        metadata[KEY] = text if known is None else known.encode()
    await api_request(connection, "STREAM.UPDATE.EVENTS", {**config, "metadata": metadata})


@pytest.fixture
async def admin(nats_server: NatsServer) -> AsyncIterator[Connection]:
    # A task of its own: a task group may not span the two tasks in which a fixture is set up and torn down.
    connection = Connection(ConnectionConfig(servers=[nats_server.url], name="admin", inbox_prefix="_INBOX_admin"))
    running = asyncio.create_task(connection.run())
    with anyio.fail_after(10):
        await connection.wait_connected()
    await apply(connection, "audit")
    yield connection
    running.cancel()
    await asyncio.wait({running})


async def test_the_answer_says_who_reads_what_how_far_and_for_which_list(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    async with emitting(nats_server, tmp_path, Clock()) as node, reading(nats_server, tmp_path) as audit:
        ids = await node.store.write(open_doors, 1, 5)
        await confirmed(node, ids)
        said = await answer(admin, await question(node))
        state = await stream_state(admin, "EVENTS")
        store = await rows(audit.store, "select id from forebay_store")
        assert said.pop("clock").endswith("Z")
        assert said == {
            "v": 1,
            "consumer": "audit",
            "store": store[0][0],
            "incarnation": state.created,
            "stream_end": 5,
            "position": 5,
            "epochs": {place_of(ids[0]).epoch: {"watermark": 5}},
            "confirmed_by": {"version": await version(admin), "consumers": {"audit": ["door"]}},
        }
        assert "forwarded" in (await question(node)).decode()


async def test_the_end_of_the_stream_counts_as_read_where_nothing_of_the_partition_is_pending(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    far = next(f"house-{n}" for n in range(2, 100) if partition_of(f"house-{n}") != partition_of(NODE))
    async with (
        emitting(nats_server, tmp_path, Clock()) as node,
        emitting(nats_server, tmp_path, Clock(), node=far) as other,
        reading(nats_server, tmp_path),
    ):
        await confirmed(node, await node.store.write(open_doors, 1, 2))
        await confirmed(other, await other.store.write(open_doors, 1, 3))
        said = await answer(admin, await question(node))
        assert (said["position"], said["stream_end"]) == (5, 5)


@pytest.mark.usefixtures("admin")
async def test_held_events_are_said_and_not_confirmed(nats_server: NatsServer, tmp_path: Path) -> None:
    """The third of four events never arrives; the fourth waits for it."""
    async with connected(nats_server.url, node="thief") as thief, reading(nats_server, tmp_path) as audit:
        async with emitting(nats_server, tmp_path, Clock()) as node:
            assert node.relay is not None
            publisher = node._publisher
            assert publisher is not None
            publish = publisher.publish

            async def stolen(messages: Sequence[Outgoing], *, atomic: bool = True, **_: object) -> list[Any]:
                # Under any suffix: the node soon notices that the reader has read past it, and sends it again.
                passed = [each for each in messages if place_of(each.headers["Nats-Msg-Id"]).sequence != 3]
                outcomes = iter(await publish(passed, atomic=atomic))
                return [next(outcomes) if each in passed else Stored(1, duplicate=False) for each in messages]

            publisher.publish = stolen  # type: ignore[method-assign]
            ids = await node.store.write(open_doors, 1, 4)
            epoch = place_of(ids[0]).epoch
            await confirmed(node, ids[:2])
            await until(lambda: audit.consumer is not None and audit.consumer.totals.held == 1)
            said = await answer(thief, await question(node))
            assert said["epochs"] == {epoch: {"watermark": 2, "held": [[4, 4]]}}
            await confirming_of(node).ask()
            assert confirming_of(node).whereabouts(place_of(ids[3])) == {"audit": (False, None)}
        async with emitting(nats_server, tmp_path, Clock()) as node:  # it sends again what it has
            await confirmed(node, ids)
            assert await numbers(audit.store) == [1, 2, 3, 4]


async def test_every_epoch_that_still_has_events_is_asked_for_across_restarts(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    ids: list[str] = []
    for number in range(1, 4):
        async with emitting(nats_server, tmp_path, Clock()) as node:
            ids += await node.store.write(open_doors, number, number)
    async with emitting(nats_server, tmp_path, Clock()) as node, reading(nats_server, tmp_path) as audit:
        await confirmed(node, ids)
        asked = msgspec.json.decode(await question(node))
        (origin,) = asked["origins"]
        assert origin["chain"] == [
            {"epoch": place_of(ids[0]).epoch, "prev": "none"},
            {"epoch": place_of(ids[1]).epoch, "prev": ids[0]},
            {"epoch": place_of(ids[2]).epoch, "prev": ids[1]},
        ]
        said = await answer(admin, await question(node))
        assert said["epochs"] == {place_of(each).epoch: {"watermark": 1} for each in ids}
        assert await numbers(audit.store) == [1, 2, 3]


@pytest.mark.usefixtures("admin")
async def test_events_are_freed_as_a_prefix_after_a_grace_between_two_answers(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    clock = Clock()
    async with reading(nats_server, tmp_path):
        async with emitting(nats_server, tmp_path, clock) as node:
            ids = await node.store.write(open_doors, 1, 5)
            await confirmed(node, ids)
        async with emitting(nats_server, tmp_path, clock) as node:
            confirming = confirming_of(node)
            ids += await node.store.write(open_doors, 6, 8)
            await confirmed(node, ids)
            assert await confirming.free() == 0
            clock.now += GRACE  # the time alone frees nothing: the answer is still the one from before
            assert await confirming.free() == 0
            clock.now -= 1
            await confirming.ask()
            assert await confirming.free() == 0
            ids += await node.store.write(open_doors, 9, 9)
            await confirmed(node, ids)
            clock.now += 1
            await confirming.ask()
            assert await confirming.free() == 8
            assert await kept(node) == 1
            asked = msgspec.json.decode(await question(node))
            assert asked["origins"][0]["floor"] == ids[7]
            books = await rows(node.store, "select written, confirmed from forebay_origin where lane = 'ledger'")
            assert books == [(9, 8)]
            clock.now += GRACE
            await confirming.ask()
            assert await confirming.free() == 1
            assert await rows(node.store, "select bytes from forebay_origin where lane = 'ledger'") == [(0,)]


@pytest.mark.usefixtures("admin")
async def test_after_a_restart_of_the_node_the_grace_begins_anew(nats_server: NatsServer, tmp_path: Path) -> None:
    clock = Clock()
    async with reading(nats_server, tmp_path):
        async with emitting(nats_server, tmp_path, clock) as node:
            ids = await node.store.write(open_doors, 1, 5)
            await confirmed(node, ids)
        clock.now += GRACE
        async with emitting(nats_server, tmp_path, clock) as node:
            await confirmed(node, ids)
            assert await confirming_of(node).free() == 0


@pytest.mark.parametrize(
    ("known", "text"),
    [(None, None), (None, "{"), (ConfirmedBy(9, {}), None), (ConfirmedBy(1, {"audit": ["window"]}), None)],
    ids=["missing", "unreadable", "empty", "of another service"],
)
async def test_nothing_is_freed_where_no_list_names_a_consumer(
    nats_server: NatsServer, admin: Connection, tmp_path: Path, known: ConfirmedBy | None, text: str | None
) -> None:
    clock = Clock()
    await set_list(admin, known, text)
    async with emitting(nats_server, tmp_path, clock) as node, reading(nats_server, tmp_path) as audit:
        confirming = confirming_of(node)
        await node.store.write(open_doors, 1, 5)
        await eventually(lambda: _noted(audit, 5))
        for _ in range(3):
            await confirming.ask()
            assert await confirming.free() == 0
            clock.now += GRACE
        assert await kept(node) == 5


async def _noted(service: RunningService, count: int) -> bool:
    return len(await numbers(service.store)) == count


@pytest.mark.parametrize(
    "later",
    [None, ConfirmedBy(4, {}), ConfirmedBy(2, {"audit": ["door"]})],
    ids=["missing", "empty", "older"],
)
async def test_nothing_is_freed_from_when_the_list_that_a_node_has_seen_is_gone_or_older(
    nats_server: NatsServer, admin: Connection, tmp_path: Path, later: ConfirmedBy | None
) -> None:
    clock = Clock()
    await set_list(admin, ConfirmedBy(3, {"audit": ["door"]}))
    async with emitting(nats_server, tmp_path, clock) as node, reading(nats_server, tmp_path):
        confirming = confirming_of(node)
        await confirmed(node, await node.store.write(open_doors, 1, 5))
        await set_list(admin, later)
        clock.now += GRACE
        await confirming.ask()
        assert await confirming.free() == 0
        assert confirming.confirmed_by == ConfirmedBy(3, {"audit": ["door"]})
        await set_list(admin, ConfirmedBy(5, {"audit": ["*"]}))
        clock.now += GRACE
        await confirming.ask()
        assert await confirming.free() == 5
        assert await node.store.read(node.outbox.confirmed_by) == ConfirmedBy(5, {"audit": ["*"]})


async def test_a_consumer_that_is_added_later_is_waited_for(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    clock = Clock()
    async with emitting(nats_server, tmp_path, clock) as node, reading(nats_server, tmp_path):
        confirming = confirming_of(node)
        ids = await node.store.write(open_doors, 1, 5)
        await confirmed(node, ids)
        await apply(admin, "audit", "ledger")
        clock.now += GRACE
        await confirming.ask()  # the answer of the one names the other
        with pytest.raises(LinkError):  # which nobody is yet
            await confirming.ask()
        assert await confirming.free() == 0
        assert confirming.whereabouts(place_of(ids[0]))["ledger"] == (False, None)
        async with reading(nats_server, tmp_path, "ledger"):
            await confirmed(node, ids, by=("audit", "ledger"))
            assert await confirming.free() == 0  # its grace has only begun
            clock.now += GRACE
            await confirming.ask()
            assert await confirming.free() == 5


async def test_one_that_does_not_answer_keeps_everything(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    clock = Clock()
    await apply(admin, "audit", "ledger")
    async with emitting(nats_server, tmp_path, clock) as node, reading(nats_server, tmp_path):
        confirming = confirming_of(node)
        ids = await node.store.write(open_doors, 1, 5)
        async with reading(nats_server, tmp_path, "ledger"):
            await confirmed(node, ids, by=("audit", "ledger"))
        clock.now += GRACE
        with pytest.raises(LinkError):
            await confirming.ask()
        assert await confirming.free() == 0


@pytest.mark.usefixtures("admin")
async def test_a_consumer_that_says_less_than_before_takes_back_and_its_grace_begins_anew(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    clock = Clock()
    async with emitting(nats_server, tmp_path, clock) as node, reading(nats_server, tmp_path) as audit:
        confirming = confirming_of(node)
        ids = await node.store.write(open_doors, 1, 5)
        await confirmed(node, ids)
        await audit.store.write(lambda tx: tx.execute("update forebay_inbox set watermark = 2"))
        clock.now += GRACE
        await confirming.ask()
        assert confirming.whereabouts(place_of(ids[4])) == {"audit": (False, None)}
        assert await confirming.free() == 0  # its shorter word is a new one
        clock.now += GRACE
        await confirming.ask()
        assert await confirming.free() == 2
        await audit.store.write(lambda tx: tx.execute("update forebay_inbox set watermark = 5"))
        await confirming.ask()
        assert await confirming.free() == 0
        clock.now += GRACE
        await confirming.ask()
        assert await confirming.free() == 3


async def test_only_the_asking_nodes_own_epochs_are_answered_for(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    async with (
        emitting(nats_server, tmp_path, Clock()) as node,
        emitting(nats_server, tmp_path, Clock(), node=NEIGHBOUR) as neighbour,
        reading(nats_server, tmp_path),
    ):
        await confirmed(node, await node.store.write(open_doors, 1, 2))
        await confirmed(neighbour, await neighbour.store.write(open_doors, 1, 2))
        asked = await question(neighbour)
        assert (await answer(admin, asked, node=NEIGHBOUR))["epochs"]
        assert (await answer(admin, asked, node=NODE))["epochs"] == {}


async def test_a_question_that_cannot_be_read_is_not_answered_and_the_next_one_is(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    async with emitting(nats_server, tmp_path, Clock()) as node, reading(nats_server, tmp_path):
        for body in (b"", b"{", b"[]", b'{"v":1}', b"\xff", b'{"v":1,"origins":[{"service":7}]}'):
            with pytest.raises(LinkError):
                await admin.request(f"confirm.event.audit.{NODE}", body, timeout=0.2)
        await confirmed(node, await node.store.write(open_doors, 1, 2))


async def test_a_node_learns_the_list_from_any_reader_and_keeps_it(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    async with emitting(nats_server, tmp_path, Clock()) as node:
        confirming = confirming_of(node)
        with pytest.raises(LinkError):
            await confirming.ask()
        assert confirming.needed == []
        async with reading(nats_server, tmp_path):
            await confirming.ask()
            assert confirming.needed == ["audit"]
            reply = await admin.request("confirm.list.anyone", b'{"v":1}', timeout=5)
            expected = {"version": await version(admin), "consumers": {"audit": ["door"]}}
            assert msgspec.json.decode(reply.body) == expected
    async with emitting(nats_server, tmp_path, Clock()) as node:
        await until(lambda: confirming_of(node).needed == ["audit"])  # on PostgreSQL once it is in charge


async def test_a_position_in_a_stream_that_is_gone_is_not_said_of_the_one_in_its_place(
    nats_server: NatsServer, admin: Connection, tmp_path: Path
) -> None:
    """The reader of the new stream is stuck at its first event; its old position was beyond that."""
    async with reading(nats_server, tmp_path) as audit:
        async with emitting(nats_server, tmp_path, Clock()) as node:
            await confirmed(node, await node.store.write(open_doors, 1, 10))
            asked = await question(node)
        await api_request(admin, "STREAM.DELETE.EVENTS")
        await until(lambda: bool(audit.problems()))
        await apply(admin, "audit")
        headers = {
            "Nats-Msg-Id": "order/1",
            "ce-specversion": "1.0",
            "ce-id": "order/1",
            "ce-source": f"/{NODE}/door",
            "ce-type": "door.door-opened.v1",
        }
        async with Publisher(admin, "EVENTS") as publisher:
            await publisher.publish([Outgoing(f"evt.{NODE}.door.door-opened", headers, b'{"number":-1}')])
        await until(busy.is_set, 30)
        try:
            said = await answer(admin, asked)
        finally:
            go_on.set()
        assert (said["stream_end"], said["position"]) == (1, 0)
        assert [each["watermark"] for each in said["epochs"].values()] == [10]


@pytest.mark.usefixtures("admin")
async def test_a_tail_above_its_share_of_the_budget_goes_after_the_shorter_grace(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    clock = Clock()
    async with emitting(nats_server, tmp_path, clock, budget=100_000) as node, reading(nats_server, tmp_path):
        confirming = confirming_of(node)
        ids = await node.store.write(open_doors, 1, 200)
        await confirmed(node, ids)
        before = (await rows(node.store, "select bytes from forebay_origin where lane = 'ledger'"))[0][0]
        assert before > 40_000
        clock.now += SHED_GRACE - 1
        await confirming.ask()
        assert await confirming.free() == 0
        clock.now += 1
        await confirming.ask()
        freed = await confirming.free()
        after = (await rows(node.store, "select bytes from forebay_origin where lane = 'ledger'"))[0][0]
        assert 19_000 < after <= 20_000
        assert await kept(node) == 200 - freed
        clock.now += GRACE - SHED_GRACE
        await confirming.ask()
        await confirming.free()
        assert await kept(node) == 0


async def test_an_event_can_be_followed_from_the_disk_to_everywhere(nats_server: NatsServer, tmp_path: Path) -> None:
    clock = Clock()
    async with connected(nats_server.url, node="admin") as admin, emitting(nats_server, tmp_path, clock) as node:
        (event,) = await node.store.write(open_doors, 1, 1)
        found = await node.find(event)
        assert found is not None
        assert (found.message_id, found.service, found.lane, found.state) == (event, "door", "ledger", "stored")
        assert found.stored_at is not None
        assert (found.forwarded, found.consumers) == (None, {})
        await apply(admin, "audit")
        await eventually(lambda: _is(node, event, "forwarded"))
        found = await node.find(event)
        assert found is not None
        assert found.forwarded is not None
        assert (found.forwarded.stream_sequence, found.consumers) == (1, {})
        assert found.stored_at is not None
        assert found.forwarded.at >= found.stored_at
        async with reading(nats_server, tmp_path):
            await confirmed(node, [event])
            found = await node.find(event)
            assert found is not None
            assert found.state == "confirmed"
            assert found.consumers["audit"].confirmed
            assert found.consumers["audit"].at is not None
            assert found.consumers["audit"].at >= found.stored_at  # type: ignore[operator]
            clock.now += GRACE
            await confirming_of(node).ask()
            assert await confirming_of(node).free() == 1
        freed = msgspec.json.decode(msgspec.json.encode(await node.find(event)))
        assert freed == {"message_id": event, "service": "door", "lane": "ledger", "state": "confirmed"}
        assert await node.find(str(Place(place_of(event).epoch, 2))) is None
        assert await node.find(str(Place("0" * 32, 1))) is None
        assert await node.find("order/4711") is None


async def _is(service: RunningService, message_id: str, state: str) -> bool:
    found = await service.find(message_id)
    return found is not None and found.state == state


@pytest.mark.usefixtures("admin")
async def test_after_a_restart_a_node_asks_before_it_sends_and_passes_over_what_everyone_has(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection, reading(nats_server, tmp_path) as audit:
        ids: list[str] = []
        for opening in range(3):
            async with serving(door(), connection, tmp_path) as node:
                ids += await node.store.write(open_doors, opening * 10 + 1, opening * 10 + 10)
                await eventually(partial(_is, node, ids[-1], "confirmed"))
                assert node.relay is not None
                assert node.relay.published == 10
        assert await numbers(audit.store) == list(range(1, 31))
        assert audit.consumer is not None
        assert audit.consumer.totals.duplicates == 0


@pytest.mark.usefixtures("admin")
async def test_after_a_restart_a_node_sends_again_what_a_consumer_does_not_have_any_more(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection, reading(nats_server, tmp_path) as audit:
        async with serving(door(), connection, tmp_path) as node:
            ids = await node.store.write(open_doors, 1, 10)
            await eventually(partial(_is, node, ids[-1], "confirmed"))
        await audit.store.write(lambda tx: tx.execute("update forebay_inbox set watermark = 4"))
        async with serving(door(), connection, tmp_path) as node:
            await until(lambda: node.relay is not None and node.relay.published == 6)


@pytest.mark.usefixtures("admin")
async def test_a_node_that_runs_by_itself_has_its_events_confirmed_soon(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with (
        connected(nats_server.url) as connection,
        serving(door(), connection, tmp_path) as node,
        reading(nats_server, tmp_path),
    ):
        ids = await node.store.write(open_doors, 1, 20)
        await eventually(lambda: _is(node, ids[-1], "confirmed"), 10)
        ids = await node.store.write(open_doors, 21, 22)
        await eventually(lambda: _is(node, ids[-1], "confirmed"), 10)


@pytest.mark.usefixtures("admin")
async def test_a_node_knows_how_far_its_clock_is_from_the_cores_i8(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with emitting(nats_server, tmp_path, Clock()) as node, reading(nats_server, tmp_path):
        await confirmed(node, await node.store.write(open_doors, 1, 1))
        assert confirming_of(node).clock_offset == pytest.approx(0, abs=2)
        ahead = time.time() + 3600
        monkeypatch.setattr("forebay.answering.format_time", lambda _: format_time(datetime.fromtimestamp(ahead, UTC)))
        await confirming_of(node).ask()
        assert confirming_of(node).clock_offset == pytest.approx(3600, abs=10)
