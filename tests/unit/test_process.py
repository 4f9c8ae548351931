from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import uvicorn

from forebay.process import _Dated, _listen, _Server


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_listening_socket_says_its_protocol_so_that_small_answers_are_sent_at_once(host: str) -> None:
    """asyncio sets TCP_NODELAY where the protocol is said; else an answer on a kept connection waits some 40 ms."""
    with _listen(host, 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


async def _answer(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_answers_carry_the_date_and_the_server_sleeps_until_it_is_stopped() -> None:
    dated = _Dated(_answer)
    started = asyncio.Event()
    server = _Server(uvicorn.Config(dated, interface="asgi3", lifespan="off", log_config=None), started.set)
    dated.attach(server)
    with _listen("127.0.0.1", 0) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await asyncio.wait_for(started.wait(), 10)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().lower()
        dates = [line.partition(": ")[2] for line in head.splitlines() if line.startswith("date: ")]
        assert len(dates) == 1
        assert abs(parsedate_to_datetime(dates[0]) - datetime.now(UTC)) < timedelta(seconds=5)
        writer.close()
        server.stop()
        await asyncio.wait_for(serving, 10)
