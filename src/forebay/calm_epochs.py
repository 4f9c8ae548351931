"""Epochs of which nothing is expected but the next event: kept from one transaction to the next, and found quickly.

In a fleet of 10,000 nodes nearly every event of a transaction is another origin's. To read its row, to make up what is
known of its origin and to write the row by its key took as long as the rest of the event. So where one process alone
writes (SQLite), it remembers the epochs that it wrote last, and writes their watermarks by the rows' numbers.
"""

from __future__ import annotations

import msgspec

from forebay.envelope import Message
from forebay.identity import Place
from forebay.row_cache import RowCache, Rows
from forebay.transaction import Transaction

KEPT = 32_768
"""Nodes' services that are remembered, about 450 bytes each: 14 MiB at most. Beyond it every second one is forgotten:
of a fleet that comes round and round, the oldest are those that come next."""

OF_ORIGIN = 4
"""Epochs that are remembered of a node's service; each of its lanes has its own."""

_WATERMARKS = """
    update forebay_inbox set watermark = k.value from json_each(:passed) k
    where forebay_inbox.id = cast(k.key as integer)"""


class CalmEpoch:
    """An epoch with nothing known of it but the watermark, whose ``prev`` is reached, in whose origin nothing waits.

    Attributes:
        row: the number of its row.
        moved: whether the row has to be written.
        other: the next one of the same node's service.
    """

    __slots__ = ("epoch", "lane", "moved", "other", "row", "watermark")

    def __init__(self, epoch: str, lane: str, row: int, watermark: int, other: CalmEpoch | None) -> None:
        self.epoch = epoch
        self.lane = lane
        self.row = row
        self.watermark = watermark
        self.moved = False
        self.other = other


class CalmEpochs:
    """The calm epochs within one transaction.

    What is known of a node's service is here or in the inbox, never in both: ``leave`` says that it is the inbox's now.

    Args:
        tx: the transaction.
        cache: where they are kept between transactions; None where other processes write as well.
    """

    def __init__(self, tx: Transaction, cache: RowCache | None) -> None:
        self._tx = tx
        self._cache = cache
        self._origins: Rows = {} if cache is None else cache.borrow()
        self._changes = 0 if cache is None else cache.changes
        self._moved: list[CalmEpoch] = []

    @property
    def lasting(self) -> bool:
        """Whether what is kept here is there in the next transaction."""
        return self._cache is not None

    def find(self, message: Message, place: Place) -> CalmEpoch | None:
        """Return the epoch of an event; None where it is not among them."""
        found: CalmEpoch | None = self._origins.get((message.node, message.service))
        while found is not None and found.epoch != place.epoch:
            found = found.other
        return found

    def pass_next(self, message: Message, place: Place) -> bool:
        """Pass an event that is next in its epoch; False, and nothing done, for any other."""
        found = self.find(message, place)
        if found is None or found.lane != message.lane or place.sequence != found.watermark + 1:
            return False
        found.watermark = place.sequence
        if not found.moved:
            found.moved = True
            self._moved.append(found)
        return True

    def leave(self, node: str, service: str) -> dict[str, int]:
        """Let a node's service be known to the inbox alone; return the watermarks that its rows do not have yet."""
        passed = {}
        found: CalmEpoch | None = self._origins.pop((node, service), None)
        while found is not None:
            if found.moved:
                passed[found.epoch] = found.watermark
            found = found.other
        return passed

    def keep(self, node: str, service: str, epoch: str, lane: str, row: int, watermark: int) -> None:
        """Remember an epoch whose row has this number and this watermark."""
        other = self._origins.get((node, service))
        self._origins[node, service] = CalmEpoch(epoch, lane, row, watermark, other)

    def write(self) -> None:
        """Write the watermarks that moved, also of those that left; what the inbox writes comes after it."""
        if self._cache is not None and self._cache.changes != self._changes:
            self._cache, self._origins = None, {}  # another one was at work in this transaction: what do we know
        if self._moved:
            passed = {known.row: known.watermark for known in self._moved}
            self._tx.execute(_WATERMARKS, passed=msgspec.json.encode(passed).decode())
            for known in self._moved:
                known.moved = False
            self._moved.clear()

    def end(self) -> None:
        """Leave to those who come after what is known, where all of it was written; here nothing is known any more."""
        if self._cache is None:
            return
        if len(self._origins) > KEPT:
            for origin in list(self._origins)[::2]:
                del self._origins[origin]
        self._cache.give_back(self._origins)
        self._cache, self._origins = None, {}
