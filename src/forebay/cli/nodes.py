"""``forebay nodes``: the nodes that commands are sent to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forebay.cli.consumers import nats_option
from forebay.cli.databases import DATA, STORE, databases
from forebay.cli.intents import request as ask
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.cli.topology import run_requests
from forebay.command import destination_of
from forebay.errors import ConfigurationError
from forebay.identity import CORE, checked_name
from forebay.intents import RemoveNode
from forebay.jetstream.topology import Request
from forebay.jetstream.topology.files import node_template
from forebay.jetstream.topology.registering import Registered, register, registered, removed, unregister
from forebay.jetstream.topology.removal import Removal
from forebay.project import Project, load_services

_WAITING = """
    select o.destination, o.confirmed as freed,
      (select count(*) from forebay_outbox r join forebay_epoch e on e.id = r.epoch where e.origin = o.id) as on_disk,
      (select max(b.confirmed) from forebay_book b where b.origin = o.id) as confirmed
    from forebay_origin o where o.destination <> '' and o.bytes > 0"""
"""What is confirmed stays on the disk for its grace; how much of it that is, the books say as they last stood."""


@click.group()
def nodes() -> None:
    """Register the nodes that commands are sent to, and see how far each is.

    A command to a node that is not registered waits on the core's disk.
    """


@nodes.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--service",
    "services",
    multiple=True,
    help="A service of the node that takes commands; may be given again.  [default: the edge services of forebay.toml"
    " that handle commands]",
)
@nats_option
@click.pass_obj
def add(project: Project, names: tuple[str, ...], services: tuple[str, ...], url: str) -> None:
    """Register one or several nodes: make what their services take their commands from.

    It can be repeated; what is there stays as it is. nodes/commands.yaml in jetstream-config is the template.
    """
    chosen = list(services) or taking_commands(project)
    if not chosen:
        raise ConfigurationError("no edge service of forebay.toml handles commands", hint="give --service")
    destinations = [destination_of(name, service) for name in names for service in chosen]
    settings = node_template(project.jetstream_config)

    async def work(request: Request) -> list[bool]:
        return [await register(request, each, settings) for each in destinations]

    for each, made in zip(destinations, run_requests(url, work), strict=True):
        click.echo(f"{each} {'is registered' if made else 'was registered already'}")


@nodes.command()
@data_option(DATA)
@store_option(STORE)
@nats_option
@json_option
def ls(data: Path, store: str | None, url: str, as_json: bool) -> None:
    """List the nodes that are registered, those that were removed, and what waits on this disk for each.

    waiting: commands in the stream that the node has not read; unconfirmed: commands in the outboxes of this data
    folder that the node has not confirmed, as the books last stood; store: the database that reads for it, none before
    it was first heard of.
    """

    async def work(request: Request) -> tuple[list[Registered], dict[str, Removal]]:
        return await registered(request), await removed(request)

    here: dict[tuple[str, str], int] = {}
    for found in databases(data, store=store) if store or data.is_dir() else ():
        for row in found.rows(_WAITING):
            node, _, service = row["destination"].partition("/")
            kept = max(0, (row["confirmed"] or 0) - row["freed"])
            here[node, service] = here.get((node, service), 0) + max(0, row["on_disk"] - kept)
    known, gone = run_requests(url, work)
    rows: list[dict[str, Any]] = [
        {
            "node": each.node,
            "service": each.service,
            "state": "registered",
            "waiting": each.waiting,
            "unconfirmed": here.pop((each.node, each.service), 0),
            "since": each.since,
            "store": each.store,
            "reason": None,
        }
        for each in known
    ]
    rows += [_row(node, service, "not registered", unconfirmed=count) for (node, service), count in here.items()]
    registered_now = {each.node for each in known}
    rows += [
        _row(node, None, "removed", since=removal.at, reason=removal.reason)
        for node, removal in gone.items()
        if node not in registered_now
    ]
    show(rows, as_json=as_json, empty="no node is registered")


@nodes.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why it will not come back; it stays on record in the stream.")
@data_option(DATA)
@store_option(STORE)
@nats_option
def rm(name: str, reason: str, data: Path, store: str | None, url: str) -> None:
    """Remove node NAME, which will not come back. Stop it first.

    Its durables are deleted. In every core service of the data folder, events of the node that others wait for become
    gaps on record, and commands that it has not confirmed are dropped, on record. A node that is registered again under
    the same name takes what the stream still holds for it.
    """
    checked_name(name, "node")
    deleted = run_requests(url, lambda request: unregister(request, name, reason))
    click.echo(f"{name} is removed; it took commands for {', '.join(each.service for each in deleted)}")
    for found in databases(data, store=store) if store or data.is_dir() else ():
        if found.node == CORE:
            click.echo(f"{found.service}: ", nl=False)
            ask(found, RemoveNode(name, reason))


def taking_commands(project: Project) -> list[str]:
    """Return the edge services of a project that handle commands."""
    loaded = load_services(project, project.edge)
    return [each.declared.name for each in loaded if each.declared.handlers.takes_commands]


def _row(node: str, service: str | None, state: str, **values: Any) -> dict[str, Any]:
    empty = {"waiting": None, "unconfirmed": None, "since": None, "store": None, "reason": None}
    return {"node": node, "service": service, "state": state, **empty, **values}
