"""What the archive does by itself beside keeping events: its indexes, exporting days that are over, its retention."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import msgspec

from core.archive.event import now
from core.archive.export import DAY, export_part
from core.archive.places import BACKLOG, STEP, catch_up, drop_wide, has_wide, tail
from core.archive.queries import latest
from core.archive.retention import Limits, candidates, delete, epochs_in, unneeded
from core.archive.scans import scanned_at
from forebay.errors import ConfigurationError
from forebay.jetstream.topology.units import SECOND, parse_duration, parse_size
from forebay.settled import settled_end
from forebay.worker import AtWork, Work

logger = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between looks."""

SCANNED = 3600.0
"""Seconds for which nothing is deleted after somebody read in the archive's own order: a rebuild may be under way."""

PAUSE = 0.05
"""Seconds between two steps."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[archive]``.

    Attributes:
        keep: how long events are kept, such as ``"400d"``; for ever where nothing is said.
        keep_bytes: how large the database may grow before the oldest go, such as ``"20GiB"``.
        export: the folder to export to, below the process's unless it is absolute; nothing is deleted before it.
    """

    keep: str | None = None
    keep_bytes: str | int | None = None
    export: str | None = None

    def limits(self) -> Limits:
        """Return what they mean.

        Raises:
            ConfigurationError: one of them cannot be read.
        """
        try:
            return Limits(
                parse_duration(self.keep) / SECOND if self.keep is not None else None,
                parse_size(self.keep_bytes) if self.keep_bytes is not None else None,
                Path(self.export) if self.export is not None else None,
            )
        except ValueError as error:
            raise ConfigurationError(f"[archive] in forebay.toml: {error}") from error


def look_after(at_work: AtWork) -> Work:
    """Export and delete, once in each interval; what fails is tried again."""
    settings: Settings = at_work.settings
    limits = settings.limits()
    if limits.keep_bytes is not None and not at_work.is_file:
        # What is deleted there is room for what comes, and the files stay as large as they were.
        raise ConfigurationError("[archive] keep_bytes is for SQLite files", hint="on PostgreSQL give keep")

    async def look() -> bool:
        await index(at_work)
        await export_days(at_work, limits)
        await trim(at_work, limits)
        return False

    return look


async def index(at_work: AtWork) -> None:
    """Bring events into the narrow indexes that came when there were none; then drop those that they replace.

    Raises:
        StoreError: the database failed.
    """
    if not at_work.is_file:
        return
    left = await at_work.store.read(tail)
    if left >= BACKLOG:
        logger.info("archive.indexing", extra={"events": left})
        while left >= STEP:
            left = await at_work.store.write(catch_up)
            await anyio.sleep(PAUSE)
    if await at_work.store.read(has_wide) and await at_work.store.write(drop_wide):
        logger.info("archive.indexed")


async def export_days(at_work: AtWork, limits: Limits) -> int:
    """Export the days that are over; return how many files that made.

    Raises:
        ConfigurationError: the folder cannot be used.
    """
    count = 0
    while limits.export is not None:
        upto = await settled_end(at_work.store, latest)
        part = await at_work.store.read(export_part, limits.export, now() // DAY * DAY, upto)
        if part is None:
            break
        count += 1
        logger.info("archive.exported", extra={"file": part.file, "events": part.events, "bytes": part.bytes})
    return count


async def trim(at_work: AtWork, limits: Limits) -> int:
    """Delete what the limits let go and nobody needs; return how many events that were.

    Raises:
        LinkError: a consumer does not say what it needs.
        StoreError: the database failed.
    """
    count = 0
    while limits.keep is not None or limits.keep_bytes is not None:
        if now() - await at_work.store.read(scanned_at) < SCANNED * 1000:
            break
        events = await at_work.store.read(candidates, limits)
        epochs = epochs_in(events)
        gone = unneeded(events, epochs, await at_work.unneeded(epochs)) if epochs else events
        if not gone:
            break
        await at_work.store.write(delete, gone)
        count += len(gone)
        await anyio.sleep(PAUSE)
    if count:
        logger.warning("archive.trimmed", extra={"events": count})
    return count
