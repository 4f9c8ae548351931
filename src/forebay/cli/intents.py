"""Leaving a request for a consumer's process, and waiting for the outcome."""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec

from forebay.cli.databases import Found, databases
from forebay.errors import ConfigurationError
from forebay.intents import Intent

WAIT = 10.0
"""Seconds for which a command waits for the outcome."""


def one_database(data: Path, service: str | None, store: str | None) -> Found:
    """Return the database that a command means.

    Raises:
        ConfigurationError: none or several are meant.
    """
    found = [each for each in databases(data, service=service, store=store) if each.reads]
    if len(found) == 1:
        return found[0]
    where = data if store is None else "the database"
    names = ", ".join(sorted({each.service for each in found}))
    if not found:
        raise ConfigurationError(f"no consumer {service or ''} in {where}".replace("  ", " "))
    raise ConfigurationError(f"several consumers are in {where}: {names}", hint="choose one with --service")


def request(found: Found, intent: Intent) -> None:
    """Leave an intent and say what became of it; say that it waits where no process takes it in time."""
    name = found.leave(msgspec.json.encode(intent))
    limit = time.monotonic() + WAIT
    while time.monotonic() < limit:
        rows = found.rows("select outcome from forebay_intent where id = :id", id=name)
        if rows:
            click.echo(rows[0]["outcome"])
            return
        time.sleep(0.1)
    click.echo(f"left for {found.service}: it is carried out when its process runs")
