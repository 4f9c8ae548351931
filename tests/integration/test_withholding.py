"""Withheld events against a real broker (O4): the lane goes on, their keys wait, and their bodies follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from sqlite3 import connect
from typing import Any

import anyio
import httpx
import msgspec

from forebay import Event, Message, Service, UnitOfWork
from forebay.application import build_application
from forebay.confirming import Confirming
from forebay.errors import LinkError
from forebay.gaps import own
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import api_request, stream_state
from forebay.relay import Relay
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.withholding import listed
from tests.integration.rig import (
    NODE,
    NOTES,
    apply,
    connected,
    create_stream,
    door,
    eventually,
    note,
    rows,
    serving,
    started,
    until,
)
from tests.services.command_line import forebay
from tests.stores import takes_the_file, url_of

SMALL, LARGE = "max_payload: 8192\n", "max_payload: 1048576\n"
BIG = "x" * 20_000


class Letter(Event, service="door", kind="letter", key="door"):
    door: str
    text: str


def relay_of(service: RunningService) -> Relay:
    assert service.relay is not None
    return service.relay


def confirming_of(service: RunningService) -> Confirming:
    assert service.confirming is not None
    return service.confirming


def letters(tx: UnitOfWork, texts: Sequence[str]) -> list[str]:
    return [tx.emit(Letter(door=f"door-{number}", text=text)) for number, text in enumerate(texts, 1)]


async def stored(connection: Connection) -> list[str]:
    """Return the message ids in the stream, without the suffix of what was sent again."""
    state = await stream_state(connection, "EVENTS")
    found = []
    for sequence in range(state.first, state.last + 1):
        reply = await connection.request("$JS.API.DIRECT.GET.EVENTS", b'{"seq":%d}' % sequence, timeout=5)
        found.append(reply.headers["Nats-Msg-Id"].partition("~")[0])
    return found


async def withheld(service: RunningService) -> list[int]:
    return [place.sequence for place, _ in await service.store.read(listed, "ledger")]


async def question(service: RunningService) -> dict[str, Any]:
    asked = msgspec.to_builtins((await service.store.read(confirming_of(service)._prepare)).question)
    (origin,) = asked["origins"]
    return dict(origin)


async def test_an_event_above_the_servers_limit_is_withheld_before_it_is_sent_and_the_lane_goes_on_o4(
    tmp_path: Path,
) -> None:
    """The server would close the connection for it."""
    server = NatsServer(tmp_path / "nats", extra=SMALL)
    async with started(server), connected(server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(letters, ["a", BIG, "c", "d"])
            await until(lambda: relay_of(service).published == 3)
            assert await stored(connection) == [ids[0], ids[2], ids[3]]
            assert connection.generation == 1
            assert relay_of(service).lanes["ledger"].problem is None
            assert await withheld(service) == [2]
            epoch = ids[0].partition("-")[0]
            asked = await question(service)
            assert asked["withheld"] == [{"epoch": epoch, "sequence": 2, "key": "door-2"}]
            assert "floor" not in asked
            server.extra = LARGE
            await server.restart()
            await until(lambda: relay_of(service).published == 4, 20)
            assert await stored(connection) == [ids[0], ids[2], ids[3], ids[1]]
            assert await withheld(service) == [2]  # it stays until it is confirmed


LEDGER = "select written, confirmed from forebay_origin where lane = 'ledger'"


async def test_an_event_above_the_streams_limit_is_sent_again_once_it_is_raised_o4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection, max_msg_size=8192)
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(letters, [BIG, *"bcd", BIG])
            await until(lambda: relay_of(service).published == 3)
            await eventually(lambda: _is(service, [1, 5]))
            again = await service.store.write(letters, ["e"])
            await until(lambda: relay_of(service).published == 4)
            assert await stored(connection) == [*ids[1:4], *again]
            relay_of(service).retry_withheld()  # nothing has changed: they are refused again, and nothing waits for it
            more = await service.store.write(letters, ["f"])
            await until(lambda: relay_of(service).published == 5)
            config = (await stream_state(connection, "EVENTS")).config
            await api_request(connection, "STREAM.UPDATE.EVENTS", {**config, "max_msg_size": -1})
            relay_of(service).retry_withheld()
            await until(lambda: relay_of(service).published == 7)
            assert await stored(connection) == [*ids[1:4], *again, *more, ids[0], ids[4]]
            books = await service.store.read(lambda tx: tx.execute(LEDGER)[0])
            assert (books["written"], books["confirmed"]) == (7, 0)


@takes_the_file
async def test_a_store_that_is_busy_when_an_event_is_to_be_withheld_pauses_the_relay_and_it_goes_on_o4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection, serving(door(), connection, tmp_path) as service:
        await until(lambda: relay_of(service).problem is not None)  # there is no stream yet
        ids = await service.store.write(letters, ["a", BIG, "c"])
        other = connect(tmp_path / NODE / "door.db", isolation_level=None)
        other.execute("begin immediate")
        await create_stream(connection, max_msg_size=8192)
        await until(lambda: "locked" in (relay_of(service).problem or ""), 20)
        other.close()
        await until(lambda: relay_of(service).problem is None, 20)
        await eventually(lambda: _is(service, [2]))
        assert [each for each in await stored(connection) if each == ids[2]] == [ids[2]]


async def _is(service: RunningService, sequences: list[int]) -> bool:
    return await withheld(service) == sequences


async def test_a_server_whose_limit_is_lowered_while_it_runs_costs_one_connection_and_no_event_o4(
    tmp_path: Path,
) -> None:
    server = NatsServer(tmp_path / "nats", extra=LARGE)
    async with started(server), connected(server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            await service.store.write(letters, ["a"])
            await until(lambda: relay_of(service).published == 1)
            server.extra = SMALL
            await server.reload()
            ids = await service.store.write(letters, [BIG, "b"])
            await eventually(lambda: _is(service, [2]), 30)
            await until(lambda: str(relay_of(service).lanes["ledger"].sent) == ids[-1], 30)
            assert (await stored(connection))[-1] == ids[-1]
            server.extra = LARGE
            await server.reload()  # which it tells nobody who is connected
            generation = connection.generation
            relay_of(service).retry_withheld()
            await eventually(lambda: _stored(connection, ids[0]))
            assert connection.generation == generation


async def test_a_person_has_withheld_events_tried_again_by_command_and_over_http_o4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection, max_msg_size=8192)
        async with serving(door(), connection, tmp_path / "nodes") as service:
            app: Any = build_application([service], lambda: True, "1")
            url = url_of(tmp_path / "nodes" / NODE)
            where = {"FOREBAY_STORE": url} if url else {"FOREBAY_DATA": str(tmp_path)}
            retry = partial(forebay, tmp_path, "outbox", "retry", **where)
            assert (await anyio.to_thread.run_sync(retry)).stdout == "nothing is withheld\n"
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as http:
                assert (await http.post("/ops/window/withheld/retry")).status_code == 404
                assert (await http.get("/ops/door/parked")).status_code == 404
                answer = await http.post("/ops/door/withheld/retry")
                assert answer.json() == {"outcome": "door withholds nothing"}
                ids = await service.store.write(letters, [BIG, "b"])
                await eventually(lambda: _is(service, [1]))
                config = (await stream_state(connection, "EVENTS")).config
                await api_request(connection, "STREAM.UPDATE.EVENTS", {**config, "max_msg_size": -1})
                answer = await http.post("/ops/door/withheld/retry")
                assert answer.json() == {"outcome": "1 withheld events are tried again now"}
                await eventually(lambda: _stored(connection, ids[0]))
            said = await anyio.to_thread.run_sync(retry)
            assert said.stdout == "house-1 door: 1 withheld events are tried again now\n"  # until it is confirmed


async def test_a_refusal_of_the_stream_withholds_nothing_o4(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection, max_bytes=512)
        async with serving(door(), connection, tmp_path) as service:
            await service.store.write(letters, "abcdefgh")
            ledger = relay_of(service).lanes["ledger"]
            await until(lambda: ledger.problem is not None and "10077" in ledger.problem and ledger.limit == 1)
            assert await withheld(service) == []


async def test_withheld_events_are_tried_again_after_a_restart_of_the_node_o4(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", extra=SMALL)
    async with started(server), connected(server.url) as connection:
        await create_stream(connection)
        async with serving(door(), connection, tmp_path) as service:
            ids = await service.store.write(letters, ["a", BIG, "c"])
            await until(lambda: relay_of(service).published == 2)
            assert await withheld(service) == [2]
        server.extra = LARGE
        await server.restart()
        async with serving(door(), connection, tmp_path):
            await eventually(lambda: _stored(connection, ids[1]))


async def _stored(connection: Connection, message_id: str) -> bool:
    try:
        return message_id in await stored(connection)
    except LinkError:  # the broker was just started again
        return False


def listener() -> Service:
    service = Service("audit")

    @service.on(Letter)
    def write_down(tx: UnitOfWork, letter: Letter, message: Message) -> None:
        assert message.place is not None
        note(tx, letter.door, message.place.sequence)

    return service


async def test_only_the_key_of_a_withheld_event_waits_and_goes_on_in_order_once_the_limit_is_raised_o4(
    tmp_path: Path,
) -> None:
    server = NatsServer(tmp_path / "nats", extra=SMALL)
    async with started(server), connected(server.url) as connection:
        await apply(connection, "audit")
        async with (
            serving(door(), connection, tmp_path, grace=0.1) as node,
            serving(listener(), connection, tmp_path, node="core", schema=NOTES) as audit,
        ):
            ids = await node.store.write(letters, ["a", BIG, "c"])
            ids += await node.store.write(letters, ["d", "e", "f"])

            async def noted() -> list[tuple[object, ...]]:
                return await rows(audit.store, "select node, number from note order by id")

            # door-2 waits, the others go on, past it
            await eventually(lambda: _equals(noted, [("door-1", 1), ("door-3", 3), ("door-1", 4), ("door-3", 6)]), 30)
            await eventually(lambda: _is_withheld(node, ids[1]))
            found = await node.find(ids[1])
            assert found is not None
            assert found.reason is not None
            assert "10054" in found.reason
            assert all(book.balanced for book in await confirming_of(node).books())
            server.extra = LARGE
            await server.restart()
            whole = [("door-1", 1), ("door-3", 3), ("door-1", 4), ("door-3", 6), ("door-2", 2), ("door-2", 5)]
            await eventually(lambda: _equals(noted, whole), 40)
            await eventually(lambda: _gone(node), 40)
            (ledger, _) = await confirming_of(node).books()
            assert (ledger.written, ledger.confirmed, ledger.withheld, ledger.pending) == (6, 6, 0, 0)
            ((_, told),) = await node.store.read(own, node.outbox.node, "door")
            assert (told.kind, told.first, told.last) == ("withheld", 2, 2)
            assert told.reason.startswith(found.reason)


async def _equals(read: Callable[[], Awaitable[object]], wanted: object) -> bool:
    return await read() == wanted


async def _is_withheld(node: RunningService, message_id: str) -> bool:
    found = await node.find(message_id)
    return found is not None and (found.state, found.consumers["audit"].state) == ("withheld", "withheld")


async def _gone(node: RunningService) -> bool:
    confirming_of(node).wake()  # with all confirmed it asks every few minutes only
    return not await withheld(node)


async def test_more_withheld_events_than_one_question_lists_hold_up_their_own_keys_alone_o4(tmp_path: Path) -> None:
    """C1, O4: what every consumer has passed makes room in the question for what one has not heard of yet."""
    server = NatsServer(tmp_path / "nats", extra=SMALL)
    async with started(server), connected(server.url) as connection:
        await apply(connection, "audit")
        async with (
            serving(door(), connection, tmp_path) as node,
            serving(listener(), connection, tmp_path, node="core", schema=NOTES) as audit,
        ):
            confirming_of(node)._most_listed = 2
            await node.store.write(letters, ["a", *[BIG] * 5, "g"])

            async def noted() -> list[tuple[object, ...]]:
                return await rows(audit.store, "select node, number from note order by id")

            await eventually(lambda: _equals(noted, [("door-1", 1), ("door-7", 7)]), 30)
            assert await withheld(node) == [2, 3, 4, 5, 6]
            server.extra = LARGE
            await server.restart()
            whole = [("door-1", 1), ("door-7", 7), *((f"door-{number}", number) for number in range(2, 7))]
            await eventually(lambda: _equals(noted, whole), 40)
