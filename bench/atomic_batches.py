"""The atomic-batch limit of a server: batches put together beforehand, poured into a bare socket."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from forebay.jetstream.publishing import MAX_BATCH, Outgoing

UNDER_WAY = 4
"""Batches whose answer is awaited at a time; more bring nothing."""
BATCH_BYTES = 2**20
"""Bytes of bodies in a batch, at most: the server holds the messages that it is sent in memory until it stores them."""


async def pour(url: str, messages: Sequence[Outgoing]) -> float:
    """Store messages in atomic batches; return the seconds that it took, encoding not among them.

    Raises:
        RuntimeError: the server refused a batch.
    """
    batches = [_encode(batch) for batch in _cut(messages)]
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        await reader.readline()
        connect = {"verbose": False, "headers": True, "no_responders": True, "lang": "bench", "version": "0"}
        writer.write(b"CONNECT %b\r\nSUB answer 1\r\nPING\r\n" % json.dumps(connect).encode())
        while await reader.readline() != b"PONG\r\n":
            pass
        slots = asyncio.Semaphore(UNDER_WAY)
        began = time.perf_counter()
        answering = asyncio.create_task(_answers(reader, writer, slots, len(batches)))
        for batch in batches:
            await slots.acquire()
            if answering.done():
                break
            writer.write(batch)
            await writer.drain()
        await answering
        return time.perf_counter() - began
    finally:
        writer.close()


def _cut(messages: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    batch: list[Outgoing] = []
    size = 0
    for message in messages:
        if batch and (len(batch) == MAX_BATCH or size + len(message.body) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.body)
    if batch:
        yield batch


async def _answers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slots: asyncio.Semaphore, batches: int
) -> None:
    """Take the commits' answers, one for each batch."""
    try:
        while batches:
            line = await reader.readline()
            if not line:
                raise RuntimeError("the server hung up")
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            elif line.startswith((b"MSG", b"HMSG")):
                answer = await reader.readexactly(int(line.split()[-1]) + 2)
                if b'"error"' in answer:
                    raise RuntimeError(f"the server refused a batch: {answer.decode(errors='replace').strip()}")
                if b'"batch"' in answer:
                    batches -= 1
                    slots.release()
            elif line.startswith(b"-ERR"):
                raise RuntimeError(line.decode().strip())
    finally:
        slots.release()  # whoever waits for one sees that this has ended


def _encode(messages: Sequence[Outgoing]) -> bytes:
    batch, parts = secrets.token_hex(8), []
    for at, message in enumerate(messages, 1):
        lines = "".join([f"{name}: {value}\r\n" for name, value in message.headers.items()])
        commit = "Nats-Batch-Commit: 1\r\n" if at == len(messages) else ""
        head = f"NATS/1.0\r\n{lines}Nats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {at}\r\n{commit}\r\n".encode()
        reply = b" answer" if at in (1, len(messages)) else b""
        size = len(head) + len(message.body)
        parts.append(
            b"HPUB %b%b %d %d\r\n%b%b\r\n" % (message.subject.encode(), reply, len(head), size, head, message.body)
        )
    return b"".join(parts)
