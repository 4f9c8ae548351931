"""``forebay outbox status``: how full the lanes are, how long they take to drain, and how long they last.

The events that are not confirmed and the rate at which consumers confirm them are known to the running process alone:
it is asked twice, some seconds apart. Where none runs, the rows on the disk are shown, and no rate.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from forebay.cli.databases import DATA, STORE, Found, databases
from forebay.cli.settings import Duration, data_option, json_option, store_option
from forebay.cli.table import show
from forebay.errors import ForebayError

if TYPE_CHECKING:
    from forebay.project import Project

DAY = 24 * 3600.0
"""Seconds."""

TIMEOUT = 4.0
"""Seconds for a process to answer."""

SHORTEST = 60.0
"""Seconds that the oldest and the newest event must be apart for the rate of writing to be told."""

_LANES = """
    select o.lane, o.destination, o.bytes, count(r.sequence) as on_disk, coalesce(sum(r.bytes), 0) as size,
      min(r.written_at) as oldest, max(r.written_at) as newest
    from forebay_origin o left join forebay_epoch e on e.origin = o.id left join forebay_outbox r on r.epoch = e.id
    where o.destination = '' or o.bytes > 0 group by o.id order by o.destination, o.id"""

_LOST = "select lane, sum(last - first + 1) as events from forebay_lost group by lane"


_At = tuple[str, str, str, str]
"""A node, a service, a lane, the destination of its commands."""


class _Live(NamedTuple):
    """What a process says of one lane: not confirmed and confirmed events of each consumer, the budget, when."""

    pending: dict[str, float]
    confirmed: dict[str, float]
    budget: int
    at: float


@click.command()
@data_option(DATA)
@store_option(STORE)
@click.option("--node", help="Show only this node.")
@click.option("--service", help="Show only this service.")
@click.option(
    "--measure",
    type=Duration(),
    default="2s",
    show_default=True,
    help="How long to watch a running process confirm; 0 for not at all.",
)
@json_option
@click.pass_obj
def status(
    project: Project | None,
    data: Path,
    store: str | None,
    node: str | None,
    service: str | None,
    measure: float,
    as_json: bool,
) -> None:
    """Show how full the lanes are and how long they last.

    drains_in: the events that are not confirmed, at the rate at which the slowest consumer confirmed while the command
    watched. days_left: the room that is left in the budget, at the rate at which what is on the disk was written; what
    drains meanwhile makes it longer. lost: events that a damaged disk took.
    """
    found = [each for each in databases(data, node, service, store=store) if each.rows(_LANES)]
    before = _ask(found)
    if before and measure:
        time.sleep(measure)
    after = _ask(found) if before and measure else before
    rows = []
    for each in found:
        lost = {row["lane"]: row["events"] for row in each.rows(_LOST)} if each.has_table("forebay_lost") else {}
        for lane in each.rows(_LANES):
            at = (each.node, each.service, lane["lane"], lane["destination"])
            budget = after[at].budget if at in after else _declared(project, each.service, lane["lane"])
            rows.append(
                {"node": each.node, "service": each.service, **_row(lane, before.get(at), after.get(at), budget)}
            )
            rows[-1]["lost"] = 0 if lane["destination"] else lost.get(lane["lane"], 0)
    show(rows if as_json else [_readable(row) for row in rows], as_json=as_json, empty="no outboxes")


def _row(lane: Mapping[str, Any], before: _Live | None, after: _Live | None, budget: int | None) -> dict[str, Any]:
    pending = int(max(after.pending.values(), default=lane["on_disk"])) if after else lane["on_disk"]
    span = (lane["newest"] - lane["oldest"]) / 1000 if lane["on_disk"] else 0.0
    written = lane["size"] / span if span >= SHORTEST else 0.0
    return {
        "lane": lane["lane"],
        "destination": lane["destination"],
        "pending": pending,
        "on_disk": lane["on_disk"],
        "bytes": lane["bytes"],
        "budget": budget,
        "used_percent": round(100 * lane["bytes"] / budget, 1) if budget else None,
        "oldest_seconds": round(time.time() - lane["oldest"] / 1000) if lane["on_disk"] else None,
        "drains_in_seconds": _drains_in(pending, before, after),
        "days_left": round(max(0.0, budget - lane["bytes"]) / written / DAY, 1) if budget and written else None,
    }


def _drains_in(pending: int, before: _Live | None, after: _Live | None) -> float | None:
    if not pending:
        return 0.0
    if before is None or after is None or after.at <= before.at:
        return None
    rates = [(now - before.confirmed.get(name, now)) / (after.at - before.at) for name, now in after.confirmed.items()]
    slowest = min(rates, default=0.0)
    return round(pending / slowest, 1) if slowest > 0 else None


def _ask(found: Iterable[Found]) -> dict[_At, _Live]:
    """Ask each process once for the lanes of its services."""
    answers: dict[str, str] = {}
    lanes: dict[_At, _Live] = {}
    for each in found:
        address = each.http
        if address is None:
            continue
        if address not in answers:
            answers[address] = _metrics(address)
        for (lane, destination), live in _read(answers[address], each.service).items():
            lanes[each.node, each.service, lane, destination] = live
    return lanes


def _metrics(address: str) -> str:
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104 - asked, not listened on
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _read(text: str, service: str) -> dict[tuple[str, str], _Live]:
    from prometheus_client.parser import text_string_to_metric_families

    lanes: dict[tuple[str, str], _Live] = {}
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    budgets: dict[str, int] = {}
    for sample in samples:
        if sample.name == "forebay_outbox_budget_bytes" and sample.labels["service"] == service:
            budgets[sample.labels["lane"]] = int(sample.value)
    for sample in samples:
        if sample.name == "forebay_outbox_events" and sample.labels["service"] == service:
            name, state = sample.labels["lane"], sample.labels["state"]
            lane = None
            if name in budgets:
                at = name, sample.labels["destination"]
                lane = lanes.setdefault(at, _Live({}, {}, budgets[name], time.monotonic()))
            if lane is not None and state in ("pending", "confirmed"):
                values = lane.pending if state == "pending" else lane.confirmed
                values[sample.labels["consumer"]] = sample.value
    return lanes


def _declared(project: Project | None, service: str, lane: str) -> int | None:
    """Return the budget that the project in this folder declares; None where it does not."""
    from forebay.project import load_services

    for module in (*project.edge, *project.core) if project else ():
        try:
            [loaded] = load_services(project, [module]) if project else []
        except ForebayError:
            continue
        if loaded.declared.name == service:
            return next((each.budget_bytes for each in loaded.declared.lanes if each.name == lane), None)
    return None


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    drains = row.pop("drains_in_seconds")
    oldest = row.pop("oldest_seconds")
    used = row.pop("used_percent")
    lost, days = row.pop("lost"), row.pop("days_left")
    return {
        **row,
        "used": None if used is None else f"{used:g} %",
        "oldest": None if oldest is None else _span(oldest),
        "drains_in": None if drains is None else _span(drains),
        "days_left": days,
        "lost": lost,
    }


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
