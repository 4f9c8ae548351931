"""Three ways to publish the same messages, on streams of one replica and of three: ``python -m bench.publishing``.

Why the relay takes atomic batches where the stream allows them is decision 4; this shows it anew. Messages are put
together beforehand and go into a bare socket, so that it is the server that is measured.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.atomic_batches import pour
from bench.fleet import Fleet, broker
from forebay.jetstream.publishing import Outgoing, encode_head
from forebay.jetstream.streams import api_request, stream_state
from forebay.testing.nats_cluster import NatsCluster
from forebay.testing.nats_server import NatsServer

WINDOW = 256
"""Messages whose acknowledgement is awaited at a time: what the relay's publisher allows itself."""
FLOW = 100
"""Messages for which the server sends one acknowledgement of a fast batch."""

Way = Callable[[str, Sequence[Outgoing]], Awaitable[float]]


async def one_by_one(url: str, messages: Sequence[Outgoing]) -> float:
    """Publish each message with an acknowledgement of its own; return the seconds that it took."""
    commands = [_command(message, f"answer.{at}") for at, message in enumerate(messages)]
    return await _send(url, commands, lambda answered, _: answered, WINDOW)


async def fast_batch(url: str, messages: Sequence[Outgoing]) -> float:
    """Publish all as one fast batch (nats-server 2.14); return the seconds that it took."""
    inbox, last = f"answer.{secrets.token_hex(8)}.{FLOW}.fail", len(messages)
    commands = [
        _command(message, f"{inbox}.{at}.{0 if at == 1 else 2 if at == last else 1}.$FI")
        for at, message in enumerate(messages, 1)
    ]

    def acknowledged(before: int, body: bytes) -> int:
        said = json.loads(body)
        return last if "stream" in said else max(before, int(said.get("seq", 0)))

    return await _send(url, commands, acknowledged, 4 * FLOW)


async def _send(url: str, commands: Sequence[bytes], acknowledged: Callable[[int, bytes], int], window: int) -> float:
    """Keep at most ``window`` commands unacknowledged; ``acknowledged`` says how many are by an answer's body."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    done = 0
    try:
        await reader.readline()
        connect = {"verbose": False, "headers": True, "no_responders": True, "lang": "bench", "version": "0"}
        writer.write(b"CONNECT %b\r\nSUB answer.> 1\r\nPING\r\n" % json.dumps(connect).encode())
        while await reader.readline() != b"PONG\r\n":
            pass
        began, sent, answers = time.perf_counter(), 0, 0
        while done < len(commands):
            room = min(len(commands), done + window)
            if sent < room:
                writer.write(b"".join(commands[sent:room]))
                sent = room
            line = await reader.readline()
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            elif line.startswith((b"MSG", b"HMSG")):
                body = (await reader.readexactly(int(line.split()[-1]) + 2)).strip()
                if b'"error"' in body or not body.startswith(b"{"):
                    raise RuntimeError(f"the server refused a message: {body.decode(errors='replace')}")
                answers += 1
                done = max(done, acknowledged(answers if window == WINDOW else done, body))
            elif not line or line.startswith(b"-ERR"):
                raise RuntimeError(f"the server hung up: {line.decode()}")
        return time.perf_counter() - began
    finally:
        writer.close()


def _command(message: Outgoing, reply: str) -> bytes:
    head = b"NATS/1.0\r\n%b\r\n" % encode_head(message.headers)
    size = len(head) + len(message.body)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
        message.subject.encode(), reply.encode(), len(head), size, head, message.body
    )  # fmt: skip


WAYS: dict[str, tuple[Way, int]] = {
    "atomic batches": (pour, 20_000),
    "fast batch": (fast_batch, 5_000),
    "single": (one_by_one, 3_000),
}
"""How, and how many messages of a run."""


@asynccontextmanager
async def one_server(sync: str, folder: Path) -> AsyncIterator[str]:
    """Run a server with a stream of one replica."""
    server = NatsServer(folder / "nats", sync_interval=sync)
    await server.start()
    try:
        yield server.url
    finally:
        server.kill()


@asynccontextmanager
async def three_servers(folder: Path) -> AsyncIterator[str]:
    """Run a cluster whose servers sync always; the URL is that of one of them, which may be the leader or not."""
    async with NatsCluster(folder) as cluster:
        yield cluster.servers["n1"].url


async def measure(way: Way, url: str, count: int, replicas: int) -> float:
    """Return messages a second; all are in the stream then."""
    async with broker(url, ["ledger"]) as connection:
        state = await stream_state(connection, "EVENTS")
        config = {**state.config, "num_replicas": replicas, "allow_batched": True}
        await api_request(connection, "STREAM.UPDATE.EVENTS", config)
        seconds = await way(url, Fleet(1).make(count))
        stored = (await stream_state(connection, "EVENTS")).last
    if stored != count:
        raise RuntimeError(f"{stored} of {count} messages are in the stream")
    return count / seconds


async def main(rounds: int) -> None:
    """Print messages a second of each round."""
    for number in range(rounds):
        for name, (way, count) in WAYS.items():
            for sync in ("always", "2m"):
                with tempfile.TemporaryDirectory() as folder:
                    async with one_server(sync, Path(folder)) as url:
                        print(number, name, "R1", sync, round(await measure(way, url, count, 1)), flush=True)
            with tempfile.TemporaryDirectory() as folder:
                async with three_servers(Path(folder)) as url:
                    print(number, name, "R3", "always", round(await measure(way, url, count, 3)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
