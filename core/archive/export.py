"""Exporting the archive as Parquet: files per UTC day of arrival, and a manifest that says which of them count.

A day is one file or several parts: what arrived on it since the part before. A file is written aside, synced, and
renamed; then the manifest is, which is the truth: a file that it does not name is written anew. The same events give
the same file under the same name. It needs the extra ``forebay[parquet]``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from forebay import Transaction
from forebay.errors import ConfigurationError
from forebay.transaction import Row

PART_EVENTS = 100_000
"""Events of one file, at most: a part is read on one snapshot, which keeps the log from being cut."""

GROUP_EVENTS = 2_000
"""Events that are in memory at once."""

MANIFEST = "manifest.json"
DAY = 24 * 3600 * 1000

TEXTS = (
    *("node", "service", "kind", "type", "lane", "epoch", "foreign_id", "ce_id", "ce_source", "time", "content_type"),
    *("key", "attributes", "hlc", "prev", "cause", "traceparent", "tracestate"),
)
"""Columns of text, as the archive has them."""


class Part(msgspec.Struct, frozen=True):
    """One file of the export.

    Attributes:
        day: of arrival, YYYY-MM-DD in UTC.
        first_id, last_id: the archive's positions of its first and last event.
        sha256: of the file.
    """

    file: str
    day: str
    part: int
    events: int
    bytes: int
    sha256: str
    first_id: int
    last_id: int


class Manifest(msgspec.Struct, frozen=True):
    """What an export consists of; ``archive`` is the id of the store that it is made from."""

    archive: str
    parts: list[Part]

    def upto(self, day: str) -> int:
        """Return the last position of a day that is exported; 0 for none."""
        return max((part.last_id for part in self.parts if part.day == day), default=0)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of an export, or None where there is none yet.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{folder / MANIFEST} cannot be read: {error}") from error


def export_part(tx: Transaction, folder: Path, before: int, upto: int) -> Part | None:
    """Write the next file; None where nothing is left to export.

    Args:
        tx: a snapshot of the archive.
        folder: where the files are; it is made.
        before: milliseconds since 1970: what arrived earlier is exported.
        upto: the position at which the walk ends (``forebay.settled``): what commits late must not count as exported.

    Raises:
        ConfigurationError: pyarrow is missing, the folder cannot be written, or another archive's export is in it.
    """
    store = str(tx.execute("select id from forebay_store")[0]["id"])
    manifest = read_manifest(folder) or Manifest(store, [])
    if manifest.archive != store:
        raise ConfigurationError(f"{folder} holds the export of another archive", hint="choose another folder")
    found = _next(tx, manifest, before, upto)
    if found is None:
        return None
    day, after = found
    number = 1 + max((part.part for part in manifest.parts if part.day == day), default=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = _write(tx, folder / f"{day}.{number:04}.parquet", day, number, (after, upto), before)
        _replace(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(_with(manifest, part)), indent=1) + b"\n")
    except OSError as error:
        raise ConfigurationError(f"cannot export to {folder}: {error.strerror}") from error
    return part


def _with(manifest: Manifest, part: Part) -> Manifest:
    return Manifest(manifest.archive, sorted([*manifest.parts, part], key=lambda each: (each.day, each.part)))


def _next(tx: Transaction, manifest: Manifest, before: int, upto: int) -> tuple[str, int] | None:
    """Return the first day that has something to export, and the position behind which it is."""
    at = 0
    while True:
        rows = tx.execute(
            "select archived_at from archived where archived_at >= :at and archived_at < :before"
            " order by archived_at limit 1",
            at=at,
            before=before,
        )
        if not rows:
            return None
        day = day_of(rows[0]["archived_at"])
        after = manifest.upto(day)
        left = tx.execute(
            "select 1 from archived where archived_at >= :first and archived_at < :behind and id > :after"
            " and id <= :upto limit 1",
            **_bounds(day, before),
            after=after,
            upto=upto,
        )
        if left:
            return day, after
        at = _bounds(day, before)["first"] + DAY


def _write(tx: Transaction, path: Path, day: str, number: int, ids: tuple[int, int], before: int) -> Part:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigurationError("the export needs pyarrow", hint="pip install 'forebay[parquet]'") from error
    fields: list[Any] = [("id", pyarrow.int64()), ("sequence", pyarrow.int64()), ("is_json", pyarrow.bool_())]
    fields += [("archived_at", pyarrow.timestamp("ms", tz="UTC")), ("body", pyarrow.binary())]
    schema = pyarrow.schema([*fields, *((name, pyarrow.string()) for name in TEXTS)])
    aside = path.with_name(f".{path.name}")
    events = first = last = 0
    with parquet.ParquetWriter(aside, schema, compression="zstd") as writer:
        for rows in _groups(tx, day, ids, before):
            first, last, events = first or rows[0]["id"], rows[-1]["id"], events + len(rows)
            columns = {name: [row[name] for row in rows] for name in schema.names}
            columns["is_json"] = [bool(value) for value in columns["is_json"]]
            writer.write_table(pyarrow.table(columns, schema=schema))
    with aside.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        os.fsync(file.fileno())
    aside.replace(path)
    return Part(path.name, day, number, events, size, digest, first, last)


def _groups(tx: Transaction, day: str, ids: tuple[int, int], before: int) -> Iterator[list[Row]]:
    after, upto = ids
    left = PART_EVENTS
    while left:
        rows = tx.execute(
            "select * from archived where archived_at >= :first and archived_at < :behind and id > :after"
            " and id <= :upto order by id limit :limit",
            **_bounds(day, before),
            after=after,
            upto=upto,
            limit=min(left, GROUP_EVENTS),
        )
        if not rows:
            return
        yield rows
        after, left = rows[-1]["id"], left - len(rows)


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # of the file that was renamed before, too
    finally:
        os.close(folder)


def day_of(milliseconds: int) -> str:
    """Return the UTC day of a time, YYYY-MM-DD."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date().isoformat()


def _bounds(day: str, before: int) -> dict[str, int]:
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC)
    first, behind = (int(each.timestamp() * 1000) for each in (begin, begin + timedelta(days=1)))
    return {"first": first, "behind": min(behind, before)}
