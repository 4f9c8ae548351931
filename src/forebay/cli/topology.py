"""``forebay plan`` and ``forebay apply``: streams and durables, compared and brought in line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from forebay.cli.settings import DEFAULT_NATS, BrokerUrls
from forebay.errors import ForebayError
from forebay.jetstream.requesting import requests
from forebay.jetstream.topology import (
    Change,
    ConsumerSpec,
    RefusedChangesError,
    Request,
    Topology,
    apply_topology,
    desired,
    diff,
    notes,
    read_live,
)
from forebay.jetstream.topology.units import format_duration, format_size

T = TypeVar("T")

DEFAULT_CONFIG = "jetstream-config"
DERIVED = "forebay.cli.topology.derived"
"""Key of ``click.Context.meta`` under which a group may put a ``Callable[[], Iterable[ConsumerSpec]]``."""

NOTHING, FAILED, CHANGES = 0, 1, 2
"""Exit codes."""

_DURATIONS = frozenset({"max_age", "duplicate_window", "ack_wait", "inactive_threshold", "max_expires"})
_SIZES = frozenset({"max_bytes", "max_msg_size"})


class _Command(click.Command):
    """A command whose usage errors exit with 1: 2 means that there are changes."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            setattr(error, "exit_code", FAILED)  # noqa: B010 - click declares it of the class and reads it of the object
            raise


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            envvar="FOREBAY_CONFIG",
            show_envvar=True,
            help=f"Folder with streams/ and consumers/.  [default: {DEFAULT_CONFIG}, where it is there]",
        ),
        click.option(
            "--nats",
            "url",
            type=BrokerUrls(),
            envvar="FOREBAY_NATS",
            show_envvar=True,
            default=DEFAULT_NATS,
            show_default=True,
            help="URLs of the broker, by comma.",
        ),
    ):
        command = option(command)
    return command


@click.command(cls=_Command)
@_options
@click.pass_context
def plan(ctx: click.Context, url: str, config: Path | None, as_json: bool) -> None:
    """Show what apply would change.

    Exit code 0: nothing to do; 2: there are changes; 1: any error.
    """
    topology = _topology(ctx, config)

    async def compare(request: Request) -> tuple[list[Change], list[str]]:
        live = await read_live(request, topology)
        return diff(topology, live, int(time.time())), notes(topology, live)

    changes, remarks = run_requests(url, compare)
    if as_json:
        _print_json(changes=changes, notes=remarks)
    else:
        click.echo(table(changes) if changes else "Nothing to do.")
        for remark in remarks:
            click.echo(f"note: {remark}")
    ctx.exit(CHANGES if changes else NOTHING)


@click.command(cls=_Command)
@_options
@click.pass_context
def apply(ctx: click.Context, url: str, config: Path | None, as_json: bool) -> None:
    """Create what is missing and change what can be changed in place.

    Nothing at all is applied where a change would delete messages or needs another stream or durable. Exit code 0:
    all is as described; 1: any error.
    """
    topology = _topology(ctx, config)

    async def bring(request: Request) -> tuple[list[Change], list[Change]]:
        try:
            return await apply_topology(request, topology), []
        except RefusedChangesError as error:
            return [], error.changes

    done, refused = run_requests(url, bring)
    if as_json:
        _print_json(applied=done, refused=refused)
    elif refused:
        click.echo(table(refused), err=True)
    else:
        click.echo(f"{table(done)}\nApplied." if done else "Nothing to do.")
    if refused:
        _fail("nothing was applied: these changes would delete messages or need a new stream or durable")


def table(changes: Sequence[Change]) -> str:
    """Lay changes out in columns: kind, target, field with both values, reason."""
    rows = [(str(change.kind), change.target, _values(change), change.reason) for change in changes]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def _values(change: Change) -> str:
    if not change.field:
        return ""
    return f"{change.field}: {_readable(change.field, change.live)} -> {_readable(change.field, change.desired)}"


def _readable(field: str, value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, int) and not isinstance(value, bool):
        if field in _DURATIONS:
            return format_duration(value)
        if field in _SIZES:
            return format_size(value)
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _print_json(**values: Sequence[Change] | Sequence[str]) -> None:
    click.echo(msgspec.json.encode(values).decode())


def _topology(ctx: click.Context, config: Path | None) -> Topology:
    if config is None and Path(DEFAULT_CONFIG).is_dir():
        config = Path(DEFAULT_CONFIG)
    derive: Callable[[], Iterable[ConsumerSpec]] = ctx.meta.get(DERIVED, tuple)
    try:
        return desired(config, derive())
    except ForebayError as error:
        _fail(str(error))


def run_requests(url: str, work: Callable[[Request], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function that gets a way to send requests to the broker; its errors are told in one line."""

    async def connected() -> T:
        async with requests(url) as request:
            return await work(request)

    try:
        return asyncio.run(connected())
    except ForebayError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)
