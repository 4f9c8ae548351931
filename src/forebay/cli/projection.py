"""``forebay projection``: read models with a version, and rebuilding them from the archive."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from forebay.cli.databases import DATA, STORE, Found, databases
from forebay.cli.intents import one_database, request
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.intents import RebuildProjection, StopRebuild

_IN_USE = """
    select version, declared, built_at, replayed, rebuild,
      (select coalesce(sum(last - first + 1), 0) from forebay_rebuild_lacking) as lacking
    from forebay_projection"""

_ASKED = "select id, state, said, began_at, replayed, position, archive_end from forebay_rebuild"

LOOKS = 1.0
"""Seconds between looks at a rebuild that is waited for."""


@click.group()
def projection() -> None:
    """See and rebuild the read models that have a version.

    A read model is rebuilt from the archive, by the process that serves it, beside the tables in use.
    """


@projection.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="Show only this service's.")
@json_option
def ls(data: Path, store: str | None, service: str | None, as_json: bool) -> None:
    """List the read models: the version that the release declares, the one in use, and a rebuild under way."""
    rows = [row for found in databases(data, service=service, store=store) for row in _rows(found)]
    show(rows, as_json=as_json, empty="no service declares a version of a read model")


@projection.command()
@click.argument("service")
@data_option(DATA)
@store_option(STORE)
@click.option("--accept-lacking", is_flag=True, help="Go on without the events that are not in the archive.")
@click.option("--wait", is_flag=True, help="Show how far it is until it has ended; Ctrl-C ends the showing alone.")
def rebuild(service: str, data: Path, store: str | None, accept_lacking: bool, wait: bool) -> None:
    """Build the read model of SERVICE anew from the archive, or let a rebuild that stands go on."""
    found = one_database(data, service, store)
    before = found.rows(_IN_USE)
    request(found, RebuildProjection(accept_lacking))
    if wait and before:
        _wait(found, before[0]["rebuild"])


@projection.command()
@click.argument("service")
@data_option(DATA)
@store_option(STORE)
def stop(service: str, data: Path, store: str | None) -> None:
    """Give the rebuild of SERVICE up; the tables in use stay as they are."""
    request(one_database(data, service, store), StopRebuild())


def _rows(found: Found) -> list[dict[str, Any]]:
    result = []
    for row in found.rows(_IN_USE) if found.has_table("forebay_projection") else []:
        asked = found.rows(_ASKED)
        state = asked[0]["state"] if asked else None
        result.append(
            {
                "service": found.service,
                "declared": row["declared"],
                "in_use": row["version"],
                "built_at": datetime.fromtimestamp(row["built_at"] / 1000, UTC).isoformat(" ", "seconds"),
                "replayed": row["replayed"],
                "lacking": row["lacking"],
                "rebuild": state,
                "done": _percent(asked[0]) if asked else None,
                "said": asked[0]["said"] or None if asked else None,
            }
        )
    return result


def _wait(found: Found, before: str | None) -> None:
    """Show how far a rebuild is until it has ended.

    Raises:
        click.ClickException: it stands, or was given up.
    """
    seen: tuple[float, int] | None = None
    while True:
        asked = found.rows(_ASKED)
        if not asked:
            after = found.rows(_IN_USE)[0]
            if after["rebuild"] == before:
                raise click.ClickException("it was not rebuilt: the rebuild was given up, or has not begun")
            click.echo(f"version {after['version']} is in use, made of {after['replayed']} events")
            return
        if asked[0]["state"] != "running":
            raise click.ClickException(asked[0]["said"])
        progress = asked[0]
        now = time.monotonic()
        rate = (progress["replayed"] - seen[1]) / (now - seen[0]) if seen else 0.0
        seen = seen or (now, progress["replayed"])
        click.echo(f"{progress['replayed']} events, {_percent(progress)}, {rate:.0f}/s{_left(progress)}")
        time.sleep(LOOKS)


def _percent(progress: dict[str, Any]) -> str:
    return f"{100 * progress['position'] / progress['archive_end']:.0f} %" if progress["archive_end"] else "0 %"


def _left(progress: dict[str, Any]) -> str:
    """Tell the estimated end, from the part of the archive that is behind it."""
    took = time.time() - (progress["began_at"] or 0) / 1000
    if not progress["position"] or took <= 0:
        return ""
    seconds = took * (progress["archive_end"] - progress["position"]) / progress["position"]
    return f", about {seconds:.0f} s left"
