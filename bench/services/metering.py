"""The events of the benchmarks, and the effect that they have in the core."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any

from forebay import Event, Lane

EFFECT = "insert into effect (node, number, cents) values (:node, :number, :cents)"
"""A row for each time that an event takes effect, and nothing that would refuse a second one: the check counts them."""


class Metered(Event, service="meter", kind="metered", key="meter"):
    """One reading; numbers are given out once over all nodes of a run."""

    meter: str
    number: int
    cents: int


class Sampled(Event, service="meter", kind="sampled", lane="telemetry", key="meter"):
    """One reading of a lane whose events may go in frames."""

    meter: str
    number: int
    cents: int


class Plain(Event, service="meter", kind="plain", lane="plain", key="meter"):
    """One reading of a lane whose frames are never packed."""

    meter: str
    number: int
    cents: int


class Sized(Event, service="meter", kind="sized"):
    """An event of any size: its number, and as much padding as it takes."""

    n: int
    pad: str = ""


def frames_are_there() -> bool:
    """Whether this forebay can send frames."""
    return "frames" in signature(Lane).parameters


def framed(name: str, *, budget: str, zstd: bool = True) -> Lane:
    """Return a lane whose events go in frames, where this forebay can do that."""
    if not frames_are_there():
        return Lane(name, budget=budget)
    lane: Any = Lane
    made: Lane = lane(name, budget=budget, frames=import_module("forebay.lanes").Frames(zstd=zstd))
    return made
