"""``forebay inbox``: how far the consumers in a data folder are."""

from __future__ import annotations

from pathlib import Path

import click

from forebay.cli.databases import DATA, databases
from forebay.cli.settings import data_option, json_option
from forebay.cli.table import show

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
@click.option("--service", help="Show only this consumer; a consumer is named as its service.")
@click.option("--origin", help="Show only how far the events of this node are.")
@json_option
def ls(data: Path, service: str | None, origin: str | None, as_json: bool) -> None:
    """List how far the consumers are.

    For each epoch of each origin: all events up to the watermark are passed, those that are held wait for an earlier
    one.
    """
    rows = [
        {"consumer": found.service, **row}
        for found in databases(data, service=service)
        for row in found.rows(_EPOCHS)
        if origin in (None, row["origin_node"])
    ]
    show(rows, as_json=as_json, empty="no inbox has seen an event")
