"""``forebay inbox``: how far the consumers in a data folder are."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from forebay.cli.databases import DATA, STORE, databases
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.expiring import expired

_EPOCHS = """
    select i.node as origin_node, i.service as origin_service, i.lane, i.epoch, i.watermark, i.held
    from forebay_inbox i order by i.node, i.service, i.epoch"""


@click.group()
def inbox() -> None:
    """Look into the inboxes of a data folder.

    Its processes may run or not.
    """


@inbox.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="Show only this consumer; a consumer is named as its service.")
@click.option("--origin", help="Show only how far the events of this node are.")
@json_option
def ls(data: Path, store: str | None, service: str | None, origin: str | None, as_json: bool) -> None:
    """List how far the consumers are.

    For each epoch of each origin: all events up to the watermark are passed, those that are held wait for an earlier
    one.
    """
    rows = [
        {"consumer": found.service, **row}
        for found in databases(data, service=service, store=store)
        for row in found.rows(_EPOCHS)
        if origin in (None, row["origin_node"])
    ]
    show(rows, as_json=as_json, empty="no inbox has seen an event")


@inbox.command("expired")
@data_option(DATA)
@click.option("--node", help="Show only this node.")
@click.option("--service", help="Show only this service.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Commands per service.")
@json_option
def show_expired(data: Path, node: str | None, service: str | None, limit: int, as_json: bool) -> None:
    """List the commands that had expired when it was their turn, the latest first.

    They were passed in their place without being done.
    """
    rows = []
    for found in databases(data, node, service):
        for row in found.read(lambda tx: expired(tx, limit)) or []:
            at = datetime.fromtimestamp(row["passed_at"] / 1000, UTC).isoformat(timespec="seconds")
            of = {"from_node": row["node"], "from_service": row["service"]}
            told = {name: row[name] for name in ("message_id", "type", "key", "expires")}
            rows.append({"node": found.node, "service": found.service, **told, **of, "passed_at": at})
    show(rows, as_json=as_json, empty="no command has expired")
