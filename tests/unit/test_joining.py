"""Answers of a real uvicorn over a ``JoiningTransport``: whole, in order, and nothing is kept that nothing follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from forebay.joining import JoiningProtocol, JoiningTransport

LIMIT = 10.0
GET = b"GET /%b HTTP/1.1\r\nhost: here\r\n\r\n"


class Counted(asyncio.Transport):
    """The real transport, and how often it was told to send."""

    sent = 0

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: Any) -> None:
        Counted.sent += 1
        self._transport.write(data)

    def writelines(self, parts: Any) -> None:
        Counted.sent += 1
        self._transport.writelines(parts)

    def __getattribute__(self, name: str) -> Any:
        if name in ("_transport", "write", "writelines"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_transport"), name)


def protocol(below: Any) -> Any:
    class Protocol(below):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(JoiningTransport(Counted(transport)))

    return Protocol


@asynccontextmanager
async def served(app: Callable[..., Any], below: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(app, port=0, http=below, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await asyncio.wait_for(server.shutdown(), LIMIT)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), LIMIT)


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol])
def below(request: pytest.FixtureRequest) -> Any:
    Counted.sent = 0
    return protocol(request.param)


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def test_an_answer_is_sent_at_once_and_answers_follow_one_another(below: Any) -> None:
    async def app(scope: Any, _: Any, send: Any) -> None:
        body = scope["path"].encode()
        await send(start((b"content-length", b"%d" % len(body))))
        await send(part(body))

    async with served(app, below) as port, connected(port) as (reader, writer):
        for at, path in enumerate((b"a", b"bb", b"HTTP/1.1 "), start=1):
            writer.write(GET % path.replace(b" ", b"%20"))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await asyncio.wait_for(reader.readexactly(len(path) + 1), LIMIT) == b"/" + path
            assert Counted.sent == at
        writer.write(GET % b"c" + GET % b"d")  # two requests at a time
        found = await asyncio.wait_for(reader.readuntil(b"/d"), LIMIT)
        assert found.count(b"HTTP/1.1 200 ") == 2


async def test_a_head_goes_out_while_its_body_is_not_there_yet(below: Any) -> None:
    seen = asyncio.Event()

    async def app(_: Any, __: Any, send: Any) -> None:
        await send(start())
        await asyncio.wait_for(seen.wait(), LIMIT)
        await send(part(b"HTTP/1.1 first", more=True))
        await send(part(b"last"))

    async with served(app, below) as port, connected(port) as (reader, writer):
        writer.write(GET % b"")
        assert b"chunked" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
        seen.set()
        body = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), LIMIT)
        assert body == b"e\r\nHTTP/1.1 first\r\n4\r\nlast\r\n0\r\n\r\n"


@pytest.mark.parametrize("status", [204, 200])
async def test_a_connection_that_is_closed_after_an_answer_has_all_of_it(below: Any, status: int) -> None:
    body = b"" if status == 204 else b"bye"

    async def app(_: Any, __: Any, send: Any) -> None:
        headers = [(b"connection", b"close")] + ([] if status == 204 else [(b"content-length", b"3")])
        await send(start(*headers, status=status))
        await send(part(body))

    async with served(app, below) as port, connected(port) as (reader, writer):
        writer.write(GET % b"")
        answer = await asyncio.wait_for(reader.read(), LIMIT)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.endswith(b"\r\n\r\n" + body)


async def test_a_request_that_fails_after_its_head_ends_the_connection(below: Any) -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send(start((b"content-length", b"3")))
        raise LookupError

    async with served(app, below) as port, connected(port) as (reader, writer):
        writer.write(GET % b"")
        answer = await asyncio.wait_for(reader.read(), LIMIT)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"content-length: 3\r\n\r\n")


async def test_the_process_s_own_protocol_answers() -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send(start((b"content-length", b"2")))
        await send(part(b"ok"))

    async with served(app, JoiningProtocol) as port, connected(port) as (reader, writer):
        writer.write(GET % b"")
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), LIMIT)).startswith(b"HTTP/1.1 200 ")
