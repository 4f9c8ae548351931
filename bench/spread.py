"""What a measure was over the runs: the median, the least and the most, alone and beside another column."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Values of one unit."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Return how values are spread.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no values, no spread")
    return Spread(statistics.median(values), min(values), max(values))


def ratio(values: Sequence[float], beside: Sequence[float]) -> Spread:
    """Return how values are spread as multiples of those that were measured in the same rounds.

    A machine that slows down for a while slows down both columns of a round: the ratio of medians would not see that.

    Raises:
        ValueError: the columns do not have the same number of rounds, or a value beside is 0.
    """
    if len(values) != len(beside):
        raise ValueError(f"{len(values)} rounds beside {len(beside)}")
    if not all(beside):
        raise ValueError("nothing is a multiple of 0")
    return spread([one / other for one, other in zip(values, beside, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that ``share`` (0 to 1) of the values do not exceed: the nearest rank, never in between.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    rank = -(-share * len(ordered) // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]
