from pathlib import Path

import anyio
import pytest

from forebay.errors import TopologyError
from forebay.jetstream.connection import Connection
from forebay.jetstream.outcomes import Stored
from forebay.jetstream.publishing import Publisher
from forebay.jetstream.pulling import ROOM, Delivery, Pull
from forebay.jetstream.streams import api_request, consumer_info
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import connected, create_durable, create_stream, messages, started, until


class Reader:
    """A pull with everything it said."""

    def __init__(self, connection: Connection, *, batch: int = 64, eager: bool = True, heartbeat: float = 5.0) -> None:
        self.got: list[Delivery] = []
        self.broken: list[str] = []
        self.eager = eager
        self.pull = Pull(
            connection,
            "EVENTS",
            "sales-0",
            deliver=self.deliver,
            on_broken=lambda _, reason: self.broken.append(reason),
            batch=batch,
            heartbeat=heartbeat,
        )

    def deliver(self, pull: Pull, delivery: Delivery) -> None:
        self.got.append(delivery)
        if self.eager:
            pull.consumed(1)

    @property
    def sequences(self) -> list[int]:
        return [each.stream_sequence for each in self.got]


async def filled(connection: Connection, count: int) -> None:
    await create_stream(connection)
    await create_durable(connection)
    async with Publisher(connection, "EVENTS") as publisher:
        assert all(isinstance(each, Stored) for each in await publisher.publish(messages(1, count)))


async def test_thousands_arrive_in_order_and_one_acknowledgement_stands_for_all(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        await filled(connection, 5_000)
        reader = Reader(connection)
        state = await reader.pull.begin(0)
        assert (state.first, state.last) == (1, 5_000)
        await until(lambda: len(reader.got) == 5_000)
        assert reader.sequences == list(range(1, 5_001))
        last = reader.got[-1]
        assert (last.pending, last.headers["Nats-Msg-Id"], last.body) == (0, "id-5000", b"5000")
        assert last.timestamp > 1_600_000_000 * 10**9
        reader.pull.acknowledge(last)
        await reader.pull.end()
        with anyio.fail_after(5):  # the broker takes acknowledgements in beside other requests
            while (await consumer_info(connection, "EVENTS", "sales-0")).ack_floor != 5_000:
                pass
        assert not reader.broken


async def test_what_comes_while_it_waits_is_delivered(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await filled(connection, 0)
        reader = Reader(connection)
        assert (await reader.pull.begin(0)).last == 0
        await publisher.publish(messages(1, 300))
        await until(lambda: reader.sequences == list(range(1, 301)))
        await reader.pull.end()


async def test_a_subject_of_any_bytes_is_a_message_like_others(nats_server: NatsServer) -> None:
    """The server takes them from whoever may publish below it: no reader may lose its connection for it, ever again."""
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        await create_durable(connection)
        for kind in ("a\u00a0b".encode(), b"a\x0cb", b"a\x0bb", b"a\x1cb", b"a\xff"):
            await connection.send(b"PUB evt.store-330.till.%b 1\r\nx\r\n" % kind)
        async with Publisher(connection, "EVENTS") as publisher:
            await publisher.publish(messages(1, 1))
        reader = Reader(connection)
        last = (await reader.pull.begin(0)).last
        await until(lambda: len(reader.got) == last or bool(reader.broken))
        assert reader.broken == []
        assert connection.generation == 1
        assert [each.subject.rpartition(".")[2] for each in reader.got] == [
            "a\u00a0b", "a\x0cb", "a\x0bb", "a\x1cb", "a\ufffd", "sale-recorded"
        ]  # fmt: skip
        await reader.pull.end()


async def test_the_durable_is_set_back_and_forth_and_never_beyond_the_end(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await filled(connection, 100)
        reader = Reader(connection)
        for position, expected in ((0, 1), (90, 91), (10, 11), (100, 101), (5_000, 101)):
            reader.got.clear()
            state = await reader.pull.begin(position)
            count = state.last - expected + 1
            await until(lambda count=count: len(reader.got) == count)  # type: ignore[misc]
            assert reader.sequences == list(range(expected, state.last + 1))
        await publisher.publish(messages(101, 101))
        await until(lambda: reader.sequences == [101])
        assert not reader.broken
        await reader.pull.end()
        await reader.pull.end()


async def test_no_more_than_two_batches_are_delivered_ahead_of_the_reader(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        await filled(connection, 500)
        reader = Reader(connection, batch=50, eager=False)
        await reader.pull.begin(0)
        await until(lambda: len(reader.got) == 100)
        await connection.flush(2)
        assert len(reader.got) == 100
        reader.pull.consumed(30)
        await until(lambda: len(reader.got) == 130)
        reader.pull.consumed(100)
        await until(lambda: len(reader.got) == 230)
        await reader.pull.end()


async def test_large_messages_after_many_small_ones_are_delivered_ahead_as_far_as_there_is_room(
    nats_server: NatsServer,
) -> None:
    large = ROOM // 20
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await filled(connection, 1_000)
        reader = Reader(connection, batch=256)
        await reader.pull.begin(0)
        await until(lambda: len(reader.got) == 1_000)
        await until(lambda: reader.pull._requested > 256)
        reader.eager = False
        bodies = [each._replace(body=bytes(large)) for each in messages(1_001, 1_100)]
        assert all(isinstance(each, Stored) for each in await publisher.publish(bodies, atomic=False))
        await connection.flush(2)
        assert 1_010 <= len(reader.got) <= 1_000 + 2 * ROOM // large
        reader.eager = True
        reader.pull.consumed(len(reader.got) - 1_000)
        await until(lambda: len(reader.got) == 1_100)
        assert reader.sequences == list(range(1, 1_101))
        assert not reader.broken
        await reader.pull.end()


async def test_messages_that_are_larger_than_all_room_come_one_after_the_other(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", extra=f"max_payload: {2 * ROOM}\n")
    async with started(server), connected(server.url) as connection:
        await filled(connection, 0)
        async with Publisher(connection, "EVENTS") as publisher:
            bodies = [each._replace(body=bytes(ROOM + 1)) for each in messages(1, 3)]
            assert all(isinstance(each, Stored) for each in await publisher.publish(bodies, atomic=False))
        reader = Reader(connection)
        await reader.pull.begin(0)
        await until(lambda: reader.sequences == [1, 2, 3])
        assert not reader.broken
        await reader.pull.end()


async def test_large_messages_are_delivered_ahead_as_far_as_there_is_room(nats_server: NatsServer) -> None:
    large = ROOM // 20
    async with connected(nats_server.url) as connection:
        await create_stream(connection)
        await create_durable(connection)
        async with Publisher(connection, "EVENTS") as publisher:
            bodies = [each._replace(body=bytes(large)) for each in messages(1, 100)]
            assert all(isinstance(each, Stored) for each in await publisher.publish(bodies, atomic=False))
        reader = Reader(connection, eager=False)
        await reader.pull.begin(0)
        await until(lambda: len(reader.got) >= 10)
        await connection.flush(2)
        assert len(reader.got) <= 20  # what fits into the room
        reader.pull.consumed(10)
        await until(lambda: len(reader.got) > 20)
        await connection.flush(2)
        assert len(reader.got) <= 30
        reader.eager = True
        reader.pull.consumed(len(reader.got) - 10)
        await until(lambda: len(reader.got) == 100)
        assert reader.sequences == list(range(1, 101))
        await reader.pull.end()


async def test_an_acknowledgement_of_an_earlier_begin_is_ignored(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        await filled(connection, 100)
        reader = Reader(connection)
        await reader.pull.begin(0)
        await until(lambda: len(reader.got) == 100)
        stale = reader.got[-1]
        await reader.pull.begin(50)
        await until(lambda: len(reader.got) == 150)
        reader.pull.acknowledge(stale)
        await reader.pull.end()
        await connection.flush(2)
        assert (await consumer_info(connection, "EVENTS", "sales-0")).ack_floor == 50


async def test_a_second_reader_on_the_durable_breaks_the_first(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        await filled(connection, 100)
        first, second = Reader(connection), Reader(connection)
        await first.pull.begin(0)
        await until(lambda: len(first.got) == 100)
        await second.pull.begin(0)
        await publisher.publish(messages(101, 400))
        await until(lambda: bool(first.broken or second.broken))
        for reader in (first, second):
            assert reader.sequences == list(range(1, len(reader.got) + 1))
            assert len(reader.broken) <= 1
            await reader.pull.end()


async def test_a_killed_broker_breaks_the_pull_and_reading_goes_on_from_the_position(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        await filled(connection, 2_000)
        reader = Reader(connection, batch=20)
        await reader.pull.begin(0)
        await until(lambda: len(reader.got) >= 100)
        await nats_server.restart()
        await until(lambda: len(reader.broken) == 1 or len(reader.got) == 2_000)
        await connection.wait_connected()
        position = reader.sequences[-1]
        await reader.pull.begin(position)
        await until(lambda: len(reader.got) == 2_000)
        assert reader.sequences == list(range(1, 2_001))
        await reader.pull.end()


async def test_a_deleted_durable_and_silence_break_the_pull(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        await filled(connection, 1)
        reader = Reader(connection, heartbeat=0.5)
        await reader.pull.begin(0)
        await until(lambda: len(reader.got) == 1)
        await api_request(connection, "CONSUMER.DELETE.EVENTS.sales-0")
        await until(lambda: len(reader.broken) == 1)
        assert "deleted" in reader.broken[0].lower()
        with pytest.raises(TopologyError, match="sales-0"):
            await reader.pull.begin(0)
        await create_durable(connection)
        await reader.pull.begin(0)
        nats_server.pause()
        await until(lambda: len(reader.broken) == 2)
        assert "heartbeat" in reader.broken[1]
        nats_server.resume()
        await reader.pull.end()


async def test_a_reader_without_permission_is_told(tmp_path: Path) -> None:
    rights = '{publish: {deny: ["$JS.API.CONSUMER.MSG.NEXT.>"]}}'
    users = f"authorization {{ users: [{{user: core, password: pw, permissions: {rights}}}] }}"
    server = NatsServer(tmp_path, extra=users)
    async with started(server), connected(server.url.replace("//", "//core:pw@")) as connection:
        await filled(connection, 1)
        reader = Reader(connection)
        await reader.pull.begin(0)
        with anyio.fail_after(3):
            await until(lambda: len(reader.broken) == 1)
        assert "permit" in reader.broken[0]
        await reader.pull.end()
