"""What a relay has read, and staged, while the batch before is under way: so the stream hardly waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from forebay.errors import StoreError
from forebay.identity import Place
from forebay.jetstream.publishing import Prepared, Publisher, Staged
from forebay.packets import Batch, Look, Packer
from forebay.unit_of_work import UnitStore

STAGED_WITHIN = 0.1
"""Seconds in which the batch before was acknowledged, where one is staged. A stream has at most 50 open batches: when a
fleet comes back at once each of its nodes would keep one open, and acknowledgements take longer then."""


class Ahead(NamedTuple):
    """A batch that was read before its turn.

    Attributes:
        look: what it was read for.
        batch: what was found.
        wakes: how often the relay had been woken before, where no other lane had anything to send; else None.
    """

    look: Look
    batch: Batch
    wakes: int | None = None


class LookAhead:
    """Reads one batch ahead, and lets the server take it in but for what commits it.

    Attributes:
        found: the batch; None where none was read, or it had its turn.
        acknowledged_in: seconds in which the latest batch was acknowledged; infinite where it was not.
    """

    def __init__(self, store: UnitStore, packer: Packer, publisher: Publisher) -> None:
        self._store = store
        self._packer = packer
        self._publisher = publisher
        self.found: Ahead | None = None
        self.acknowledged_in = float("inf")

    async def read(self, look: Look, others: Sequence[tuple[str, Place | None]], wakes: int, *, wide: bool) -> None:
        """Read what a look finds, which begins where the batch under way ends.

        Args:
            look: the lane, its place, and what there is room for.
            others: the other lanes, and up to where they are sent.
            wakes: how often the relay was woken so far.
            wide: whether the link has room for what is not sent for certain.
        """
        with contextlib.suppress(StoreError):  # whoever needs it reads it again, and meets the same
            batch, alone = await self._store.read(self._packer.following, look, others)
            self.drop()  # of another lane
            staged = await self._staged(batch) if wide else batch
            self.found = Ahead(look, staged, wakes if alone else None)

    def at(self, looks: Sequence[Look]) -> int | None:
        """Return which of these looks it was read for; None where for none of them."""
        lane = self.found.look.lane if self.found is not None else None
        return next((at for at, look in enumerate(looks) if look.lane == lane), None)

    def alone(self, wakes: int) -> bool:
        """Whether no other lane has anything to send: none had, and nobody has woken the relay since."""
        return self.found is not None and self.found.wakes == wakes

    def take(self, look: Look) -> Batch | None:
        """Return the batch if it is what the look would find now. Where it is not, it is forgotten."""
        ahead = self.found
        if ahead is None:
            return None
        batch = ahead.batch
        fits = batch.events <= look.room.events and batch.size <= look.room.wire
        # What has come since a look that found nothing has woken the relay: only a new one will find it.
        if batch.packets and fits and _origin(ahead.look) == _origin(look):
            self.found = None
            return batch
        self.drop()
        return None

    def drop(self) -> None:
        """Forget the batch, and give it up where it was staged."""
        ahead, self.found = self.found, None
        if ahead is not None and isinstance(ahead.batch.prepared, Staged):
            self._publisher.drop(ahead.batch.prepared)

    async def _staged(self, batch: Batch) -> Batch:
        """Stage a batch where the server has time for it."""
        if not isinstance(batch.prepared, Prepared) or self.acknowledged_in > STAGED_WITHIN:
            return batch
        return batch._replace(prepared=await self._publisher.stage(batch.prepared) or batch.prepared)


def _origin(look: Look) -> object:
    """What a batch begins at, and what its messages are cut for."""
    return look.lane, look.place, look.room.message, look.room.frames
