"""A faulty link: a TCP proxy of our own, whose faults are set while it runs.

Kernels offer `tc netem`, but neither containers nor most build machines may use it. What a proxy cannot do is lose or
reorder packets; to the two programs at its ends that would look like the delays and resets that it can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType

CHUNK = 16 * 1024
"""Bytes that are taken from a socket at once; fewer where the rate is small."""

WINDOW = 64
"""Chunks under way in one direction of one connection: with ``delay`` it bounds what a link of any length carries."""

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST


class Link:
    """Passes TCP connections on to a server on loopback. A context manager; it may be started once.

    It runs on a thread of its own, so that a test with or without an event loop can use it. All methods may be called
    from any thread and return when what they do is done.

    Attributes:
        delay: seconds that every byte takes, each way.
        rate: bytes a second that each direction of a connection carries; None for no limit.
        accepted: connections so far.
        carried: bytes that have passed so far: to the server, and back.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", listen_on: int = 0) -> None:
        """Prepare a link to ``host:port``; ``listen_on`` is its own port, a free one if 0."""
        self.delay = 0.0
        self.rate: float | None = None
        self.accepted = 0
        self.carried = (0, 0)
        self._target = (host, port)
        self._socket = socket.create_server(("127.0.0.1", listen_on))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._started = Event()
        self._thread = Thread(target=self._run, name=f"link-{self.port}", daemon=True)
        self._transports: set[asyncio.WriteTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        """Where NATS clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def __enter__(self) -> Link:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to accept connections."""
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """Reset every connection and accept no more; may be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def reset(self) -> None:
        """Break every connection with a TCP reset; new ones are accepted."""
        self._call(self._reset)

    def cut(self) -> None:
        """Break every connection, and every new one at once, until ``heal``."""
        self._call(self._cut)

    def freeze(self) -> None:
        """Let nothing pass while connections stay open and new ones are accepted (half-open), until ``heal``."""
        self._call(self._flows.clear)

    def heal(self) -> None:
        """End every fault. What was frozen on the way goes on, as after a cable is plugged in again."""
        self.delay, self.rate = 0.0, None
        self._call(self._heal)

    # From here on: the link's thread.

    def _call(self, function: Callable[[], None]) -> None:
        done = Event()

        def call() -> None:
            try:
                function()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(call)
        done.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._socket, limit=CHUNK))
        self._started.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            self._reset()
            for task in self._tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            self._loop.run_until_complete(asyncio.sleep(0))  # transports close in the next round
            self._loop.close()

    def _reset(self) -> None:
        for transport in list(self._transports):
            _break(transport)

    def _cut(self) -> None:
        self._refusing = True
        self._reset()

    def _heal(self) -> None:
        self._refusing = False
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._tasks.add(task)
        self._transports.add(writer.transport)
        far: asyncio.StreamWriter | None = None
        try:
            if self._refusing:
                return
            await self._flows.wait()
            far_reader, far = await asyncio.open_connection(*self._target, limit=CHUNK)
            self._transports.add(far.transport)
            ways = [
                asyncio.ensure_future(self._pass(reader, far, to_server=True)),
                asyncio.ensure_future(self._pass(far_reader, writer, to_server=False)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):  # the server is away, or the link is stopped
            pass
        finally:
            for each in (writer, far):
                if each is not None:
                    _break(each.transport)
                    self._transports.discard(each.transport)
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW)

        async def take() -> None:
            while data := await reader.read(self._chunk()):
                await under_way.put((self._loop.time() + self.delay, data))
            await under_way.put((0.0, b""))

        taking = asyncio.ensure_future(take())
        try:
            while True:
                due, data = await under_way.get()
                if not data:
                    return
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                if rate := self.rate:
                    await asyncio.sleep(len(data) / rate)
                await self._flows.wait()
                there, back = self.carried
                self.carried = (there + len(data), back) if to_server else (there, back + len(data))
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    def _chunk(self) -> int:
        return CHUNK if self.rate is None else max(64, min(CHUNK, int(self.rate / 20)))


def _break(transport: asyncio.WriteTransport) -> None:
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
