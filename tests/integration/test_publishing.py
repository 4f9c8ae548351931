import asyncio
import base64
from pathlib import Path

import anyio
import pytest

from forebay.errors import LinkError, TopologyError
from forebay.identity import partition_of
from forebay.jetstream.connection import Connection
from forebay.jetstream.outcomes import Denied, NotSent, Refused, Stored, Uncertain
from forebay.jetstream.publishing import Outgoing, Publisher
from forebay.jetstream.streams import api_request, stream_state
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import connected, create_stream, messages, started


async def stored_ids(connection: Connection, last: int) -> list[str]:
    """The message ids in the stream, by sequence; asked for one at a time with the header decoded by hand."""
    ids = []
    for sequence in range(1, last + 1):
        answer = await api_request(connection, "STREAM.MSG.GET.EVENTS", {"seq": sequence})
        headers = base64.b64decode(answer["message"]["hdrs"]).decode()
        ids.append(next(line[13:] for line in headers.split("\r\n") if line.startswith("Nats-Msg-Id: ")))
    return ids


async def test_batches_are_stored_in_order_and_each_message_learns_its_sequence(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection)
        outcomes = await publisher.publish(messages(1, 2_500))
        assert outcomes == [Stored(n, duplicate=False) for n in range(1, 2_501)]
        assert publisher.pending == 0
        answer = await api_request(connection, "STREAM.MSG.GET.EVENTS", {"seq": 1_777})
        assert answer["message"]["subject"] == f"evt.{partition_of('store-330')}.store-330.till.sale-recorded"
        assert (await stored_ids(connection, 30)) == [f"id-{n}" for n in range(1, 31)]


async def test_singles_are_stored_in_the_order_of_the_call(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS", window=8) as publisher:
        await create_stream(connection)
        outcomes = await publisher.publish(messages(1, 100), atomic=False)
        assert outcomes == [Stored(n, duplicate=False) for n in range(1, 101)]
        assert await publisher.publish(messages(7, 7)) == [Stored(7, duplicate=True)]
        assert await publisher.publish([]) == []
        assert publisher.pending == 0


async def test_calls_at_the_same_time_share_the_window(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS", window=4) as publisher:
        await create_stream(connection)
        calls = [publisher.publish(messages(n * 20 + 1, n * 20 + 20), atomic=bool(n % 2)) for n in range(6)]
        outcomes = [outcome for call in await asyncio.gather(*calls) for outcome in call]
        assert sorted(each.sequence for each in outcomes if isinstance(each, Stored)) == list(range(1, 121))
        assert publisher.pending == 0


async def test_a_batch_with_a_known_id_falls_back_to_singles(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection)
        await publisher.publish(messages(2, 3))
        assert await publisher.publish(messages(1, 4)) == [
            Stored(3, duplicate=False),
            Stored(1, duplicate=True),
            Stored(2, duplicate=True),
            Stored(4, duplicate=False),
        ]
        assert publisher.pending == 0


async def test_a_stream_without_atomic_batches_gets_singles(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection, allow_atomic=False)
        for first in (1, 11):
            outcomes = await publisher.publish(messages(first, first + 9))
            assert outcomes == [Stored(n, duplicate=False) for n in range(first, first + 10)]
        assert publisher.pending == 0


@pytest.mark.parametrize("atomic", [True, False])
async def test_a_full_stream_refuses_and_stops_the_call(nats_server: NatsServer, *, atomic: bool) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS", window=2) as publisher:
        await create_stream(connection, max_msgs=3)
        outcomes = await publisher.publish(messages(1, 10), atomic=atomic)
        refused = [each for each in outcomes if isinstance(each, Refused)]
        assert {(each.code, each.of_stream) for each in refused} == {(10077, True)}
        if atomic:
            assert len(refused) == 10
            assert (await stream_state(connection, "EVENTS")).last == 0
        else:
            assert outcomes[:3] == [Stored(n, duplicate=False) for n in (1, 2, 3)]
            assert isinstance(outcomes[-1], NotSent)
        assert publisher.pending == 0


async def test_another_stream_is_refused_for_all(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "OTHER") as publisher:
        await create_stream(connection)
        for count in (1, 4):
            outcomes = await publisher.publish(messages(1, count))
            assert [(each.code, each.of_stream) for each in outcomes if isinstance(each, Refused)] == [
                (10060, True)
            ] * count
        assert (await stream_state(connection, "EVENTS")).last == 0


async def test_a_subject_of_no_stream_is_refused(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        for count in (1, 3):
            outcomes = await publisher.publish(messages(1, count))
            assert isinstance(outcomes[0], Refused)
            assert outcomes[0].code == 503
        assert publisher.pending == 0


@pytest.mark.parametrize("size", [5_000, 2_000_000], ids=["for the stream", "for the server"])
async def test_a_message_that_is_too_large_is_refused_alone(nats_server: NatsServer, size: int) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection, max_msg_size=4_000)
        batch = messages(1, 5)
        batch[2] = batch[2]._replace(body=b"x" * size)
        outcomes = await publisher.publish(batch)
        assert [type(each) for each in outcomes] == [Stored, Stored, Refused, Stored, Stored]
        assert isinstance(outcomes[2], Refused)
        assert (outcomes[2].code, outcomes[2].of_stream) == (10054, False)
        assert publisher.pending == 0


async def test_a_denied_subject_is_told_at_once_and_what_is_allowed_is_stored(tmp_path: Path) -> None:
    rights = '{publish: ["evt.store-330.>", "$JS.API.STREAM.*.EVENTS"], subscribe: ["_INBOX_store-330.>"]}'
    users = f"authorization {{ users: [{{user: edge, password: pw, permissions: {rights}}}] }}"
    server = NatsServer(tmp_path, extra=users)
    async with started(server):
        url = server.url.replace("//", "//edge:pw@")
        async with connected(url) as connection, Publisher(connection, "EVENTS", timeout=30) as publisher:
            await create_stream(connection)
            foreign = "evt.Store-331.till.x"
            with anyio.fail_after(5):
                assert isinstance((await publisher.publish(messages(1, 1, subject=foreign)))[0], Denied)
                outcomes = await publisher.publish(messages(1, 3) + messages(4, 4, subject=foreign) + messages(5, 6))
                assert outcomes[:3] == [Stored(n, duplicate=False) for n in (1, 2, 3)]
                assert isinstance(outcomes[3], Denied)
                assert outcomes[3].subject == foreign
            assert publisher.pending == 0


async def test_without_a_connection_nothing_is_sent_and_said_so(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection)
        nats_server.kill()
        await connection.wait_lost(1)
        for count in (1, 3):
            assert all(isinstance(each, NotSent) for each in await publisher.publish(messages(1, count)))
        assert publisher.pending == 0


async def test_a_frozen_broker_leaves_messages_uncertain(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        async with Publisher(connection, "EVENTS", timeout=0.2) as publisher:
            await create_stream(connection)
            await publisher.publish(messages(1, 2))
            nats_server.pause()
            outcomes = await publisher.publish(messages(3, 6))
            assert [type(each) for each in outcomes] == [Uncertain] * 4
            assert publisher.pending == 0
        nats_server.resume()


async def test_a_cancelled_call_leaves_no_slot_behind(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS", window=4) as publisher:
        await create_stream(connection)
        for atomic in (False, True):
            nats_server.pause()
            with anyio.move_on_after(0.05):
                await publisher.publish(messages(1, 20), atomic=atomic)
            assert publisher.pending == 0
            nats_server.resume()
            outcomes = await publisher.publish(messages(1, 20), atomic=False)
            assert all(isinstance(each, Stored) for each in outcomes)


async def test_a_broker_killed_over_and_over_loses_nothing_acknowledged_and_stores_nothing_twice(
    nats_server: NatsServer,
) -> None:
    total, step = 6_000, 150
    acknowledged: dict[str, int] = {}
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection)

        async def publish_all() -> None:
            for first in range(1, total + 1, step):
                batch: list[Outgoing] = messages(first, first + step - 1)
                atomic = True
                while batch:
                    outcomes = await publisher.publish(batch, atomic=atomic)
                    for message, outcome in zip(batch, outcomes, strict=True):
                        if isinstance(outcome, Stored):
                            acknowledged[message.headers["Nats-Msg-Id"]] = outcome.sequence
                    batch = [m for m in batch if m.headers["Nats-Msg-Id"] not in acknowledged]
                    atomic = False
                    if batch:
                        await connection.wait_connected()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish_all)
            for mark in (1_000, 2_500, 4_500):
                with anyio.fail_after(30):
                    while len(acknowledged) < mark:  # noqa: ASYNC110
                        await anyio.sleep(0.001)
                await nats_server.restart()
        assert publisher.pending == 0
        assert connection.generation >= 4
        last = (await stream_state(connection, "EVENTS")).last
        assert last == total
        ids = await stored_ids(connection, last)
        assert len(set(ids)) == total
        assert all(ids[sequence - 1] == identity for identity, sequence in acknowledged.items())


async def test_a_missing_stream_is_named(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        with pytest.raises(TopologyError, match="EVENTS"):
            await stream_state(connection, "EVENTS")
        with pytest.raises(LinkError):
            await api_request(connection, "STREAM.CREATE.EVENTS", {"name": "OTHER"})


async def test_a_staged_batch_is_stored_by_its_publish_and_not_before(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection)
        later = messages(1001, 2000)
        prepared = publisher.prepare(later)
        assert prepared is not None
        assert await publisher.stage(prepared) is None  # it is not known yet that the stream takes batches
        await publisher.publish(messages(1, 2))
        staged = await publisher.stage(prepared)
        assert staged is not None
        assert await publisher.publish(messages(3, 1000)) == [Stored(n, duplicate=False) for n in range(3, 1001)]
        await asyncio.wait_for(staged.begun, 5)  # the server has taken it up
        assert (await stream_state(connection, "EVENTS")).last == 1000
        outcomes = await publisher.publish(later, prepared=staged)
        assert outcomes == [Stored(n, duplicate=False) for n in range(1001, 2001)]
        assert (await stored_ids(connection, 1010))[-11:] == [f"id-{n}" for n in range(1000, 1011)]
        assert publisher.pending == 0


async def test_of_a_staged_batch_that_is_given_up_nothing_is_stored(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection)
        await publisher.publish(messages(1, 2))
        prepared = publisher.prepare(messages(3, 10))
        assert prepared is not None
        staged = await publisher.stage(prepared)
        assert staged is not None
        publisher.drop(staged)
        assert await publisher.stage(prepared) is None  # the server keeps the first one open for a while
        assert publisher.pending == 0
        assert await publisher.publish(messages(3, 10)) == [Stored(n, duplicate=False) for n in range(3, 11)]
        assert (await stream_state(connection, "EVENTS")).last == 10


async def test_a_staged_batch_of_another_connection_or_with_a_known_id_is_sent_anew(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await create_stream(connection)
        await publisher.publish(messages(1, 2))
        for first in (3, 13):
            prepared = publisher.prepare(messages(first, first + 9))
            assert prepared is not None
            staged = await publisher.stage(prepared)
            assert staged is not None
            if first == 3:
                staged = staged._replace(generation=staged.generation - 1)
                known: list[Stored] = []
            else:
                known = [Stored(13, duplicate=False)]
                assert await publisher.publish(messages(13, 13)) == known
            outcomes = await publisher.publish(messages(first, first + 9), prepared=staged)
            stored = [Stored(n, duplicate=n == 13 and bool(known)) for n in range(first, first + 10)]
            assert outcomes == stored
        assert (await stream_state(connection, "EVENTS")).last == 22
        assert publisher.pending == 0
