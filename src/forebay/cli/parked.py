"""``forebay parked``: the events that could not take effect, and what to do about them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from forebay.cli.databases import DATA, STORE, Found, databases
from forebay.cli.intents import one_database, request
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.intents import Discard, Retry

_LIST = """
    select id, reason, message_id, node as origin_node, service as origin_service, key, attempts,
      parked_at, detail
    from forebay_parked where discarded_at is null order by id limit :limit"""

_ONE = "select * from forebay_parked where id = :id"


@click.group()
def parked() -> None:
    """See and settle the events that could not take effect.

    A parked event blocks the later events of its key, not those of others. It is tried again by itself, except where
    it is said otherwise.
    """


@parked.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="Show only what this consumer parked; a consumer is named as its service.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Events per consumer, at most.")
@json_option
def ls(data: Path, store: str | None, service: str | None, limit: int, as_json: bool) -> None:
    """List what is parked, the longest waiting first."""
    rows = [
        {"consumer": found.service, **row, "parked_at": _readable(row["parked_at"])}
        for found in databases(data, service=service, store=store)
        for row in found.rows(_LIST, limit=limit)
    ]
    show(rows, as_json=as_json, empty="nothing is parked")


@parked.command(name="show")
@click.argument("id", type=int)
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="The consumer that parked it; needed where several consumers share the data folder.")
def show_one(id: int, data: Path, store: str | None, service: str | None) -> None:  # noqa: A002 - its name on the command line
    """Show one parked event: why, its headers and its body."""
    row = _row(one_database(data, service, store), id)
    body = row.pop("body")
    row["headers"] = msgspec.json.decode(row["headers"])
    try:
        row["body"] = body.decode()
    except UnicodeDecodeError:
        row["body_hex"] = body.hex()
    click.echo(msgspec.json.format(msgspec.json.encode(row), indent=2).decode())


@parked.command()
@click.argument("id", type=int)
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="The consumer that parked it; needed where several consumers share the data folder.")
def retry(id: int, data: Path, store: str | None, service: str | None) -> None:  # noqa: A002 - its name on the command line
    """Try a parked event again now."""
    found = one_database(data, service, store)
    _row(found, id)
    request(found, Retry(id))


@parked.command()
@click.argument("id", type=int)
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="The consumer that parked it; needed where several consumers share the data folder.")
@click.option("--reason", required=True, help="Why it will never take effect; it stays on record with it.")
def discard(id: int, data: Path, store: str | None, service: str | None, reason: str) -> None:  # noqa: A002 - its name on the command line
    """Give a parked event up; the later events of its key go on."""
    found = one_database(data, service, store)
    _row(found, id)
    request(found, Discard(id, reason))


def _readable(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _row(found: Found, id: int) -> dict[str, Any]:  # noqa: A002 - the column's name
    rows = found.rows(_ONE, id=id)
    if not rows:
        raise click.ClickException(f"{found.service} has no parked event {id}; `forebay parked ls` lists them")
    return rows[0]
