"""Pytest fixtures: write ``pytest_plugins = ["forebay.testing.fixtures"]`` into your top ``conftest.py``.

They are no plugin that loads by itself: a project that only uses forebay should not pay for them, nor find names in
its tests that it did not ask for. None of them is asynchronous, so they work with any asyncio plugin or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay import crash_points as points
from forebay.testing.crash_points import CrashPoints
from forebay.testing.link import Link
from forebay.testing.nats_cluster import NatsCluster
from forebay.testing.nats_server import NatsServer


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A real nats-server with JetStream on a free loopback port, with a store of its own; it runs.

    Example:
        >>> async def test_a_broker_may_die(nats_server: NatsServer) -> None:
        ...     await nats_server.restart()
        ...     assert nats_server.running
    """
    server = NatsServer(tmp_path / "nats")
    try:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(server.start())
        yield server
    finally:
        server.kill()


@pytest.fixture
def faulty_link(nats_server: NatsServer) -> Iterator[Link]:
    """A link to ``nats_server``, without a fault so far; use its ``url`` in place of the server's.

    Example:
        >>> def test_a_link_may_hang(faulty_link: Link) -> None:
        ...     faulty_link.freeze()  # half-open: nothing passes, nothing closes
        ...     faulty_link.heal()
    """
    with Link(nats_server.port) as link:
        yield link


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Three nats-servers in a cluster, for streams with replicas; they have a leader. It takes them some seconds.

    Example:
        >>> async def test_a_leader_may_die(nats_cluster: NatsCluster) -> None:
        ...     leader = await nats_cluster.leader("EVENTS")
        ...     leader.kill()
        ...     await leader.start()
    """
    cluster = NatsCluster(tmp_path / "nats-cluster")
    try:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(cluster.start())
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
def crash_points() -> Iterator[CrashPoints]:
    """Crash points, for this process and for children; what a test armed is disarmed after it.

    Example:
        >>> def test_a_process_may_die(crash_points: CrashPoints) -> None:
        ...     environment = crash_points.environment("write.committed", nth=3)
        ...     assert environment == {"FOREBAY_CRASH_AT": "write.committed:3"}
    """
    try:
        yield CrashPoints()
    finally:
        points.disarm()
