"""``forebay sagas``: how the sagas of the core stand, and the story of each, step by step."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import get_args

import click
import msgspec

from forebay.cli.databases import DATA, STORE, databases
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.saga.instances import Instance, Status, listed, load, story
from forebay.transaction import Transaction


@click.group()
def sagas() -> None:
    """See how sagas stand, and what happened to each.

    A running saga waits for an event or a timeout; one that compensates undoes its steps, the latest first. Both ends,
    done and compensated, are final.
    """


@sagas.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="Show only the sagas of this service.")
@click.option("--saga", help="Show only the instances of this saga.")
@click.option("--status", type=click.Choice(get_args(Status)), help="Show only those that stand so.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Instances per service, at most.")
@json_option
def ls(
    data: Path,
    store: str | None,
    service: str | None,
    saga: str | None,
    status: Status | None,
    limit: int,
    as_json: bool,
) -> None:
    """List instances, those that changed last first."""
    rows = [
        {
            "service": found.service,
            "saga": each.saga,
            "instance": each.instance,
            "status": each.status,
            "waits_for": each.awaiting.compensation if each.awaiting else None,
            "steps": each.steps,
            "started_at": _time(each.started_at),
            "changed_at": _time(each.changed_at),
        }
        for found in databases(data, service=service, store=store)
        for each in found.read(partial(listed, saga=saga, status=status, limit=limit)) or ()
    ]
    show(rows, as_json=as_json, empty="no saga has begun")


@sagas.command(name="show")
@click.argument("instance")
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="The service whose saga it is.")
@click.option("--saga", help="The saga, where several have an instance of that name.")
@json_option
def show_one(
    instance: str, data: Path, store: str | None, service: str | None, saga: str | None, as_json: bool
) -> None:
    """Tell the story of INSTANCE: what moved it, and what it did, step by step."""
    found = [
        (known, told)
        for each in databases(data, service=service, store=store)
        for known in each.read(partial(_named, instance=instance, saga=saga)) or ()
        for told in [each.read(partial(story, saga=known.saga, instance=instance)) or []]
    ]
    if not found:
        raise click.ClickException(f"no saga {instance!r} has begun; `forebay sagas ls` lists them")
    if as_json:
        stories = [{"state": msgspec.Raw(known.state), **_head(known), "story": told} for known, told in found]
        click.echo(msgspec.json.format(msgspec.json.encode(stories), indent=2).decode())
        return
    for known, told in found:
        click.echo(f"{known.saga} {known.instance}: {known.status}")
        click.echo(f"state: {known.state.decode()}")
        if known.undo:
            click.echo(f"still to undo: {', '.join(reversed(known.undo))}")
        if known.awaiting:
            click.echo(f"waits for: {known.awaiting.compensation}")
        for each in told:
            click.echo(f"{each.number:>4}  {each.at.isoformat(timespec='milliseconds')}  {each.step}: {each.moved_by}")
            for sentence in each.did:
                click.echo(f"        {sentence}")
            click.echo(f"        -> {each.status}")


def _named(tx: Transaction, *, instance: str, saga: str | None) -> list[Instance]:
    rows = tx.execute("select saga from forebay_saga where instance = :instance order by saga", instance=instance)
    names = [row["saga"] for row in rows if saga in (None, row["saga"])]
    return [known for name in names if (known := load(tx, name, instance)) is not None]


def _head(known: Instance) -> dict[str, object]:
    return {
        "saga": known.saga,
        "instance": known.instance,
        "status": known.status,
        "undo": list(reversed(known.undo)),
        "waits_for": known.awaiting.compensation if known.awaiting else None,
    }


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
