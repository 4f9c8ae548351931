"""One message as a consumer gets it from a stream, or from what it held back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from forebay.protocol.archive import ArchiveQuestion, ScanQuestion
from forebay.transaction import Transaction


class Delivery(NamedTuple):
    """A stored message: where it stands in which stream, and what it says.

    ``stored_at`` is nanoseconds since 1970 by the server's clock; ``partition`` is the stream's.
    """

    partition: int
    stream_sequence: int
    stored_at: int
    subject: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def time(self) -> datetime:
        """When the broker stored it."""
        return datetime.fromtimestamp(self.stored_at / 1e9, UTC)


ReadArchive = Callable[[Transaction, ArchiveQuestion], list[tuple[int, Delivery]]]
"""Returns what an archive has of a range of an epoch, ascending, each event with its sequence; at most ``limit``."""


class Scanned(NamedTuple):
    """A page of an archive in its own order: the events with their positions, and where to go on (``ScanAnswer``)."""

    events: list[tuple[int, Delivery]]
    position: int
    end: int
    more: bool


ScanArchive = Callable[[Transaction, ScanQuestion, int, int], Scanned]
"""Returns a page of an archive in its own order.

Its arguments, behind the question: the bytes that all bodies may have together, or one event has; and the position at
which the walk ends (``forebay.settled``).
"""

ArchiveEnd = Callable[[Transaction], int]
"""Returns the position of the latest event; 0 for none."""

NoteScan = Callable[[Transaction], None]
"""Notes that somebody reads an archive in its own order: nothing is deleted for a while."""

FindDeleted = Callable[[Transaction, ArchiveQuestion], list[tuple[int, int]]]
"""Returns the places of a range of an epoch that an archive had and has deleted."""


class ExportedPart(Protocol):
    """One file of an export."""

    @property
    def file(self) -> str:
        """Its name."""
        ...

    @property
    def events(self) -> int:
        """How many events it has."""
        ...

    @property
    def bytes(self) -> int:
        """How large it is."""
        ...


ExportPart = Callable[[Transaction, Path, int, int], ExportedPart | None]
"""Writes the next file of an export to a folder, of events that came before a time in milliseconds, up to a position at
which the walk ends (``forebay.settled``); None at the end."""


class Archive(NamedTuple):
    """What answers for an archive (C5), and exports it."""

    read: ReadArchive
    scan: ScanArchive
    end: ArchiveEnd
    scanned: NoteScan
    deleted: FindDeleted
    export: ExportPart
