"""A real broker per test, on a free loopback port, with a store of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forebay.testing.nats_server import NatsServer


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        yield server
    finally:
        server.kill()
