"""Judges what a run left: only what the writer was told, against what the consumer's database holds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import msgspec


class Acknowledged(msgspec.Struct, frozen=True):
    """One event that its writer was told to be safe. ``at`` is in seconds of the run's clock."""

    key: str
    number: int
    at: float


class Effect(msgspec.Struct, frozen=True):
    """One row of the consumer's table, in the order of the table; ``seen`` is when a watcher first saw it."""

    key: str
    number: int
    seen: float


class Outcome(msgspec.Struct, frozen=True):
    """What became of one run.

    Attributes:
        acknowledged: events that the writer was told to be safe.
        lost_before: of those acknowledged before the fault was healed, the ones without any effect at the end.
        lost_after: of those acknowledged after it was healed.
        doubled: effects beyond the first of an event.
        reordered: effects of an event after a later one of its key.
        next_event: seconds from the heal until an event that was acknowledged after it takes effect; None for never.
    """

    acknowledged: int
    lost_before: int
    lost_after: int
    doubled: int
    reordered: int
    next_event: float | None

    @property
    def lost(self) -> int:
        """All events that were acknowledged and have no effect."""
        return self.lost_before + self.lost_after


class Sum(msgspec.Struct, frozen=True):
    """The runs of one fault in one column; ``next_event`` has the least, the median and the most seconds."""

    runs: int
    runs_wrong: int
    """Runs in which anything was lost, doubled or reordered."""
    acknowledged: int
    lost_before: int
    lost_after: int
    doubled: int
    reordered: int
    next_event: tuple[float, float, float] | None
    never: int
    """Runs in which no later event arrived."""

    @property
    def lost(self) -> int:
        """All events that were acknowledged and have no effect."""
        return self.lost_before + self.lost_after


def judge(acknowledged: Sequence[Acknowledged], effects: Sequence[Effect], healed: float) -> Outcome:
    """Compare what was acknowledged with what took effect; an effect of what nobody acknowledged is no violation.

    Args:
        acknowledged: in any order.
        effects: in the order of the consumer's table.
        healed: when the fault was over, by the same clock.
    """
    counts = Counter((effect.key, effect.number) for effect in effects)
    lost = [each for each in acknowledged if (each.key, each.number) not in counts]
    late = {(each.key, each.number) for each in acknowledged if each.at >= healed}
    arrivals = [each.seen - healed for each in effects if each.seen >= healed and (each.key, each.number) in late]
    return Outcome(
        acknowledged=len(acknowledged),
        lost_before=sum(each.at < healed for each in lost),
        lost_after=sum(each.at >= healed for each in lost),
        doubled=sum(count - 1 for count in counts.values()),
        reordered=_reordered(effects),
        next_event=round(min(arrivals), 3) if arrivals else None,
    )


def _reordered(effects: Sequence[Effect]) -> int:
    found = 0
    seen: set[tuple[str, int]] = set()
    latest: dict[str, int] = {}
    for effect in effects:
        if (effect.key, effect.number) in seen:
            continue  # A repetition is counted as doubled, and only as that.
        seen.add((effect.key, effect.number))
        found += effect.number < latest.get(effect.key, effect.number)
        latest[effect.key] = max(effect.number, latest.get(effect.key, effect.number))
    return found


def add_up(outcomes: Sequence[Outcome]) -> Sum:
    """Sum the runs of one fault in one column."""
    times = [each.next_event for each in outcomes if each.next_event is not None]
    return Sum(
        runs=len(outcomes),
        runs_wrong=sum(bool(each.lost or each.doubled or each.reordered) for each in outcomes),
        acknowledged=sum(each.acknowledged for each in outcomes),
        lost_before=sum(each.lost_before for each in outcomes),
        lost_after=sum(each.lost_after for each in outcomes),
        doubled=sum(each.doubled for each in outcomes),
        reordered=sum(each.reordered for each in outcomes),
        next_event=(min(times), statistics.median(times), max(times)) if times else None,
        never=len(outcomes) - len(times),
    )
