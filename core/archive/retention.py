"""Deleting what is old enough from the archive: never what a consumer still needs, and always on record (C5).

It deletes from the oldest on, a few events at a time, and only what the export has where there is one. An event of
which a second body is kept aside stays. Free pages are given back to the disk by the store, while nothing waits.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from core.archive.event import now
from core.archive.export import Manifest, day_of, read_manifest
from core.archive.places import forget
from forebay import Transaction, UnitOfWork
from forebay.protocol.needs import EpochNeed
from forebay.sequences import Range, joined

STEP = 500
"""Events of one transaction."""

ROW_BYTES = 512
"""Bytes that an event takes beside its body, with its places in the indexes; about."""

FOREIGN_KEPT = 7 * 24 * 3600 * 1000
"""Milliseconds for which a foreign producer's event stays at least: for so long a consumer may meet it again (I7)."""

_OLDEST = """
    select id, node, service, epoch, sequence, archived_at, length(body) as bytes from archived a
    where not exists (select 1 from conflict c where c.archived = a.id) order by id limit :limit"""

_COVERED = """
    delete from deleted where node = :node and service = :service and epoch = :epoch
      and first <= :last + 1 and last >= :first - 1 returning first, last"""


class Old(NamedTuple):
    """One event that may be deleted."""

    id: int
    node: str
    service: str
    epoch: str | None
    sequence: int | None
    archived_at: int
    bytes: int


class Limits(msgspec.Struct, frozen=True):
    """What the archive keeps.

    Attributes:
        keep: seconds; what was archived longer ago may be deleted. None for ever.
        keep_bytes: of the database; while it is larger, the oldest events may be deleted. None for any size.
        export: the folder that must have an event before it is deleted; None where nothing is exported.
    """

    keep: float | None = None
    keep_bytes: int | None = None
    export: Path | None = None


def candidates(tx: Transaction, limits: Limits) -> list[Old]:
    """Return the oldest events that the limits let go, in the order of archiving; at most ``STEP``."""
    exported = read_manifest(limits.export) or Manifest("", []) if limits.export else None
    excess = used_bytes(tx) - limits.keep_bytes if limits.keep_bytes is not None else 0
    old_before = now() - int(limits.keep * 1000) if limits.keep is not None else 0
    upto: dict[str, int] = {}
    found: list[Old] = []
    for row in tx.execute(_OLDEST, limit=STEP):
        each = Old(*(row[name] for name in Old._fields))
        if excess <= 0 and each.archived_at >= old_before:
            break
        excess -= each.bytes + ROW_BYTES
        if each.epoch is None and each.archived_at >= now() - FOREIGN_KEPT:
            break
        if exported is not None:
            day = day_of(each.archived_at)
            if each.id > upto.setdefault(day, exported.upto(day)):
                break
        found.append(each)
    return found


def used_bytes(tx: Transaction) -> int:
    """Return how much of the database's file is in use."""
    (row,) = tx.execute(
        "select (p.page_count - f.freelist_count) * s.page_size as used"
        " from pragma_page_count() p, pragma_freelist_count() f, pragma_page_size() s"
    )
    return int(row["used"])


def epochs_in(events: list[Old]) -> list[EpochNeed]:
    """Return the epochs of events, each with its last place among them."""
    last: dict[tuple[str, str, str], int] = {}
    for each in events:
        if each.epoch is not None and each.sequence is not None:
            key = each.node, each.service, each.epoch
            last[key] = max(last.get(key, 0), each.sequence)
    return [EpochNeed(*key, sequence) for key, sequence in sorted(last.items())]


def unneeded(events: list[Old], epochs: list[EpochNeed], done: list[int]) -> list[Old]:
    """Return the events up to the first that somebody needs."""
    upto = {(each.node, each.service, each.epoch): place for each, place in zip(epochs, done, strict=True)}
    for at, each in enumerate(events):
        if each.epoch is not None and (each.sequence or 0) > upto[each.node, each.service, each.epoch]:
            return events[:at]
    return events


def delete(tx: UnitOfWork, events: list[Old]) -> None:
    """Delete events, and put their places on record."""
    places: dict[tuple[str, str, str], list[Range]] = {}
    for each in events:
        if each.epoch is not None and each.sequence is not None:
            places.setdefault((each.node, each.service, each.epoch), []).append((each.sequence, each.sequence))
    forget(tx, [each._asdict() for each in events])
    tx.executemany("delete from archived where id = :id", [{"id": each.id} for each in events])
    for (node, service, epoch), ranges in sorted(places.items()):
        key = {"node": node, "service": service, "epoch": epoch}
        for first, last in joined(ranges):
            touching = tx.execute(_COVERED, **key, first=first, last=last)
            known = [(first, last), *((row["first"], row["last"]) for row in touching)]
            tx.execute(
                "insert into deleted (node, service, epoch, first, last)"
                " values (:node, :service, :epoch, :first, :last)",
                **key,
                first=min(low for low, _ in known),
                last=max(high for _, high in known),
            )
