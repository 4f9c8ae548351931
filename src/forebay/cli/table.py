"""Tables for people, lists for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool, empty: str) -> None:
    """Print rows as an aligned table, or as a JSON list."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows, enc_hook=str), indent=2).decode())
        return
    if not rows:
        click.echo(empty)
        return
    columns = list(rows[0])
    cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: object) -> str:
    return "-" if value is None else str(value)
