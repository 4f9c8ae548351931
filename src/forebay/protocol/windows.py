"""Which windows an event belongs to, and when it comes too late for one: pure arithmetic on event time.

All times are milliseconds since 1970. A span is half open: an event at ``closes`` belongs to the next one. Windows of
a size are aligned to 1970-01-01T00:00Z, so that every node and every run cuts time alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from forebay.errors import ConfigurationError
from forebay.lanes import parse_seconds

MOST_OVERLAPPING = 1000
"""Sliding windows that one event may belong to; each costs a fold and a row."""


class Span(NamedTuple):
    """From ``opens`` up to, and without, ``closes``."""

    opens: int
    closes: int

    def joined(self, other: Span) -> Span:
        """Return the shortest span that holds both."""
        return Span(min(self.opens, other.opens), max(self.closes, other.closes))

    def overlaps(self, other: Span) -> bool:
        """Whether they share a moment; spans that only touch do not."""
        return self.opens < other.closes and other.opens < self.closes


class Tumbling(msgspec.Struct, frozen=True):
    """Windows of one size, end to end: each event is in one.

    Example:
        >>> Tumbling("1m").spans(125_000)
        [Span(opens=120000, closes=180000)]
    """

    size: str | float

    def __post_init__(self) -> None:
        duration(self.size, "a tumbling window's size", above_zero=True)

    def spans(self, at: int) -> list[Span]:
        """Return the windows of an event at ``at``, the earliest first."""
        size = duration(self.size, "size")
        opens = at // size * size
        return [Span(opens, opens + size)]


class Sliding(msgspec.Struct, frozen=True):
    """Windows of ``size``, one beginning ``every`` so often (hopping windows): each event is in ``size / every``.

    Example:
        >>> Sliding("2m", every="1m").spans(125_000)
        [Span(opens=60000, closes=180000), Span(opens=120000, closes=240000)]
    """

    size: str | float
    every: str | float

    def __post_init__(self) -> None:
        size = duration(self.size, "a sliding window's size", above_zero=True)
        every = duration(self.every, "a sliding window's every", above_zero=True)
        if not every <= size <= every * MOST_OVERLAPPING:
            raise ConfigurationError(
                f"a sliding window's size {self.size!r} is not 1 to {MOST_OVERLAPPING} times its every {self.every!r}"
            )

    def spans(self, at: int) -> list[Span]:
        """Return the windows of an event at ``at``, the earliest first."""
        size, every = duration(self.size, "size"), duration(self.every, "every")
        last = at // every * every
        first = (at - size) // every * every + every
        return [Span(opens, opens + size) for opens in range(first, last + 1, every)]


class Session(msgspec.Struct, frozen=True):
    """Windows of activity: events of a key that are less than ``gap`` apart are in one, however many they are.

    Example:
        >>> Session("30s").spans(125_000)
        [Span(opens=125000, closes=155000)]
    """

    gap: str | float

    def __post_init__(self) -> None:
        duration(self.gap, "a session's gap", above_zero=True)

    def spans(self, at: int) -> list[Span]:
        """Return the session of an event that is alone; sessions that overlap are one."""
        return [Span(at, at + duration(self.gap, "gap"))]


Kind = Tumbling | Sliding | Session
"""How a window cuts the time of a key."""


class Placed(NamedTuple):
    """The windows that take an event, and those for which it comes too late."""

    live: list[Span]
    missed: list[Span]


def place(kind: Kind, at: int, horizon: int) -> Placed:
    """Assign an event to its windows.

    Args:
        kind: how time is cut.
        at: the event's time.
        horizon: the watermark less the allowed lateness: what closes at or before it is final and deleted.
    """
    spans = kind.spans(at)
    if isinstance(kind, Session):
        # By the event's own time, not by its session's end: behind the horizon it may have bridged, or extended, a
        # session that is final, and the result would depend on the order of arrival.
        return Placed(spans, []) if at >= horizon else Placed([], spans)
    return Placed([each for each in spans if each.closes > horizon], [each for each in spans if each.closes <= horizon])


def sessions(spans: Iterable[Span]) -> list[Span]:
    """Join what overlaps; the batch computation of the sessions of a key.

    Example:
        >>> sessions([Span(0, 10), Span(30, 40), Span(5, 15)])
        [Span(opens=0, closes=15), Span(opens=30, closes=40)]
    """
    found: list[Span] = []
    for span in sorted(spans):
        if found and found[-1].overlaps(span):
            found[-1] = found[-1].joined(span)
        else:
            found.append(span)
    return found


@lru_cache(maxsize=256)
def duration(value: str | float, what: str, *, above_zero: bool = False) -> int:
    """Return milliseconds of a duration: seconds, or ``"500ms"``, ``"1s"``, ``"2m"``, ``"3h"``.

    Raises:
        ConfigurationError: it is none, or below zero, or zero where that makes no sense.
    """
    milliseconds = round(parse_seconds(value, what) * 1000)
    if milliseconds < 0 or (above_zero and milliseconds == 0):
        raise ConfigurationError(f"{what}: {value!r} is not above zero")
    return milliseconds
