"""Services over HTTP, each with a store of its own on disk; no broker is needed to accept writes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn
from litestar import Litestar
from litestar.openapi import OpenAPIConfig

from forebay import Message, Service, UnitStore
from forebay.application import MAX_REQUEST_BYTES
from forebay.outbox import Outbox
from forebay.problems import exception_handlers
from forebay.sqlite import MigrationSet
from tests import stores
from tests.outboxes import messages_after

NODE = "store-330"


@dataclass
class Served:
    """One service: its store, and a client for its routes."""

    service: Service
    store: stores.AnyStore
    units: UnitStore
    outbox: Outbox
    app: Litestar
    http: httpx.AsyncClient

    async def events(self, lane: str = "ledger") -> list[Message]:
        """What is in the outbox, in order."""
        return await self.store.read(messages_after, self.outbox, lane, None, limit=100_000, max_bytes=1 << 30)


Serve = Callable[..., Awaitable[Served]]


def application(*services: tuple[Service, UnitStore, Mapping[str, Any]]) -> Litestar:
    return Litestar(
        route_handlers=[service.router(store, settings) for service, store, settings in services],
        exception_handlers=exception_handlers(),
        request_max_body_size=MAX_REQUEST_BYTES,
        openapi_config=OpenAPIConfig(title="forebay", version="1", path="/schema", create_examples=False),
        logging_config=None,
        debug=False,
    )


async def open_store(
    stack: AsyncExitStack, service: Service, module: ModuleType, path: Path
) -> tuple[stores.AnyStore, Outbox]:
    folder = Path(str(module.__file__)).parent / "migrations"
    sets = [MigrationSet("forebay", files("forebay.migrations")), MigrationSet(service.name, folder)]
    store = await stores.open_store(path / f"{service.name}.db", sets)
    stack.push_async_callback(store.close)
    outbox = Outbox(NODE, service.name, service.lanes)
    await store.write(outbox.bind, "store-1")
    return store, outbox


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Serve the service of a module such as ``edge.till.app``."""
    async with AsyncExitStack() as stack:

        async def start(module: ModuleType, **settings: Any) -> Served:
            service = next(value for value in vars(module).values() if isinstance(value, Service))
            store, outbox = await open_store(stack, service, module, tmp_path)
            units = UnitStore(store, outbox)
            app = application((service, units, settings))
            asgi: Any = app
            transport = httpx.ASGITransport(asgi, raise_app_exceptions=False)
            client = httpx.AsyncClient(transport=transport, base_url="http://edge")
            await stack.enter_async_context(client)
            return Served(service, store, units, outbox, app, client)

        yield start


@contextmanager
def served_over_http(build: Callable[[AsyncExitStack], Awaitable[Litestar]]) -> Iterator[str]:
    """Serve an application on a free loopback port, on an event loop of its own thread; yield its URL."""
    started: Future[tuple[uvicorn.Server, str]] = Future()

    async def run() -> None:
        async with AsyncExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server = uvicorn.Server(uvicorn.Config(await build(stack), log_config=None, lifespan="on"))
            started.set_result((server, f"http://127.0.0.1:{listener.getsockname()[1]}"))
            await server.serve(sockets=[listener])

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(asyncio.run, run())
        either: list[Future[Any]] = [running, started]
        wait(either, return_when=FIRST_COMPLETED)
        if running.done():
            running.result()
        server, url = started.result()
        try:
            yield url
        finally:
            server.should_exit = True
            running.result(timeout=10)
