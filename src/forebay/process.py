"""A process: services of one node, one connection, one HTTP server; started, watched and stopped together."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from email.utils import formatdate
from importlib.metadata import version
from pathlib import Path

import anyio
import msgspec
import uvicorn
from litestar.types import ASGIApp, Receive, Scope, Send

from forebay.application import build_application
from forebay.backup import finish_restore
from forebay.errors import ConfigurationError
from forebay.identity import CORE, checked_name
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.joining import JoiningProtocol
from forebay.link import Link
from forebay.project import LoadedService, Project
from forebay.running import RunningService
from forebay.sd_notify import Notifier
from forebay.service import check_followed
from forebay.sqlite import DiskConfig
from forebay.tail import GRACE

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 2
"""Seconds that requests under way have to end when the process is told to stop."""


class ProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is told.

    Attributes:
        node: the node's name.
        data: the data folder; databases are ``nodes/<node>/<service>.db`` in it, and ``core/<service>.db``.
        nats: the broker's URLs, by comma.
        store: the URL of a PostgreSQL database that takes the place of the data folder; not shown, for its password.
        port: of HTTP; 0 takes a free one.
        host: address to listen on.
        grace: seconds for which confirmed events stay (the grace tail).
        disk: what the databases leave alone of the disk.
        core: the node that the central services are; it alone sends commands.
        max_database: bytes that one database may take; None for what follows from its lanes' budgets.
    """

    node: str
    data: Path
    nats: str
    port: int
    store: str | None = None
    host: str = "127.0.0.1"
    grace: float = GRACE
    disk: DiskConfig = DiskConfig()
    max_database: int | None = None
    core: str = CORE

    def __post_init__(self) -> None:
        checked_name(self.node, "node")
        checked_name(self.core, "core")
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port {self.port} is none", hint="give 0 to 65535")

    def __repr__(self) -> str:
        return f"ProcessConfig(node={self.node!r}, data={str(self.data)!r})"

    def database(self, service: str) -> Path:
        """Where a service's database is."""
        folder = self.data / CORE if self.node == CORE else self.data / "nodes" / self.node
        return folder / f"{service}.db"


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, and without its look at the clock ten times a second.

    The process stops its parts in an order of its own, by ``stop``.

    Args:
        config: uvicorn's.
        on_started: called once HTTP is answered.
    """

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._stopping = anyio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def main_loop(self) -> None:
        await self._stopping.wait()

    def stop(self) -> None:
        """End what is under way within its time; told twice, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Dated:
    """Lets the answers of uvicorn carry the date (RFC 9110, 6.6.1), which is worked out when it is needed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers: list[tuple[bytes, bytes]] = []
        self._second = 0

    def attach(self, server: uvicorn.Server) -> None:
        """Say whose answers: its connections share one list of headers."""
        self._headers = server.server_state.default_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._headers[:] = [(b"date", formatdate(second, usegmt=True).encode())]
        await self._app(scope, receive, send)


async def run_process(config: ProcessConfig, project: Project, services: Sequence[LoadedService]) -> None:
    """Run until SIGTERM or SIGINT, then stop: HTTP first, then what is in flight, then the databases.

    Raises:
        ConfigurationError: a setting or a database cannot be used.
        StoreError: a database cannot be opened.
    """
    for declared, _ in services:  # before anything is opened
        check_followed(declared, [each.declared.name for each in services])
    if config.store is None:
        finish_restore(config.data)
    connection = Connection(
        ConnectionConfig(
            servers=[url.strip() for url in config.nats.split(",") if url.strip()],
            name=config.node,
            inbox_prefix=f"_INBOX_{config.node}",
        )
    )
    notifier = Notifier.from_environment(os.environ)
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(_listen(config.host, config.port))
        running = []
        link = Link(project.link_kbit(os.environ))  # of the process: its services' lanes share it
        for declared, migrations in services:
            settings, path = project.settings(declared.name), config.database(declared.name)
            service = RunningService(
                declared, config.node, path, connection, settings, core=config.core, url=config.store
            )
            stack.push_async_callback(service.close)
            await service.open(
                migrations,
                grace=config.grace,
                disk=config.disk,
                max_bytes=config.max_database,
                link=link,
                address=_address(listening),
            )
            running.append(service)
        for service in running:
            await service.follow({each.name: each for each in running})
        application = build_application(running, lambda: connection.connected, version("forebay"))
        dated = _Dated(application)
        server = _Server(
            uvicorn.Config(
                dated,
                host=config.host,
                port=config.port,
                http=JoiningProtocol,
                ws="none",
                interface="asgi3",
                proxy_headers=False,
                log_config=None,
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=STOP_TIMEOUT,
            ),
            on_started=notifier.ready,
        )
        dated.attach(server)
        services_named = [service.name for service in running]
        port = listening.getsockname()[1]
        logger.info("process.started", extra={"node": config.node, "services": services_named, "port": port})
        async with anyio.create_task_group() as tasks:
            await tasks.start(connection.run)
            for service in running:
                await service.start(tasks)
            tasks.start_soon(_stop_on_signal, server)
            tasks.start_soon(notifier.watch)
            await server.serve(sockets=[listening])
            notifier.stopping()
            logger.info("process.stopping", extra={"node": config.node})
            tasks.cancel_scope.cancel()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is said: asyncio sets TCP_NODELAY only where it is, and without it an answer waits some 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # only this tells that nobody else listens there
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="give another --port, or stop what uses it"
        ) from error
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _stop_on_signal(server: _Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            server.stop()
