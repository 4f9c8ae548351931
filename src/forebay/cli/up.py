"""``forebay up``: a broker, edge nodes and the core on one machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import click

from forebay.cli.settings import BrokerUrls, data_option, store_option
from forebay.errors import ConfigurationError
from forebay.identity import checked_name
from forebay.project import FILE, Project

MAX_NODES = 100
"""Edge nodes of one ``forebay up``: the core's port follows theirs."""


@click.command()
@data_option("Folder of all databases, logs and the broker's store; started again on it, everything goes on.")
@click.option(
    "--port",
    default=8100,
    show_default=True,
    envvar="FOREBAY_PORT",
    show_envvar=True,
    help="Port of the first node; further nodes follow it, the core is at +100, the broker at +200.",
)
@click.option(
    "--nodes",
    default="store-330",
    show_default=True,
    envvar="FOREBAY_NODES",
    show_envvar=True,
    help=f"Names of the edge nodes, by comma; 1 to {MAX_NODES}.",
)
@click.option(
    "--nats",
    type=BrokerUrls(),
    envvar="FOREBAY_NATS",
    show_envvar=True,
    help="URLs of a broker that runs already, by comma.  [default: a nats-server is started]",
)
@store_option(
    "A PostgreSQL database for the core services, postgresql://user@host:5432/database.  [default: SQLite files in"
    " --data]"
)
@click.pass_obj
def up(project: Project, data: Path, port: int, nodes: str, nats: str | None, store: str | None) -> None:
    """Run the whole project on this machine.

    That is a nats-server, a process per edge node and one for the core, all on 127.0.0.1. Ctrl-C stops them; one that
    dies is started again. The processes are started with `forebay run` and take grace and log level from FOREBAY_GRACE,
    FOREBAY_LOG_LEVEL or the table [run] of forebay.toml; the options below can stand in its table [up].
    """
    from forebay.demo import Demo, DemoConfig

    names = [checked_name(name.strip(), "node") for name in nodes.split(",") if name.strip()]
    if not 1 <= len(names) <= MAX_NODES or len(set(names)) < len(names) or "core" in names:
        raise ConfigurationError(f"--nodes {nodes!r}: give 1 to {MAX_NODES} different names other than core, by comma")
    if not 1 <= port <= 65535 - 200:
        raise ConfigurationError(f"--port {port} leaves no room for the core and the broker", hint="give 1 to 65335")
    if not project.edge and not project.core:
        raise ConfigurationError(
            f"there are no services in {project.folder / FILE}", hint='name them: [services] edge = ["edge.till"]'
        )
    config = DemoConfig(
        data=data.absolute(),
        port=port,
        nodes=names,
        nats=nats,
        command=[sys.executable, "-m", "forebay"],
        store=store,
    )
    os.umask(0o077)
    anyio.run(Demo(project, config, click.echo).run)
