"""``forebay outbox``: what the outboxes in a data folder hold."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from forebay.cli.databases import DATA, STORE, databases
from forebay.cli.intents import request
from forebay.cli.lanes import in_one_line, lanes
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.status import status
from forebay.cli.table import show
from forebay.errors import ForebayError, HeaderError
from forebay.identity import parse_message_id
from forebay.intents import RetryWithheld

_EVENTS = """
    select e.epoch || '-' || r.sequence as message_id, o.lane, o.destination, r.type, r.key, r.time,
      r.written_at, r.bytes
    from forebay_outbox r join forebay_epoch e on e.id = r.epoch join forebay_origin o on o.id = e.origin
    order by e.id desc, r.sequence desc limit :limit"""

_EVENT = """
    select e.epoch || '-' || r.sequence as message_id, o.lane, o.destination, e.prev, r.type, r.key, r.time,
      r.cause, r.extra, r.written_at, r.bytes, r.body
    from forebay_outbox r join forebay_epoch e on e.id = r.epoch join forebay_origin o on o.id = e.origin
    where e.epoch = :epoch and r.sequence = :sequence"""

_WITHHELD = "select 1 from forebay_withheld limit 1"


@click.group()
def outbox() -> None:
    """Look into the outboxes of a data folder.

    Its processes may run or not.
    """


@outbox.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--node", help="Show only this node.")
@click.option("--service", help="Show only this service.")
@click.option(
    "--events",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="List the newest N events of each outbox instead of its lanes.",
)
@json_option
def ls(data: Path, store: str | None, node: str | None, service: str | None, events: int, as_json: bool) -> None:
    """List what the outboxes hold.

    For each lane, and each destination (<node>/<service>) of its commands: the events written, freed after
    confirmation, dropped, withheld and still on disk, and the bytes that these take; and for each consumer what is
    pending, missed, dropped and withheld, as it last stood.
    """
    rows: list[dict[str, Any]] = []
    for found in databases(data, node, service, store=store):
        listed = found.rows(_EVENTS, limit=events) if events else lanes(found)
        if not (events or as_json):
            listed = [in_one_line(lane) for lane in listed]
        rows += [{"node": found.node, "service": found.service, **_readable(row)} for row in listed]
    show(rows, as_json=as_json, empty="no events" if events else "no outboxes")


@outbox.command("show")
@click.argument("message_id")
@data_option(DATA)
@store_option(STORE)
@json_option
def show_event(message_id: str, data: Path, store: str | None, as_json: bool) -> None:
    """Show one event: all that its outbox holds of it.

    MESSAGE_ID is <epoch>-<sequence>, as the services answer it.
    """
    identity = parse_message_id(message_id)
    if identity is None:
        raise HeaderError(f"{message_id!r} is not <epoch>-<sequence>")
    for found in databases(data, store=store):
        for row in found.rows(_EVENT, epoch=identity.epoch, sequence=identity.first):
            row["body"] = row["body"].decode(errors="replace")
            whole = {"node": found.node, "service": found.service, **_readable(row)}
            _show_one(whole, as_json=as_json)
            return
        known = found.rows("select last from forebay_epoch where epoch = :epoch", epoch=identity.epoch)
        if known and identity.first <= known[0]["last"]:
            freed = {"node": found.node, "service": found.service, "message_id": message_id, "state": "confirmed"}
            _show_one(freed, as_json=as_json)
            return
    raise ForebayError(f"no outbox in {data} knows {message_id}")


@outbox.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--node", help="Only this node.")
@click.option("--service", help="Only this service.")
def retry(data: Path, store: str | None, node: str | None, service: str | None) -> None:
    """Send again now what the broker refused for itself.

    For when its limits were raised. A process looks at them once a minute by itself.
    """
    withholding = [found for found in databases(data, node, service, store=store) if found.rows(_WITHHELD)]
    for found in withholding:
        click.echo(f"{found.node} {found.service}: ", nl=False)
        request(found, RetryWithheld())
    if not withholding:
        click.echo("nothing is withheld")


outbox.add_command(status)


def _show_one(event: dict[str, Any], *, as_json: bool) -> None:
    rows = [event] if as_json else [{"field": name, "value": value} for name, value in event.items()]
    show(rows, as_json=as_json, empty="")


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    if "written_at" in row:
        row["written_at"] = datetime.fromtimestamp(row["written_at"] / 1000, UTC).isoformat(timespec="milliseconds")
    return row
