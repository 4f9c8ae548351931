"""``forebay gaps``: what consumers lack and what nodes lost, and closing what will never come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from forebay.cli.databases import DATA, STORE, Found, databases
from forebay.cli.intents import one_database, request
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.gaps import Missing, holes, own, recorded
from forebay.intents import CloseHole

KINDS = ("hole", "gap", "drop", "withheld", "lost")


@click.group()
def gaps() -> None:
    """See and close what consumers lack.

    A hole is open: later events of its node wait for it. A gap was closed without its event, a drop was pushed out by
    the node's budget; both are on record, nothing waits for them.

    A node says what became of its own events, in rows without a consumer: what its budget pushed out, what the broker
    refused for itself (withheld; the latest stay on record after they were delivered), and what a damaged disk took
    (lost; its consumers pass it as dropped).
    """


@gaps.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="Show only what this consumer lacks; a consumer is named as its service.")
@click.option("--origin", help="Show only what is missing of this node.")
@click.option("--kind", type=click.Choice(KINDS), help="Show only these.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Gaps and drops per consumer.")
@json_option
def ls(
    data: Path, store: str | None, service: str | None, origin: str | None, kind: str | None, limit: int, as_json: bool
) -> None:
    """List open holes, and the gaps and drops on record, the latest first; and what nodes say of their own events."""
    rows: list[dict[str, Any]] = []
    for found in databases(data, service=service, store=store):
        lacking = found.read(lambda tx: [*holes(tx, origin), *recorded(tx, origin, limit=limit)]) or []
        missing = [(found.service, each) for each in lacking]
        if origin in (None, found.node):
            missing += _own(found, limit)
        rows += [
            {"consumer": consumer, **msgspec.structs.asdict(each)}
            for consumer, each in missing
            if kind in (None, each.kind)
        ]
    show(rows, as_json=as_json, empty="nothing is missing")


def _own(found: Found, limit: int) -> list[tuple[str, Missing]]:
    """Return what a node's own outbox says; nothing where its database is an older release's."""
    if not found.has_table("forebay_past"):
        return []
    return found.read(lambda tx: own(tx, found.node, found.service, limit=limit)) or []


@gaps.command()
@click.argument("epoch")
@click.argument("first", type=click.IntRange(1))
@click.argument("last", type=click.IntRange(1))
@data_option(DATA)
@store_option(STORE)
@click.option("--service", help="The consumer that waits; needed where several consumers share the data folder.")
@click.option("--origin", required=True, help="The node whose events are missing.")
@click.option("--origin-service", required=True, help="The service on it that wrote them.")
@click.option("--reason", required=True, help="Why they will never come; it stays on record with the gap.")
def close(
    epoch: str,
    first: int,
    last: int,
    data: Path,
    store: str | None,
    service: str | None,
    origin: str,
    origin_service: str,
    reason: str,
) -> None:
    """Close the hole FIRST to LAST of EPOCH: what waits behind it takes effect.

    Do it only where the events will never come, because the node's disk is gone, say: a late arrival is parked.
    """
    found = one_database(data, service, store)
    request(found, CloseHole(origin, origin_service, epoch, first, last, reason))
