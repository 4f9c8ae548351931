"""What a relay has read, ready to be sent, while the batch before is under way."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from forebay.errors import StoreError
from forebay.identity import Place
from forebay.packets import Batch, Look, Packer
from forebay.unit_of_work import UnitStore


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
    """Reads one batch ahead.

    Attributes:
        found: the batch; None where none was read, or it had its turn.
    """

    def __init__(self, store: UnitStore, packer: Packer) -> None:
        self._store = store
        self._packer = packer
        self.found: Ahead | None = None

    async def read(self, look: Look, others: Sequence[tuple[str, Place | None]], wakes: int) -> None:
        """Read what a look finds, which begins where the batch under way ends.

        Args:
            look: the lane, its place, and what there is room for.
            others: the other lanes, and up to where they are sent.
            wakes: how often the relay was woken so far.
        """
        with contextlib.suppress(StoreError):  # whoever needs it reads it again, and meets the same
            batch, alone = await self._store.read(self._packer.following, look, others)
            self.found = Ahead(look, batch, wakes if alone else None)

    def at(self, looks: Sequence[Look]) -> int | None:
        """Return which of these looks it was read for; None where for none of them."""
        lane = self.found.look.lane if self.found is not None else None
        return next((at for at, look in enumerate(looks) if look.lane == lane), None)

    def alone(self, wakes: int) -> bool:
        """Whether no other lane has anything to send: none had, and nobody has woken the relay since."""
        return self.found is not None and self.found.wakes == wakes

    def take(self, look: Look) -> Batch | None:
        """Return the batch if it is what the look would find now. Where it is not, it is forgotten."""
        ahead, self.found = self.found, None
        if ahead is None or not ahead.batch.packets:  # what has come since a look found nothing only a new one finds
            return None
        fits = ahead.batch.events <= look.room.events and ahead.batch.size <= look.room.wire
        return ahead.batch if fits and _origin(ahead.look) == _origin(look) else None

    def drop(self) -> None:
        """Forget the batch."""
        self.found = None


def _origin(look: Look) -> object:
    """What a batch begins at, and what its messages are cut for."""
    return look.lane, look.place, look.room.message, look.room.frames
