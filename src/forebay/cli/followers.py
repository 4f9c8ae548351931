"""``forebay followers``: the services of a node for which another one keeps its events."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from forebay.cli.databases import DATA, Found, databases
from forebay.cli.intents import request
from forebay.cli.settings import data_option, json_option
from forebay.cli.table import show
from forebay.errors import ConfigurationError
from forebay.intents import RemoveFollower

_KNOWN = "select 1 from sqlite_master where name = 'forebay_follower'"
_LIST = "select service as follower, since, removed_at, removed_why as reason from forebay_follower order by service"


@click.group()
def followers() -> None:
    """See and change which services of a node follow which.

    A service keeps its events until each follower has them, also while the follower does not run.
    """


@followers.command()
@data_option(DATA)
@click.option("--node", help="Show only this node.")
@json_option
def ls(data: Path, node: str | None, as_json: bool) -> None:
    """List who follows whom, and who was removed."""
    rows = [
        {"node": found.node, "followed": found.service, **row}
        for found in databases(data, node)
        for row in _rows(found)
    ]
    show(rows, as_json=as_json, empty="no service follows another")


@followers.command()
@click.argument("followed")
@click.argument("follower")
@data_option(DATA)
@click.option("--node", help="The node; needed where several share the data folder.")
@click.option("--reason", required=True, help="Why it will not follow any more; it stays on record.")
def rm(followed: str, follower: str, data: Path, node: str | None, reason: str) -> None:
    """Let service FOLLOWED keep nothing any more for FOLLOWER.

    Start the process without FOLLOWER first. Where it follows again later, it gets what is still there.
    """
    found = [
        each
        for each in databases(data, node, followed)
        if any(row["follower"] == follower and row["removed_at"] is None for row in _rows(each))
    ]
    if not found:
        raise ConfigurationError(
            f"{follower} follows no {followed} in {data}", hint="`forebay followers ls` lists them"
        )
    if len(found) > 1:
        nodes = ", ".join(each.node for each in found)
        raise ConfigurationError(f"{follower} follows {followed} on several nodes: {nodes}", hint="give --node")
    request(found[0], RemoveFollower(follower, reason))


def _rows(found: Found) -> list[dict[str, Any]]:
    rows = found.rows(_LIST) if found.rows(_KNOWN) else []
    for row in rows:
        for name in ("since", "removed_at"):
            if row[name] is not None:
                row[name] = datetime.fromtimestamp(row[name] / 1000, UTC).isoformat(timespec="seconds")
    return rows
