"""What the meter and its consumers share. Every number is given out once: it tells an effect from another."""

from __future__ import annotations

from forebay import Event

NOTICE_EVERY = 5
"""The audit emits a notice for every reading whose number this divides."""

LATE_EVERY = 2 * NOTICE_EVERY
"""Those whose number this divides are noticed by a timer, a moment later."""


class ReadingTaken(Event, service="meter", kind="reading-taken", key="meter"):
    meter: str
    number: int
    padding: str = ""


class Sampled(Event, service="meter", kind="sampled", lane="telemetry", key="meter"):
    meter: str
    number: int
    padding: str = ""


class Noticed(Event, service="audit", kind="noticed", key="meter"):
    meter: str
    number: int
