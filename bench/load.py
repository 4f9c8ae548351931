"""The load generator: posts readings over keep-alive connections, each as soon as the answer before has come.

    python -m bench.load 8100 --connections 32 --seconds 10 --first 1 --acknowledged numbers.bin

A process of its own that does little: requests are put together from bytes, answers are searched for their status and
their length alone. What it reaches beside a server that does nothing is a column of the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench.spread import percentile

PATH = "/meter/readings"
CONNECT_TIMEOUT = 10.0
"""Seconds for all connections."""


class Load(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        requests: answered with 201 in the measured time.
        seconds: the measured time.
        p50_ms, p99_ms: of those requests.
        sent: the last number that was given out.
        refused: answers of another status, all the time.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    sent: int
    refused: int


class Posting(asyncio.Protocol):
    """One connection; ``number`` gives out the next number, or None to stop."""

    def __init__(self, number: Callable[[], int | None], answered: Callable[[int, bool, float], None]) -> None:
        self._next = number
        self._answered = answered
        self._buffer = b""
        self._number = 0
        self._began = 0.0
        self._transport: asyncio.Transport | None = None
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport

    def post(self) -> None:
        """Send the next request, or hang up."""
        number = self._next()
        assert self._transport is not None  # noqa: S101
        if number is None:
            self._transport.close()
            return
        self._number = number
        body = b'{"meter":"meter-%d","number":%d,"cents":%d}' % (number % 7, number, number % 1000)
        self._began = time.perf_counter()
        self._transport.write(
            b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (PATH.encode(), len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer, and go on once it is whole."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        created = head.startswith(b"http/1.1 201")
        self._buffer = b""
        self._answered(self._number, created, time.perf_counter() - self._began)
        self.post()

    def connection_lost(self, error: Exception | None) -> None:
        """Say so."""
        if not self.ended.done():
            self.ended.set_result(error)


async def run(port: int, connections: int, seconds: float, warm_up: float, first: int) -> tuple[Load, array[int]]:
    """Post for a while; return what came of it, and the numbers that were acknowledged, those of the warm-up too."""
    number = first - 1
    acknowledged = array("q")
    latencies: list[float] = []
    refused = 0
    begins = ends = float("inf")

    def give() -> int | None:
        nonlocal number
        if time.perf_counter() >= ends:
            return None
        number += 1
        return number

    def answered(at: int, created: bool, took: float) -> None:
        nonlocal refused
        if not created:
            refused += 1
            return
        acknowledged.append(at)
        if begins <= time.perf_counter() < ends:
            latencies.append(took * 1000)

    loop = asyncio.get_running_loop()
    made: list[Posting] = []
    async with asyncio.timeout(CONNECT_TIMEOUT):
        for _ in range(connections):
            _, posting = await loop.create_connection(lambda: Posting(give, answered), "127.0.0.1", port)
            made.append(posting)
    begins = time.perf_counter() + warm_up
    ends = begins + seconds
    for posting in made:
        posting.post()
    await asyncio.gather(*(posting.ended for posting in made))
    found = latencies or [0.0]
    load = Load(len(latencies), seconds, percentile(found, 0.5), percentile(found, 0.99), number, refused)
    return load, acknowledged


def main(arguments: Sequence[str] | None = None) -> None:
    """Post as the command line says; print what came of it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before these, which are not measured")
    parser.add_argument("--first", type=int, default=1, help="the first number")
    parser.add_argument("--acknowledged", type=Path, help="where the acknowledged numbers go, as 64-bit integers")
    options = parser.parse_args(arguments)
    load, numbers = asyncio.run(run(options.port, options.connections, options.seconds, options.warm_up, options.first))
    if options.acknowledged:
        options.acknowledged.write_bytes(numbers.tobytes())
    print(msgspec.json.encode(load).decode())


if __name__ == "__main__":
    main()
