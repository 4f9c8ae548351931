import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
import uvloop

from forebay.errors import LinkError, NotPermittedError, PublishRefusedError
from forebay.jetstream.client import BrokerClient
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.outage import Outage, OutageConfig
from forebay.jetstream.replies import Incoming
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import connected, started, until


async def test_it_is_ready_while_the_broker_is_away_and_connects_once_it_is_there(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    connection = Connection(ConnectionConfig(servers=[server.url], name="n", inbox_prefix="_INBOX_n"))
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(1):
            await tasks.start(connection.run)
        assert not connection.connected
        with pytest.raises(LinkError):
            await connection.publish("a", b"1")
        await until(lambda: connection.last_error is not None)
        async with started(server):
            with anyio.fail_after(1.5):
                assert await connection.wait_connected() == 1
            assert connection.last_error is None
            tasks.cancel_scope.cancel()
    assert not connection.connected


async def test_a_subscription_outlives_a_killed_broker_and_the_way_back_takes_a_second(
    nats_server: NatsServer,
) -> None:
    seen: list[Incoming] = []
    async with connected(nats_server.url) as connection:
        subscription = await connection.subscribe("greet.*", seen.append)
        await connection.publish("greet.a", b"1", headers={"X-One": "yes"}, reply="answer.here")
        await until(lambda: len(seen) == 1)
        assert seen[0] == Incoming("greet.a", "answer.here", {"X-One": "yes"}, b"1")
        nats_server.kill()
        with anyio.fail_after(2):
            await connection.wait_lost(1)
        assert not connection.connected
        await nats_server.start()
        opened = time.monotonic()
        assert await connection.wait_connected() == 2
        assert time.monotonic() - opened < 1
        await connection.publish("greet.b", b"2")
        await until(lambda: len(seen) == 2)
        await subscription.unsubscribe()
        assert connection._client is not None
        assert len(connection._client._parser.listeners) == 1  # the answers': a reader that begins anew leaves nothing
        await connection.publish("greet.c", b"3")
        await connection.flush(2)
        assert len(seen) == 2


async def test_a_request_is_answered_or_says_what_is_wrong(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        tasks: set[asyncio.Task[None]] = set()

        def answer(message: Incoming) -> None:
            tasks.add(asyncio.create_task(connection.publish(message.reply, message.body + b"!")))

        await connection.subscribe("echo", answer)
        await connection.subscribe("silent", lambda _: None)
        assert (await connection.request("echo", b"hey", timeout=2)).body == b"hey!"
        with pytest.raises(LinkError, match="nobody answers"):
            await connection.request("nobody", timeout=2)
        with pytest.raises(LinkError, match=r"no answer within 0\.05 s"):
            await connection.request("silent", timeout=0.05)
        with pytest.raises(PublishRefusedError):
            await connection.publish("echo", b"x" * 2_000_000)
        await asyncio.gather(*tasks)
        assert len(connection._replies) == 0


async def test_a_lost_connection_ends_a_waiting_request_at_once(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        await connection.subscribe("silent", lambda _: None)
        request = asyncio.create_task(connection.request("silent", timeout=60))
        await connection.flush(2)
        nats_server.kill()
        with pytest.raises(LinkError, match="lost"), anyio.fail_after(3):
            await request
        assert len(connection._replies) == 0


async def test_a_subject_that_is_not_permitted_is_told_and_not_waited_for(tmp_path: Path) -> None:
    rights = '{publish: ["evt.store-330.>"], subscribe: ["_INBOX_store-330.>"]}'
    users = f'authorization {{ users: [{{user: edge, password: "s3cret", permissions: {rights}}}] }}'
    server = NatsServer(tmp_path, extra=users)
    async with started(server), connected(server.url.replace("//", "//edge:s3cret@")) as connection:
        with pytest.raises(NotPermittedError), anyio.fail_after(2):
            await connection.request("EVT.Other", timeout=30)
        assert connection.last_error is not None
        assert "evt.other" in connection.last_error
        assert connection.connected


async def test_wrong_credentials_are_reported_without_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = NatsServer(tmp_path, extra="authorization { user: edge, password: right }")
    async with started(server):
        url = server.url.replace("//", "//edge:hunter2@")
        connection = Connection(ConnectionConfig(servers=[url], name="n", inbox_prefix="_INBOX_n"))
        caplog.set_level("DEBUG")
        async with anyio.create_task_group() as tasks:
            await tasks.start(connection.run)
            # The refusal and the reset of the socket race; an attempt that reads the refusal says so.
            await until(lambda: "authorization" in (connection.last_error or "").lower())
            await until(lambda: any(each.message == "connection.attempt_failed" for each in caplog.records))
            tasks.cancel_scope.cancel()
        assert not any("hunter2" in str(record.__dict__) for record in caplog.records)


async def test_a_frozen_broker_is_noticed_and_does_not_keep_the_process_from_stopping(
    nats_server: NatsServer,
) -> None:
    async with connected(nats_server.url, ping_interval=0.1) as connection:
        nats_server.pause()
        for _ in range(40):  # more than the socket takes: nats-py's close would wait for it
            await connection.publish("a", b"x" * 900_000)
        with anyio.fail_after(5):
            await connection.wait_lost(1)
        nats_server.resume()
        with anyio.fail_after(5):
            assert await connection.wait_connected() == 2
        nats_server.pause()
        began = time.monotonic()
    assert time.monotonic() - began < 3
    nats_server.resume()


async def test_a_flush_that_timed_out_leaves_the_connection_usable(nats_server: NatsServer) -> None:
    async with connected(nats_server.url) as connection:
        nats_server.pause()
        with pytest.raises(LinkError):
            await connection.flush(0.05)
        nats_server.resume()
        await connection.flush(2)
        assert await connection.wait_connected() == 1


async def test_a_callback_that_fails_does_not_end_its_subscription(nats_server: NatsServer) -> None:
    seen: list[bytes] = []

    def callback(message: Incoming) -> None:
        seen.append(message.body)
        raise RuntimeError("a bug")

    async with connected(nats_server.url) as connection:
        await connection.subscribe("a", callback)
        await connection.publish("a", b"1")
        await connection.publish("a", b"2")
        await until(lambda: seen == [b"1", b"2"])


def test_delays_are_short_at_first_grow_and_start_over_only_after_a_stable_connection() -> None:
    now = 0.0
    backoff = Outage(OutageConfig(), lambda: now)
    assert all(0 < backoff.delay() <= 0.8 for _ in range(50))
    now = 31.0
    late = [backoff.delay() for _ in range(200)]
    assert max(late) > 20
    assert max(late) <= 60
    backoff.connected()
    now = 40.0
    assert max(backoff.delay() for _ in range(50)) > 1
    backoff.connected()
    now = 80.0
    assert all(backoff.delay() <= 0.8 for _ in range(50))


@pytest.mark.parametrize("ended", [False, True], ids=["flusher", "no flusher"])
def test_a_connection_that_closes_in_the_middle_of_a_call_is_lost_under_uvloop_too(tmp_path: Path, ended: bool) -> None:
    """What nats-py writes by itself ends its flusher, which tells nobody: from then on calls write themselves."""

    async def ignored(_: Exception | None = None) -> None:
        """Nothing is told."""

    async def run() -> None:
        async with started(NatsServer(tmp_path)) as server:
            client = BrokerClient()
            config = ConnectionConfig(servers=[server.url], name="n", inbox_prefix="_INBOX_n")
            await client.login(config, server.url, on_error=ignored, on_gone=ignored)
            writer: asyncio.StreamWriter = getattr(client._transport, "_io_writer")  # noqa: B009 - mypy knows no private ones
            flusher = client._flusher_task
            assert flusher is not None
            if ended:
                flusher.cancel()
                await asyncio.wait({flusher})
            writer.transport.abort()
            while "closed=True" not in repr(writer.transport):  # noqa: ASYNC110 -- a closed transport sets no event
                await asyncio.sleep(0)
            assert client.is_connected  # the read loop has not seen it yet
            calls: list[Callable[[], Awaitable[object]]] = [client.flush]
            if ended:
                calls = [lambda: client.send(b"PING\r\n"), lambda: client.publish("a"), lambda: client.subscribe("a")]
            for call in calls:
                with pytest.raises(ConnectionResetError, match="the connection was lost"):
                    await call()
            client.abort()

    uvloop.run(run())


@pytest.mark.parametrize("call", ["publish", "send", "subscribe"])
def test_whatever_is_sent_over_a_connection_that_has_just_closed_meets_a_lost_one_under_uvloop(
    tmp_path: Path, call: str
) -> None:
    """nats-py's own task ends where it writes to a closed transport, and from then on whoever sends writes himself."""

    async def send_one(connection: Connection) -> None:
        if call == "publish":
            await connection.publish("some.thing", b"body")
        elif call == "send":
            await connection.send(b"PUB some.thing 4\r\nbody\r\n")
        else:
            await connection.subscribe("some.thing", lambda _: None)

    async def run() -> None:
        async with started(NatsServer(tmp_path)) as server, connected(server.url) as connection:
            client = connection._client
            writer: asyncio.StreamWriter = getattr(getattr(client, "_transport"), "_io_writer")  # noqa: B009 - as above
            writer.transport.abort()
            await send_one(connection)  # wakes that task
            await asyncio.sleep(0)
            if call == "subscribe":
                await send_one(connection)  # it is bound with the next connection
            else:
                with pytest.raises(LinkError, match="the connection was lost"):
                    await send_one(connection)

    uvloop.run(run())
