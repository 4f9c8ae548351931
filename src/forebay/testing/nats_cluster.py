"""A cluster of real nats-servers on loopback: for streams with replicas, and for leaders that die."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import anyio
import msgspec

from forebay.errors import LinkError
from forebay.jetstream.requesting import requests
from forebay.testing.nats_server import NatsServer, free_port
from forebay.testing.waiting import until

READY_TIMEOUT = 30.0
"""Seconds for the servers to find each other and to elect a leader."""

ROUTE_PASSWORD = "route"  # noqa: S105 - of servers that only this machine reaches
"""The password between the servers, where a configuration of your own asks for ``FOREBAY_ROUTE_PASSWORD``."""

_ROUTES = ("FOREBAY_ROUTE_1", "FOREBAY_ROUTE_2", "FOREBAY_ROUTE_3")

_CONFIGURATION = """
server_name: $FOREBAY_SERVER
listen: "127.0.0.1:%(port)d"
jetstream { store_dir: $FOREBAY_STORE, sync_interval: always }
cluster {
  name: forebay
  listen: "127.0.0.1:%(cluster_port)d"
  authorization { user: route, password: $FOREBAY_ROUTE_PASSWORD, timeout: 2 }
  routes: [$FOREBAY_ROUTE_1, $FOREBAY_ROUTE_2, $FOREBAY_ROUTE_3]
}
"""


class _Cluster(msgspec.Struct):
    leader: str = ""


class _Info(msgspec.Struct):
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)


class NatsCluster:
    """Three nats-servers with JetStream, ``n1`` to ``n3``; each can be killed, frozen and started again by itself.

    An asynchronous context manager. Like a single server they never outlive their parent.

    Example::

        async with NatsCluster(tmp_path) as cluster:
            leader = await cluster.leader("EVENTS")
            leader.kill()
            await leader.start()
    """

    def __init__(
        self,
        folder: Path,
        *,
        configuration: Path | None = None,
        environment: Mapping[str, str] | None = None,
        user: str = "",
    ) -> None:
        """Prepare the servers; nothing happens before ``start``.

        Args:
            folder: holds a folder for each server.
            configuration: one of your own for all three, in place of the one that is written. It takes what differs
                from ``FOREBAY_SERVER``, ``FOREBAY_PORT``, ``FOREBAY_CLUSTER_PORT``, ``FOREBAY_STORE``, the three
                routes and ``FOREBAY_ROUTE_PASSWORD``.
            environment: more variables, such as users' passwords.
            user: ``name:password`` of somebody who may call JetStream's API, where the configuration has users.
        """
        self._user = user
        routes = [free_port() for _ in _ROUTES]
        urls = {
            name: f"nats://route:{ROUTE_PASSWORD}@127.0.0.1:{port}" for name, port in zip(_ROUTES, routes, strict=True)
        }
        self.servers: dict[str, NatsServer] = {}
        for at, route in enumerate(routes, 1):
            name, port = f"n{at}", free_port()
            own = folder / name
            written = own / "nats-server.conf"
            if configuration is None:
                own.mkdir(parents=True, exist_ok=True)
                written.write_text(_CONFIGURATION % {"port": port, "cluster_port": route})
            said = {
                "FOREBAY_SERVER": name,
                "FOREBAY_PORT": str(port),
                "FOREBAY_CLUSTER_PORT": str(route),
                "FOREBAY_STORE": str(own / "store"),
                "FOREBAY_ROUTE_PASSWORD": ROUTE_PASSWORD,
                **urls,
                **(environment or {}),
            }
            self.servers[name] = NatsServer(own, port=port, configuration=configuration or written, environment=said)

    def urls(self, user: str | None = None) -> list[str]:
        """Where clients connect, each server once; ``user`` is ``name:password``."""
        who = self._user if user is None else user
        return [f"nats://{who}@127.0.0.1:{each.port}" if who else each.url for each in self.servers.values()]

    async def __aenter__(self) -> NatsCluster:
        try:
            await self.start()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.kill()

    async def start(self) -> None:
        """Start all that do not run, and wait until they have a leader and JetStream answers.

        Raises:
            ServerStartError: a server did not come up.
            AssertionError: they found no leader within ``READY_TIMEOUT``.
        """
        async with anyio.create_task_group() as tasks:
            for server in self.servers.values():
                tasks.start_soon(server.start)
        await until(self._answers, limit=READY_TIMEOUT, what="the cluster has a leader", every=0.1)

    async def leader(self, stream: str) -> NatsServer:
        """Return the server that leads a stream now; waits while there is none.

        Raises:
            AssertionError: there is none within ``READY_TIMEOUT``.
        """

        async def elected() -> NatsServer | None:
            answer = await self._ask(f"STREAM.INFO.{stream}")
            return self.servers.get(answer.cluster.leader) if answer is not None else None

        found = await until(elected, limit=READY_TIMEOUT, what=f"stream {stream} has a leader", every=0.1)
        assert found is not None  # noqa: S101
        return found

    def kill(self) -> None:
        """End all at once (SIGKILL), frozen or not."""
        for server in self.servers.values():
            server.kill()

    async def _answers(self) -> bool:
        return await self._ask("INFO") is not None

    async def _ask(self, call: str) -> _Info | None:
        """Return what JetStream's API says; None while it does not answer, or only with an error."""
        running = [url for url, each in zip(self.urls(), self.servers.values(), strict=True) if each.running]
        with contextlib.suppress(LinkError):
            async with requests(",".join(running)) as request:
                body = await request(f"$JS.API.{call}", b"")
                return None if b'"error"' in body else msgspec.json.decode(body, type=_Info)
        return None
