"""One message as a consumer gets it from a stream, or from what it held back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from forebay.protocol.archive import ArchiveQuestion
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
