"""A real broker per test, and one database server for all of them, each on a free loopback port."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forebay.testing.nats_server import NatsServer
from forebay.testing.postgres_server import PostgresServer
from tests import stores


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """One PostgreSQL for all tests (with xdist: of the worker); they take a database each and leave it running."""
    return stores.server()
