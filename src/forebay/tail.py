"""The grace tail: what is confirmed and still on the disk, and goes from the oldest on when it is ripe (rule O1).

A row is ripe when every needed consumer's latest answer confirms it and came at least a grace after the first one that
did. Where the tail takes too much of its lane's budget, or the disk is full, a shorter grace counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from forebay.crash_points import reach
from forebay.freeing import Freed, Head, free, head, pass_drop, pass_withheld, rows_above, standing
from forebay.identity import Place
from forebay.outbox import Outbox
from forebay.protocol.confirmation import Confirmations
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore
from forebay.withholding import Listed, listed, release

GRACE = 24 * 3600.0
"""Seconds for which a confirmed row stays (the grace tail), unless it takes more than ``TAIL_SHARE`` of the budget."""

TAIL_SHARE = 0.2
"""Share of a lane's budget that confirmed rows may take before they go earlier."""

SHED_GRACE = 10.0
"""Seconds between the two answers that free what is beyond ``TAIL_SHARE``."""

FREE_LIMIT = 1000
"""Rows freed in one transaction, so that writers wait for milliseconds only."""

NOBODY = Confirmations()
"""What is known of a consumer that has not answered."""

Known = Mapping[str, Confirmations]
"""What each consumer that must confirm has confirmed."""


class _Oldest(NamedTuple):
    """What stands at the beginning of a lane.

    Attributes:
        head: its oldest part; None where nothing is left to pass.
        excess: rows above the tail's share of the budget, where the oldest part is rows.
        aside: what is withheld of the lane.
    """

    head: Head | None
    excess: int
    aside: list[Listed]


class Tail:
    """Frees what is ripe of one outbox, of its events or of the commands to one destination.

    Args:
        outbox: whose rows they are.
        store: where they are.
        destination: of commands; empty for events.
        grace: seconds for which a confirmed row stays.
        short_of_room: whether the disk is full.

    Attributes:
        is_long: whether something waits for the shorter grace.
    """

    def __init__(
        self, outbox: Outbox, store: UnitStore, destination: str, grace: float, short_of_room: Callable[[], object]
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._destination = destination
        self._grace = grace
        self._short_of_room = short_of_room
        self.is_long = False

    async def free(self, known: Known) -> int:
        """Free every lane's ripe prefix; return how many rows went. Nothing goes where nobody is known."""
        self.is_long = False
        freed = 0
        found = await self._store.read(self._look) if known else {}
        for lane in list(found):
            while (count := await self._free_some(lane, found[lane], known)) is not None:
                freed += count
                found = await self._store.read(self._look)
            if released := await self._release(lane, found[lane].aside, known):
                freed += released
                found = await self._store.read(self._look)
        return freed

    def _look(self, tx: Transaction) -> dict[str, _Oldest]:
        """Look at the beginnings of all lanes: mostly nothing is ripe in any. What was seen counts until a write."""
        found = {}
        for lane in self._outbox.lanes:
            oldest, excess = head(tx, lane, self._destination), 0
            if oldest is not None and oldest.what == "rows":
                share = self._outbox.lanes[lane].budget_bytes * TAIL_SHARE
                excess = rows_above(tx, lane, share, self._destination)
            found[lane] = _Oldest(oldest, excess, listed(tx, lane, self._destination))
        return found

    def confirmed_upto(self, tx: Transaction, known: Known) -> dict[str, Place]:
        """Return per lane the place up to which all have everything; lanes without one are left out."""
        found: dict[str, Place] = {}
        for lane in self._outbox.lanes if known else ():
            for epoch in standing(tx, lane, self._destination):
                upto = min(each.watermark(epoch.epoch, epoch.first, epoch.aside) for each in known.values())
                if upto:
                    found[lane] = Place(epoch.epoch, min(upto, epoch.last))
                if upto < epoch.last:
                    break
        return found

    def sheddable(self, tx: Transaction, known: Known) -> dict[str, Place]:
        """Return per lane what may go at once for want of room.

        A lane that blocks keeps the shorter grace even then; one that drops would otherwise drop unconfirmed events.
        """
        upto = self.confirmed_upto(tx, known)
        grace = min(SHED_GRACE, self._grace)
        for lane in [lane for lane in upto if not self._outbox.lanes[lane].drops]:
            oldest = head(tx, lane, self._destination)
            ripe = 0 if oldest is None else self._ripe(oldest.epoch, grace, oldest.first, known)
            if oldest is None or ripe < oldest.first:
                del upto[lane]
            else:
                upto[lane] = Place(oldest.epoch, ripe)
        return upto

    async def _free_some(self, lane: str, beginning: _Oldest, known: Known) -> int | None:
        """Let a lane's floor pass its oldest part, or some of it; return the rows that went, None where it stays."""
        to = self._destination
        oldest = beginning.head
        if oldest is None:
            return None
        epoch, first, last = oldest.epoch, oldest.first, oldest.last
        if oldest.what == "drop":
            upto = min(each.ended(epoch, first, last) for each in known.values())
            if upto < first:
                return None
            applied = {name: each.applied(epoch, first, upto) for name, each in known.items()}
            await self._store.write(pass_drop, lane, (first, upto), epoch, applied, to)
            return 0
        if oldest.what == "withheld":
            if not all(each.passed(Place(epoch, first)) for each in known.values()):
                return None
            await self._store.write(pass_withheld, lane, Place(epoch, first), to)
            return 0
        return await self._free_rows(lane, oldest, beginning.excess, known)

    async def _free_rows(self, lane: str, oldest: Head, excess: int, known: Known) -> int | None:
        hurried = excess > 0 or bool(self._short_of_room())
        grace = min(SHED_GRACE, self._grace) if hurried else self._grace
        upto = min(oldest.last, self._ripe(oldest.epoch, grace, oldest.first, known))
        if upto < oldest.first:
            self.is_long |= hurried
            return None
        limit = min(FREE_LIMIT, excess or FREE_LIMIT)
        freed = await self._store.write(free, lane, oldest.epoch, upto, limit=limit, destination=self._destination)
        reach("free.done")
        return self._left(lane, freed) or None

    async def _release(self, lane: str, aside: Sequence[Listed], known: Known) -> int:
        """Delete the withheld bodies that the floor has passed and all needed consumers have had for the grace (B2)."""
        places = [
            Place(place.epoch, place.sequence)
            for place, passed in aside
            if passed and self._ripe(place.epoch, self._grace, place.sequence, known) >= place.sequence
        ]
        if not places:
            return 0
        return self._left(lane, await self._store.write(release, lane, places, self._destination))

    @staticmethod
    def _ripe(epoch: str, grace: float, first: int, known: Known) -> int:
        return min(each.ripe(epoch, grace, first) for each in known.values())

    def _left(self, lane: str, freed: Freed) -> int:
        self._outbox.drains[lane].left(freed.size)
        return freed.events
