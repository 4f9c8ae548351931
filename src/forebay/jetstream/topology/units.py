"""Durations and sizes as people write them ("2m", "64MiB") and as JetStream takes them (nanoseconds, bytes)."""

from __future__ import annotations

import re

SECOND = 1_000_000_000
"""Nanoseconds."""

_DURATIONS = {
    "w": 7 * 86_400 * SECOND,
    "d": 86_400 * SECOND,
    "h": 3_600 * SECOND,
    "m": 60 * SECOND,
    "s": SECOND,
    "ms": 1_000_000,
    "us": 1_000,
    "ns": 1,
}
_SIZES = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_DURATION = re.compile(r"(?:\d+(?:w|d|h|ms|m|us|ns|s))+")
_DURATION_PART = re.compile(r"(\d+)(w|d|h|ms|m|us|ns|s)")
_SIZE = re.compile(r"(\d+) ?(TiB|GiB|MiB|KiB|B)")


def parse_duration(value: int | str) -> int:
    """Return nanoseconds; a bare number is nanoseconds already, as in the JetStream API.

    Raises:
        ValueError: the text is not a duration.
    """
    if isinstance(value, int):
        return value
    if not _DURATION.fullmatch(value):
        raise ValueError(f"{value!r} is not a duration; write for example 30s, 2m, 1h30m or 30d")
    return sum(int(number) * _DURATIONS[unit] for number, unit in _DURATION_PART.findall(value))


def parse_size(value: int | str) -> int:
    """Return bytes; a bare number is bytes already.

    Raises:
        ValueError: the text is not a size.
    """
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not a size; write for example 512KiB, 64MiB or 1GiB")
    return int(match[1]) * _SIZES[match[2]]


def format_duration(nanoseconds: int) -> str:
    """Write nanoseconds in the largest unit that divides them, the inverse of ``parse_duration``."""
    return _format(nanoseconds, _DURATIONS)


def format_size(size: int) -> str:
    """Write bytes in the largest unit that divides them, the inverse of ``parse_size``."""
    return _format(size, _SIZES)


def _format(value: int, units: dict[str, int]) -> str:
    if value <= 0:
        return str(value)
    unit = next(unit for unit, factor in units.items() if value % factor == 0 and unit != "w")
    return f"{value // units[unit]}{unit}"
