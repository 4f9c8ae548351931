"""``forebay archive``: exporting what the archive keeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import click

from forebay.cli.databases import DATA, STORE, Found, databases
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.errors import ConfigurationError
from forebay.project import Project, load_services
from forebay.settled import settled_end
from forebay.transaction import Transaction

T = TypeVar("T")

DAY = 24 * 3600 * 1000
"""Milliseconds of a day."""


@click.group()
def archive() -> None:
    """Work with the events that the archive keeps."""


@archive.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder of the files.")
@click.option("--today", is_flag=True, help="Export what came today as well; the rest of it becomes another part.")
@json_option
@click.pass_obj
def export(project: Project, data: Path, store: str | None, to: Path, today: bool, as_json: bool) -> None:
    """Export events as Parquet, a file per UTC day on which they came; what is exported already is not again.

    The process of the archive may run or not. It needs the extra forebay[parquet].
    """
    services = [each.declared for each in load_services(project, project.core)]
    kept = next((each for each in services if each.archive is not None), None)
    found = list(databases(data, service=kept.name, store=store)) if kept is not None else []
    if kept is None or kept.archive is None or not found:
        raise ConfigurationError(f"no archive is in {data}", hint="it is a service of the core that keeps every event")
    now = time.time_ns() // 1_000_000
    before, write = now if today else now // DAY * DAY, kept.archive.export
    upto = anyio.run(settled_end, _Reading(found[0]), kept.archive.end)
    rows = []
    while (written := found[0].read(lambda tx: write(tx, to, before, upto))) is not None:
        rows.append({"file": written.file, "events": written.events, "bytes": written.bytes})
    show(rows, as_json=as_json, empty="nothing is left to export")


class _Reading:
    """Reads a database as a store does."""

    def __init__(self, found: Found) -> None:
        self._found = found

    async def read(self, query: Callable[[Transaction], T], /) -> T:
        """Return the result of a query."""
        result = self._found.read(query)
        if result is None:
            raise ConfigurationError("no event was ever archived there", hint="let the archive run first")
        return result
