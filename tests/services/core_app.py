"""The core's services in one application, on stores of their own, as ``forebay run`` assembles them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from litestar import Litestar

import core.archive.app
import core.coldwatch.app
import core.orders.app
import core.sales.app
from forebay import Service
from forebay.problems import exception_handlers
from forebay.projection import declare
from forebay.sqlite import MigrationSet
from tests.integration.arrivals import Core, opened

SALES, ARCHIVE, COLDWATCH = core.sales.app.sales, core.archive.app.archive, core.coldwatch.app.coldwatch
ORDERS = core.orders.app.orders
_MODULES = {
    SALES.name: core.sales.app,
    ARCHIVE.name: core.archive.app,
    COLDWATCH.name: core.coldwatch.app,
    ORDERS.name: core.orders.app,
}


@asynccontextmanager
async def open_core(folder: Path, service: Service, **settings: Any) -> AsyncIterator[Core]:
    """Open the store of one core service, with the settings of its table."""
    migrations = Path(_MODULES[service.name].__file__ or "").parent / "migrations"
    path = folder / f"{service.name}.db"
    async with opened(
        path,
        service.name,
        service.handlers,
        [MigrationSet(service.name, migrations)],
        lanes=service.lanes,
        settings=service.configured(settings),
    ) as core:
        if service.projection is not None:
            await core.store.write(declare, service.projection)
        yield core


def application(cores: dict[Service, Core]) -> Litestar:
    routers = [service.router(core.store) for service, core in cores.items()]
    return Litestar(routers, exception_handlers=exception_handlers())


@asynccontextmanager
async def client_of(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    asgi: Any = app  # httpx's own type for an ASGI application is narrower than Litestar's
    async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://core") as client:
        yield client
