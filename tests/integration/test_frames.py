"""Frames on their way to a real broker: how they are cut, sent again, refused and split (rules I4, O4, O5)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from forebay import Event, Lane, Service, UnitOfWork, packing
from forebay.envelope import Message, decode_message, identify
from forebay.frame import decode_frame, identify_frame
from forebay.identity import Place
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import api_request, stream_state
from forebay.lanes import Frames
from forebay.link import Link
from forebay.relay import Relay
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.withholding import listed
from tests.framed import is_frame
from tests.integration.rig import connected, create_stream, serving, started, until

AT = datetime(2026, 3, 1, tzinfo=UTC)


class Read(Event, service="fridges", kind="read", lane="telemetry", key="fridge"):
    fridge: str
    number: int


class Defrosted(Event, service="fridges", kind="defrosted", lane="telemetry", key="fridge"):
    fridge: str
    number: int


class Alarm(Event, service="fridges", kind="alarm", lane="ledger"):
    number: int


class Noted(Event, service="fridges", kind="read", version=2, lane="telemetry"):
    text: str


class Came(NamedTuple):
    """One message of the stream: its id, and the events in it."""

    message_id: str
    headers: Mapping[str, str]
    size: int
    events: list[Message]


def fridges(frames: Frames | bool = True, **settings: object) -> Service:
    telemetry = Lane("telemetry", budget="64MiB", frames=frames, **settings)  # type: ignore[arg-type]
    return Service("fridges", lanes=[Lane("ledger"), telemetry])


def read(tx: UnitOfWork, first: int, last: int) -> list[str]:
    return [tx.emit(Read(fridge=f"fridge-{number % 7}", number=number)) for number in range(first, last + 1)]


def relay_of(service: RunningService) -> Relay:
    assert service.relay is not None
    return service.relay


async def came(connection: Connection) -> list[Came]:
    """Return everything in the stream, in its order."""
    state = await stream_state(connection, "EVENTS")
    found = []
    for sequence in range(state.first, state.last + 1):
        reply = await connection.request("$JS.API.DIRECT.GET.EVENTS", b'{"seq":%d}' % sequence, timeout=5)
        headers, subject = reply.headers, reply.headers["Nats-Subject"]
        events: list[Message] = []
        if is_frame(headers):
            for each in decode_frame(identify_frame(subject, headers), reply.body, AT):
                assert isinstance(each, Message)
                events.append(each)
        else:
            events.append(decode_message(identify(subject, headers), reply.body, AT))
        found.append(Came(headers["Nats-Msg-Id"], headers, len(reply.body), events))
    return found


def ids_of(found: list[Came]) -> list[str]:
    return [event.message_id for each in found for event in each.events]


def sent_to(service: RunningService, message_id: str) -> bool:
    return str(relay_of(service).lanes["telemetry"].sent) == message_id


async def test_a_backlog_goes_in_full_frames_and_the_other_lane_goes_alone(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection, serving(fridges(), connection, tmp_path) as service:
        ids = [each for first in range(1, 2501, 500) for each in await service.store.write(read, first, first + 499)]
        alarms = await service.store.write(lambda tx: [tx.emit(Alarm(number=number)) for number in range(3)])
        await create_stream(connection)
        await until(lambda: relay_of(service).published == 2503)
        found = await came(connection)
        framed = [each for each in found if len(each.events) > 1]
        assert [each.message_id for each in found if len(each.events) == 1] == alarms
        assert ids_of(framed) == ids
        assert [len(each.events) for each in framed] == [1000, 1000, 500]
        epoch = ids[0].partition("-")[0]
        assert [each.message_id for each in framed] == [f"{epoch}-1-1000", f"{epoch}-1001-2000", f"{epoch}-2001-2500"]
        assert [event.key for event in framed[0].events[:8]] == [f"fridge-{number % 7}" for number in range(1, 9)]
        assert all(each.headers["Content-Encoding"] == "zstd" for each in framed)
        assert relay_of(service).messages == len(found)
        assert relay_of(service).sent_bytes < 2500 * 40 + 3 * 1024


async def test_another_kind_begins_another_frame_and_the_order_stays(nats_server: NatsServer, tmp_path: Path) -> None:
    def mixed(tx: UnitOfWork) -> list[str]:
        kinds = [Read, Read, Defrosted, Read, Read, Read, Defrosted, Defrosted]
        return [tx.emit(kind(fridge="a", number=number)) for number, kind in enumerate(kinds)]

    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(fridges(), connection, tmp_path) as service:
            ids = await service.store.write(mixed)
            await until(lambda: sent_to(service, ids[-1]))
            found = await came(connection)
            assert ids_of(found) == ids
            assert [(len(each.events), each.events[0].kind) for each in found] == [
                (2, "read"), (1, "defrosted"), (3, "read"), (2, "defrosted")
            ]  # fmt: skip


async def test_versions_of_one_kind_share_a_frame(nats_server: NatsServer, tmp_path: Path) -> None:
    def mixed(tx: UnitOfWork) -> list[str]:
        return [tx.emit(Read(fridge="a", number=1)), tx.emit(Noted(text="é")), tx.emit(Read(fridge="a", number=2))]

    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(fridges(), connection, tmp_path) as service:
            ids = await service.store.write(mixed)
            await until(lambda: sent_to(service, ids[-1]))
            (only,) = await came(connection)
            assert [event.type for event in only.events] == ["fridges.read.v1", "fridges.read.v2", "fridges.read.v1"]
            assert only.events[1].body == '{"text":"é"}'.encode()


async def test_a_trickle_waits_for_the_flush_interval_and_a_full_frame_does_not(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(fridges(Frames(events=20), flush_after="1h"), connection, tmp_path) as service:
            relay = relay_of(service)
            for number in range(19):
                await service.store.write(read, number, number)
            await until(lambda: relay.lanes["telemetry"].gathers_until is not None)
            assert relay.published == 0
            ids = await service.store.write(read, 19, 19)
            await until(lambda: sent_to(service, ids[-1]))
            await service.store.write(read, 20, 60)  # two frames are full, and what is left need not wait
            await until(lambda: relay.published == 61)
            assert [len(each.events) for each in await came(connection)] == [20, 20, 20, 1]
        async with serving(fridges(Frames(events=20), flush_after="100ms"), connection, tmp_path) as service:
            ids = await service.store.write(read, 61, 63)
            await until(lambda: sent_to(service, ids[-1]))
            assert [len(each.events) for each in await came(connection)][-1] == 3


@pytest.mark.usefixtures("nats_server")
async def test_frames_fit_what_the_server_takes_of_one_message(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", extra="max_payload: 4096\n")
    async with started(server), connected(server.url) as connection:
        await create_stream(connection)
        async with serving(fridges(Frames(zstd=False)), connection, tmp_path) as service:
            ids = await service.store.write(read, 1, 300)
            await until(lambda: sent_to(service, ids[-1]))
            found = await came(connection)
            assert ids_of(found) == ids
            assert all(each.size < 4096 for each in found)
            assert len(found) < 50
            assert connection.generation == 1


async def test_a_frame_that_the_stream_refuses_for_its_size_is_split_and_what_is_too_large_alone_is_withheld_o4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    def unit(tx: UnitOfWork) -> list[str]:
        texts = ["a"] * 60
        texts[30] = "x" * 4000
        return [tx.emit(Noted(text=text)) for text in texts]

    async with connected(nats_server.url) as connection:
        await create_stream(connection, max_msg_size=2048)
        async with serving(fridges(Frames(zstd=False)), connection, tmp_path) as service:
            ids = await service.store.write(unit)
            telemetry = relay_of(service).lanes["telemetry"]
            await until(lambda: sent_to(service, ids[-1]))
            found = await came(connection)
            assert list(dict.fromkeys(ids_of(found))) == [*ids[:30], *ids[31:]]
            assert telemetry.problem is None
            assert [place.sequence for place, _ in await service.store.read(listed, "telemetry")] == [31]
            state = await stream_state(connection, "EVENTS")
            await api_request(connection, "STREAM.UPDATE.EVENTS", {**state.config, "max_msg_size": 1 << 16})
            relay_of(service).retry_withheld()
            await until(lambda: bool(telemetry.bodies))
            assert (await came(connection))[-1].message_id.startswith(f"{ids[30]}~")
            more = await service.store.write(read, 1, 40)
            await until(lambda: sent_to(service, more[-1]))
            assert list(dict.fromkeys(ids_of(await came(connection))))[-40:] == more


async def test_what_was_missed_goes_again_in_frames_of_its_own_under_fresh_ids_i4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(fridges(), connection, tmp_path) as service:
            relay = relay_of(service)
            ids = await service.store.write(read, 1, 100)
            await until(lambda: sent_to(service, ids[-1]))
            epoch = ids[0].partition("-")[0]
            relay.send_again("telemetry", epoch, [(5, 5), (17, 60), (98, 120)])
            await until(lambda: not relay.lanes["telemetry"].again)
            repairs = (await came(connection))[1:]
            assert [each.message_id.partition("~")[0] for each in repairs] == [
                f"{epoch}-5", f"{epoch}-17-60", f"{epoch}-98-100"
            ]  # fmt: skip
            assert all("~" in each.message_id for each in repairs)
            assert ids_of(repairs) == [ids[4], *ids[16:60], *ids[97:]]
            assert relay.resent == 1 + 44 + 3
            for sequence in (1, 5, 17, 60, 100):
                sent = relay.forwarded("telemetry", Place(epoch, sequence))
                assert sent is not None
                assert sent.stream_sequence >= 1


async def test_a_frame_is_cut_where_the_budget_pushed_events_out_o3(nats_server: NatsServer, tmp_path: Path) -> None:
    def leave_out(tx: UnitOfWork) -> None:
        tx.execute("delete from forebay_outbox where sequence between 4 and 6")

    async with connected(nats_server.url) as connection, serving(fridges(), connection, tmp_path) as service:
        ids = await service.store.write(read, 1, 10)
        await service.store.write(leave_out)
        await create_stream(connection)
        await until(lambda: sent_to(service, ids[-1]))
        found = await came(connection)
        assert ids_of(found) == [*ids[:3], *ids[6:]]
        assert [len(each.events) for each in found] == [3, 4]


async def test_all_arrives_once_in_effect_when_the_broker_is_killed_while_frames_go(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(fridges(Frames(events=7)), connection, tmp_path) as service:
            ids: list[str] = []
            for kill in range(3):
                for number in range(40):
                    ids += await service.store.write(read, number, number + 9)
                    if number == 15 + kill:
                        nats_server.kill()
                await nats_server.start()
            await until(lambda: sent_to(service, ids[-1]), 30)
            assert list(dict.fromkeys(ids_of(await came(connection)))) == ids


async def test_over_a_thin_link_a_batch_of_packed_frames_is_what_it_carries_in_time_o5(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    def thin(service: RunningService) -> None:
        relay_of(service)._link = Link(kbit=16)  # 2,000 bytes per second

    async with (
        connected(nats_server.url) as connection,
        serving(fridges(), connection, tmp_path, prepare=thin) as service,
    ):
        ids = [each for first in range(1, 1001, 500) for each in await service.store.write(read, first, first + 499)]
        await create_stream(connection)
        await until(lambda: sent_to(service, ids[-1]), 30)
        found = await came(connection)
        assert ids_of(found) == ids
        assert all(each.size <= 4_000 for each in found)


async def test_without_zstd_frames_go_as_they_are(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_zstd", lambda: None)
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        async with serving(fridges(), connection, tmp_path) as service:
            ids = await service.store.write(read, 1, 100)
            await until(lambda: sent_to(service, ids[-1]))
            found = await came(connection)
            assert all("Content-Encoding" not in each.headers for each in found)
            assert ids_of(found) == ids
            assert len(found) < 5
