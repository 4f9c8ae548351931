"""Lanes: classes of events with a byte budget on the node's disk and a priority on its link."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, get_args

import msgspec

from forebay.errors import ConfigurationError
from forebay.identity import checked_name

DEFAULT_BUDGET = 128 * 1024 * 1024
"""Bytes; about 260,000 events of 400 bytes."""

DROP_FROM = 0.8
"""Share of its budget from which on a lane that drops removes events."""

DEFAULT_FRAME_EVENTS = 1000
"""Events of a frame; of readings of a few values, the bytes an event go down by 1 % from there to 4,000."""

DEFAULT_FRAME_BYTES = 512 * 1024
"""Bytes of a frame before it is packed."""

MOST_FRAME_EVENTS, MOST_FRAME_BYTES = 4_000, 2 * 1024 * 1024
"""What a lane may ask for; less than what readers take, where each character has four bytes, too."""

MOST_FLUSH_AFTER = 3600.0
"""Seconds that a lane may wait to fill a batch."""

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

WhenFull = Literal["block", "drop-oldest", "keep-latest"]
"""What a lane does when its budget is spent."""

_SIZE = re.compile(r"([0-9]{1,12})\s*(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


@lru_cache(maxsize=256)  # a lane's budget is asked with each event
def parse_size(value: str | int, what: str) -> int:
    """Read a size in bytes: a number, or ``"64MiB"``.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ConfigurationError(f"{what}: {value!r} is not a size", hint='write bytes, or for example "64MiB"')
    return int(match[1]) * _UNITS[match[2]]


def parse_seconds(value: str | float, what: str) -> float:
    """Read a duration in seconds: a number, or ``"500ms"``, ``"1s"``, ``"2m"``.

    Raises:
        ConfigurationError: it is neither.
    """
    if not isinstance(value, str):
        return float(value)
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ConfigurationError(f"{what}: {value!r} is not a duration", hint='write seconds, or for example "1s"')
    return float(match[1]) * _SECONDS[match[2]]


class Frames(msgspec.Struct, frozen=True, kw_only=True):
    """How a lane puts consecutive events into single messages (frames).

    Attributes:
        events: of one frame, at most.
        bytes: of one frame before it is packed, at most, as a number or as ``"512KiB"``.
        zstd: whether frames are packed with zstd. It takes ``forebay[zstd]`` here and where they are read; where it is
            missing here they go as they are.

    Example:
        >>> Lane("telemetry", frames=Frames(events=200)).framing.events
        200
    """

    events: int = DEFAULT_FRAME_EVENTS
    bytes: str | int = DEFAULT_FRAME_BYTES
    zstd: bool = True

    @property
    def most_bytes(self) -> int:
        """The bytes as a number."""
        return parse_size(self.bytes, "frames: bytes")


class Lane(msgspec.Struct, frozen=True):
    """One lane of a service. Lanes drain in the order in which the service lists them.

    Attributes:
        name: as the events name it.
        budget: bytes on disk, as a number or as ``"128MiB"``.
        when_full: ``block`` refuses writes (503) and keeps everything. ``drop-oldest`` removes the oldest events that
            are not confirmed, ``keep-latest`` those that a later one of the same kind and key replaces; one without a
            key is never replaced, and where that makes no room the write is refused. What is removed is told to the
            core as a range (O3). Services of the core block.
        flush_after: for how long the relay waits to fill a batch, or a frame: seconds, or ``"1s"``, ``"500ms"``,
            ``"2m"``.
        drop_from: the share of the budget from which on events are removed; 0.8 unless told otherwise.
        frames: whether, or how, consecutive events of one kind go as one message; what reads them is told nothing of
            it. A backlog goes in full frames, and a trickle in what ``flush_after`` gathers.

    Example:
        >>> ledger = Lane("ledger", budget="128MiB")
        >>> telemetry = Lane("telemetry", budget="32MiB", when_full="drop-oldest", flush_after="1s")
        >>> telemetry.budget_bytes, telemetry.flush_seconds
        (33554432, 1.0)
        >>> Lane("telemetry", frames=True).framing == Frames()
        True
    """

    name: str
    budget: str | int = DEFAULT_BUDGET
    when_full: WhenFull = "block"
    drop_from: float = DROP_FROM
    flush_after: str | float = 0.0
    frames: Frames | bool = False

    def __post_init__(self) -> None:
        checked_name(self.name, "lane")
        if self.budget_bytes < 1:
            raise ConfigurationError(f"lane {self.name}: budget is below one byte")
        if self.when_full not in get_args(WhenFull):
            raise ConfigurationError(
                f"lane {self.name}: when_full {self.when_full!r} is not known",
                hint=f"use {', '.join(map(repr, get_args(WhenFull)))}",
            )
        if not 0 < self.drop_from <= 1:
            raise ConfigurationError(
                f"lane {self.name}: drop_from {self.drop_from!r} is no share of the budget", hint="write 0.8"
            )

        if not 0 <= self.flush_seconds <= MOST_FLUSH_AFTER:
            raise ConfigurationError(
                f"lane {self.name}: flush_after {self.flush_after!r} is not between 0 and {MOST_FLUSH_AFTER:g} seconds"
            )
        if (framing := self.framing) is not None:
            if not 2 <= framing.events <= MOST_FRAME_EVENTS:
                raise ConfigurationError(
                    f"lane {self.name}: frames of {framing.events} events are not between 2 and {MOST_FRAME_EVENTS}"
                )
            if not 1 <= framing.most_bytes <= MOST_FRAME_BYTES:
                raise ConfigurationError(
                    f"lane {self.name}: frames of {framing.bytes!r} bytes are not between 1 and {MOST_FRAME_BYTES}"
                )

    @property
    def flush_seconds(self) -> float:
        """The flush interval in seconds."""
        return parse_seconds(self.flush_after, f"lane {self.name}: flush_after")

    @property
    def budget_bytes(self) -> int:
        """The budget in bytes."""
        return parse_size(self.budget, f"lane {self.name}: budget")

    @property
    def framing(self) -> Frames | None:
        """How its events are framed; None where each goes alone."""
        return (Frames() if self.frames else None) if isinstance(self.frames, bool) else self.frames

    @property
    def drops(self) -> bool:
        """Whether a spent budget removes events instead of refusing writes."""
        return self.when_full != "block"

    @property
    def drop_from_bytes(self) -> int:
        """The bytes from which on events are removed; the budget itself where the lane blocks."""
        return int(self.budget_bytes * self.drop_from) if self.drops else self.budget_bytes
