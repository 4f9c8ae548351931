"""Times as the database keeps them: microseconds since 1970, which sort and compare as numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(at: datetime) -> int:
    """Return an aware time as a number.

    Raises:
        OverflowError: in UTC it is outside the years 1 to 9999.
    """
    return (at.astimezone(UTC) - _EPOCH) // _MICROSECOND


def moment(at: int) -> datetime:
    """Return the time that a number stands for, in UTC."""
    return _EPOCH + at * _MICROSECOND
