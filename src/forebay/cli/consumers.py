"""``forebay consumers``: who must have the events before a node may free them."""

from __future__ import annotations

from pathlib import Path

import click

from forebay.cli.databases import DATA, databases
from forebay.cli.databases import STORE as STORE_HELP
from forebay.cli.settings import DEFAULT_NATS, BrokerUrls, data_option, json_option, store_option
from forebay.cli.table import show
from forebay.cli.topology import run_requests
from forebay.identity import CORE
from forebay.jetstream.topology.progress import progress_of
from forebay.jetstream.topology.removal import listed_consumers, remove_consumer
from forebay.project import Project

STREAM = "EVENTS"

nats_option = click.option(
    "--nats",
    "url",
    type=BrokerUrls(),
    envvar="FOREBAY_NATS",
    show_envvar=True,
    default=DEFAULT_NATS,
    show_default=True,
    help="URLs of the broker, by comma.",
)


@click.group()
def consumers() -> None:
    """See and change which consumers must have the events before a node may free them.

    `forebay apply` adds to that list; only `rm` takes from it.
    """


@consumers.command()
@nats_option
@json_option
def ls(url: str, as_json: bool) -> None:
    """List the consumers that must confirm, and those that were removed."""
    known, removed = run_requests(url, lambda request: listed_consumers(request, STREAM))
    rows = [
        {"consumer": name, "services": " ".join(services), "removed": None, "reason": None}
        for name, services in sorted((known.consumers if known else {}).items())
    ]
    rows += [
        {"consumer": name, "services": None, "removed": removal.at, "reason": removal.reason}
        for name, removal in sorted(removed.items())
        if known is None or name not in known.consumers
    ]
    show(rows, as_json=as_json, empty="no consumer is listed: nodes free nothing")


@consumers.command(name="show")
@click.argument("name", required=False)
@data_option(DATA)
@store_option(STORE_HELP)
@nats_option
@json_option
def show_partitions(name: str | None, data: Path, store: str | None, url: str, as_json: bool) -> None:
    """Show how far consumer NAME, or each, is with every partition, and which process reads it.

    ack_floor: the stream sequence up to which all is acknowledged; unprocessed: what was not delivered yet; lag: that
    and what is under way, in events, and the age of the oldest in seconds.
    """
    readers = {
        (found.service, partition): process
        for found in (databases(data, store=store) if store or data.is_dir() else ())
        for partition, process in (found.readers() if found.node == CORE else {}).items()
    }
    rows = [
        {
            "consumer": each.consumer,
            "partition": each.partition,
            "reader": readers.get((each.consumer, each.partition)),
            "unprocessed": each.unprocessed,
            "ack_floor": each.ack_floor,
            "lag_events": each.lag_events,
            "lag_seconds": round(each.lag_seconds, 1),
        }
        for each in run_requests(url, lambda request: progress_of(request, STREAM, name))
    ]
    if name is not None and not rows:
        raise click.ClickException(
            f"stream {STREAM} has no durables of a consumer {name!r}; `forebay consumers ls` lists them"
        )
    show(rows, as_json=as_json, empty="no consumer has durables yet: see `forebay apply`")


@consumers.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why nobody needs it any more; it stays on record in the stream.")
@nats_option
@click.pass_obj
def rm(project: Project, name: str, reason: str, url: str) -> None:
    """Take consumer NAME off the list, and delete its durables.

    Nodes then free events without waiting for it. Its database is not touched. Stop its process first, and take it out
    of forebay.toml: `forebay apply` would add it again.
    """
    deleted = run_requests(url, lambda request: remove_consumer(request, STREAM, name, reason))
    click.echo(f"{name} is removed, and its durables: {', '.join(deleted) or 'none'}")
    if name in {module.rpartition(".")[2] for module in project.core}:
        click.echo(f"note: forebay.toml still names a core service {name}: the next apply adds it again")
