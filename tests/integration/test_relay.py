"""The relay against a real broker: order, priority, outages, and refusals that pause a lane without spinning."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from forebay import Lane, Service
from forebay.identity import parse_place
from forebay.jetstream.connection import Connection, Incoming
from forebay.jetstream.streams import api_request, stream_state
from forebay.link import Link
from forebay.looking_ahead import Ahead
from forebay.packets import Batch, Look
from forebay.relay import Relay
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import (
    NODE,
    connected,
    create_stream,
    door,
    measure,
    open_doors,
    serving,
    started,
    until,
)


def relay_of(service: RunningService) -> Relay:
    assert service.relay is not None
    return service.relay


async def stored(connection: Connection) -> list[tuple[str, str]]:
    """Return (kind, message id) of everything in the stream, in its order."""
    state = await stream_state(connection, "EVENTS")
    found = []
    for sequence in range(state.first, state.last + 1):
        reply = await connection.request("$JS.API.DIRECT.GET.EVENTS", b'{"seq":%d}' % sequence, timeout=5)
        found.append((reply.headers["Nats-Subject"].rsplit(".", 1)[-1], reply.headers["Nats-Msg-Id"]))
    return found


async def set_stream(connection: Connection, **settings: object) -> None:
    state = await stream_state(connection, "EVENTS")
    await api_request(connection, "STREAM.UPDATE.EVENTS", {**state.config, **settings})


@asynccontextmanager
async def listening(url: str, subject: str = "evt.>") -> AsyncIterator[list[Incoming]]:
    """Collect what anybody publishes, whether or not a stream takes it."""
    async with connected(url, node="listener") as connection:
        heard: list[Incoming] = []
        subscription = await connection.subscribe(subject, heard.append)
        await connection.flush(5)
        yield heard
        await subscription.unsubscribe()


async def test_a_backlog_drains_in_order_with_the_urgent_lane_first(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            late = await service.store.write(measure, 1, 20)
            ids = await service.store.write(open_doors, 1, 30)
            await until(lambda: relay_of(service).published == 50)
            found = await stored(connection)
            assert [each for kind, each in found if kind == "door-opened"] == ids
            assert [each for kind, each in found if kind == "measured"] == late


async def test_lanes_drain_by_priority_and_the_last_one_does_not_starve(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """With both lanes filled before there is a stream, nearly all of the first goes before the second."""
    async with connected(nats_server.url) as connection, serving(door(), connection, tmp_path) as service:
        late = await service.store.write(measure, 1, 700)
        early = await service.store.write(open_doors, 1, 1200)
        await create_stream(connection)
        await until(lambda: relay_of(service).published == 1900)
        found = [each for _, each in await stored(connection)]
        assert [each for each in found if each in set(early)] == early
        assert [each for each in found if each in set(late)] == late
        before = found[: found.index(early[-1])]
        assert 0 < len(before) - len(early) + 1 <= 0.2 * len(early)


async def test_the_few_events_of_each_lane_are_sent_though_nobody_wakes_the_relay_again(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """What a look leaves in other lanes is known by it: nothing may be written for days."""
    async with connected(nats_server.url) as connection, serving(door(), connection, tmp_path) as service:
        late = await service.store.write(measure, 1, 1)
        early = await service.store.write(open_doors, 1, 1)
        await create_stream(connection)
        await until(lambda: relay_of(service).published == 2)
        assert sorted(each for _, each in await stored(connection)) == sorted([*early, *late])


async def test_over_a_thin_link_a_backlog_of_telemetry_delays_the_ledger_by_little_o5(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    def thin(service: RunningService) -> None:
        relay_of(service)._link = Link(kbit=400)  # 50,000 bytes per second

    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path, prepare=thin) as service:
            began = anyio.current_time()
            await service.store.write(measure, 1, 1200)
            await until(lambda: relay_of(service).published > 30)
            longest = 0.0
            for number in range(3):
                asked = anyio.current_time()
                ids = await service.store.write(open_doors, number, number)
                await until(lambda ids=ids: _sent_all(service, ids))  # type: ignore[misc]
                longest = max(longest, anyio.current_time() - asked)
            assert relay_of(service).published < 1200  # the backlog is there yet
            assert longest < 4.5
            await until(lambda: relay_of(service).published == 1203, 40)
            size = sum([len(body) for body in await bodies(connection)])
            assert size / (anyio.current_time() - began) <= 50_000


async def bodies(connection: Connection) -> list[bytes]:
    state = await stream_state(connection, "EVENTS")
    return [
        (await connection.request("$JS.API.DIRECT.GET.EVENTS", b'{"seq":%d}' % sequence, timeout=5)).body
        for sequence in range(state.first, state.last + 1)
    ]


async def test_what_was_written_after_a_look_ahead_that_found_nothing_is_found(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection, serving(door(), connection, tmp_path) as service:
        relay = relay_of(service)
        await until(lambda: relay.problem is not None)  # there is no stream: it sends nothing
        state = relay.lanes["ledger"]
        room = state.room(1 << 20, relay._publisher.max_payload)
        ids = await service.store.write(open_doors, 1, 3)
        place = parse_place(ids[0])
        assert place is not None
        state.sent = place
        relay._ahead.found = Ahead(Look("ledger", place, room), Batch([], 0, more=False))
        found = await relay._next([Look("ledger", place, room)])
        assert [packet.first for packet in found.batch.packets] == [2, 3]


async def test_a_lane_with_a_flush_interval_fills_its_batch_first(nats_server: NatsServer, tmp_path: Path) -> None:
    declared = Service("door", lanes=[Lane("ledger"), Lane("telemetry", flush_after="1s")])
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(declared, connection, tmp_path) as service:
            began = anyio.current_time()
            for number in range(20):
                await service.store.write(measure, number, number)
            await service.store.write(open_doors, 1, 1)
            await until(lambda: relay_of(service).published == 1)
            assert anyio.current_time() - began < 1  # the other lane does not wait for it
            await until(lambda: relay_of(service).published > 1)
            assert relay_of(service).published == 21
            assert 1 <= anyio.current_time() - began < 5


async def test_a_batch_that_has_filled_does_not_wait_for_the_flush_interval(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    declared = Service("door", lanes=[Lane("ledger", flush_after="1h"), Lane("telemetry")])
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(declared, connection, tmp_path) as service:
            relay = relay_of(service)
            ids = await service.store.write(open_doors, 1, 1)
            await until(lambda: relay.lanes["ledger"].gathers_until is not None)
            assert relay.published == 0
            ids += await service.store.write(open_doors, 2, 200)  # more bytes than the first batch may have
            await until(lambda: relay.published > 0)
            ids += await service.store.write(open_doors, 201, 1200)  # and more events than any batch has
            await until(lambda: relay.published > 200)
            found = [each for _, each in await stored(connection)]
            assert found == ids[: len(found)]


async def test_all_arrives_once_after_the_broker_was_away(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(open_doors, 1, 5)
            await until(lambda: relay_of(service).published == 5)
            nats_server.kill()
            await until(lambda: not connection.connected)
            for number in range(6, 41):
                ids += await service.store.write(open_doors, number, number)
            await nats_server.start()
            await until(lambda: relay_of(service).published == 40, 20)
            assert [each for _, each in await stored(connection)] == ids


async def test_all_arrives_once_when_the_broker_is_killed_while_it_is_written_to(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            ids = []
            for kill in range(4):
                for number in range(50):
                    ids += await service.store.write(open_doors, number, number + 9)
                    if number == 20 + kill:
                        nats_server.kill()
                await nats_server.start()
            await until(lambda: _sent_all(service, ids), 30)
            assert [each for _, each in await stored(connection)] == ids


async def test_a_backlog_arrives_once_and_in_order_though_the_broker_is_killed_while_it_drains(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        nats_server.kill()
        await until(lambda: not connection.connected)
        async with serving(door(), connection, tmp_path) as service:
            ids = []
            for first in range(1, 5_000, 500):
                ids += await service.store.write(open_doors, first, first + 499)
            for events in (500, 2_500):
                await nats_server.start()
                await until(lambda events=events: relay_of(service).published > events, 20)  # type: ignore[misc]
                nats_server.kill()
            await nats_server.start()
            await until(lambda: _sent_all(service, ids), 30)
            assert [each for _, each in await stored(connection)] == ids


def _sent_all(service: RunningService, ids: list[str]) -> bool:
    return str(relay_of(service).lanes["ledger"].sent) == ids[-1]


async def test_a_second_start_sends_what_was_not_confirmed_and_the_broker_has_it_once(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(open_doors, 1, 10)
            await until(lambda: relay_of(service).published == 10)
        nats_server.kill()
        await until(lambda: not connection.connected)
        async with serving(door(), connection, tmp_path) as service:
            ids += await service.store.write(open_doors, 11, 12)
            await nats_server.start()
            await until(lambda: _sent_all(service, ids))
            assert [each for _, each in await stored(connection)] == ids
            for each in ids:  # the last batch holds the end of one epoch and the begin of another
                found = await service.find(each)
                assert found is not None
                assert found.state == "forwarded", each
                assert found.forwarded is not None
                assert found.forwarded.stream_sequence >= ids.index(each) + 1


async def test_a_full_stream_pauses_the_lane_and_says_so_until_there_is_room(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection, listening(nats_server.url) as heard:
        await create_stream(connection, max_bytes=512)
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(open_doors, 1, 30)
            ledger = relay_of(service).lanes["ledger"]
            await until(lambda: ledger.problem is not None and "10077" in ledger.problem and ledger.limit == 1)
            before = len(heard)
            await anyio.sleep(1)  # what is observed is a second of nothing much
            assert len(heard) - before <= 10
            await set_stream(connection, max_bytes=1 << 20)
            await until(lambda: _sent_all(service, ids), 30)
            assert ledger.problem is None
            assert [each for _, each in await stored(connection)] == ids


async def test_a_lane_that_is_refused_is_not_hurried_by_new_events(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url) as connection, listening(nats_server.url) as heard:
        await create_stream(connection, max_bytes=512)
        async with serving(door(), connection, tmp_path) as service:
            await service.store.write(open_doors, 1, 30)
            ledger = relay_of(service).lanes["ledger"]
            await until(lambda: ledger.problem is not None and ledger.limit == 1)
            before = len(heard)
            with anyio.move_on_after(1):
                while True:
                    await service.store.write(open_doors, 1, 1)
            assert len(heard) - before <= 10


async def test_a_stream_that_would_drop_events_is_named_and_nothing_is_sent_to_it(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection, discard="old")
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(open_doors, 1, 3)
            relay = relay_of(service)
            await until(lambda: relay.problem is not None and "discard is 'old'" in relay.problem)
            assert (await stream_state(connection, "EVENTS")).last == 0
            await set_stream(connection, discard="new")
            await until(lambda: _sent_all(service, ids))
            assert relay.problem is None


async def test_a_missing_stream_is_named_and_waited_for(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url) as connection, serving(door(), connection, tmp_path) as service:
        ids = await service.store.write(open_doors, 1, 3)
        relay = relay_of(service)
        await until(lambda: relay.problem is not None and "the stream does not exist" in relay.problem)
        await create_stream(connection)
        await until(lambda: _sent_all(service, ids))


async def test_a_stream_that_is_replaced_by_a_wrong_one_is_noticed_without_a_new_connection(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(open_doors, 1, 3)
            await until(lambda: _sent_all(service, ids))
            await api_request(connection, "STREAM.DELETE.EVENTS")
            ids = await service.store.write(open_doors, 4, 5)
            relay = relay_of(service)
            await until(lambda: relay.problem is not None and "the stream does not exist" in relay.problem)
            await create_stream(connection, discard="old")
            await until(lambda: relay.problem is not None and "discard is 'old'" in relay.problem)
            assert (await stream_state(connection, "EVENTS")).last == 0


USERS = """
authorization {{ users = [
  {{ user: admin, password: secret }}
  {{ user: node, password: secret, permissions: {{ publish: {publish}, subscribe: [">"] }} }}
] }}
"""
ASKING = '"$JS.API.>", "confirm.>"'
DENIED = USERS.format(publish=f"[{ASKING}]")
ALLOWED = USERS.format(publish=f'[{ASKING}, "evt.{NODE}.>"]')


def as_user(server: NatsServer, user: str) -> str:
    return server.url.replace("//", f"//{user}:secret@")


def reload(server: NatsServer, extra: str) -> None:
    """Give a running server other users, as an operator does (SIGHUP)."""
    configuration = server.folder / "nats-server.conf"
    configuration.write_text(configuration.read_text().replace(server.extra, extra))
    server.extra = extra
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGHUP)


@pytest.mark.parametrize("by_reload", [True, False], ids=["reload", "restart"])
async def test_a_missing_permission_pauses_the_lane_until_it_is_given_back(tmp_path: Path, *, by_reload: bool) -> None:
    server = NatsServer(tmp_path / "nats", extra=DENIED)
    async with (
        started(server),
        connected(as_user(server, "admin"), node="admin") as admin,
        connected(as_user(server, "node")) as connection,
    ):
        await create_stream(admin)
        async with serving(door(), connection, tmp_path) as service:
            publisher = service._publisher
            assert publisher is not None
            calls = 0
            publish = publisher.publish

            async def counted(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                return await publish(*args, **kwargs)  # type: ignore[arg-type]

            publisher.publish = counted  # type: ignore[method-assign, assignment]
            ids = await service.store.write(open_doors, 1, 10)
            ledger = relay_of(service).lanes["ledger"]
            await until(lambda: ledger.problem is not None and "permi" in ledger.problem)
            assert connection.connected
            before = calls
            await anyio.sleep(1)  # what is observed is a second of nothing much
            assert calls - before <= 10
            if by_reload:
                reload(server, ALLOWED)
            else:
                server.extra = ALLOWED
                await server.restart()
            await until(lambda: _sent_all(service, ids), 30)
            assert ledger.problem is None
        await admin.wait_connected()
        assert [each for _, each in await stored(admin)] == ids
