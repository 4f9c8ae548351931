"""Crash points as a test uses them; ``forebay.crash_points`` says where they are."""

from __future__ import annotations

from collections import Counter

from forebay import crash_points as points


class CrashedError(BaseException):
    """Raised at a crash point of this very process; no ``except Exception`` on the way can swallow it."""


class CrashPoints:
    """Arms crash points, in this process or in a child."""

    @property
    def names(self) -> list[str]:
        """Every crash point."""
        return list(points.POINTS)

    def environment(self, name: str, nth: int = 1) -> dict[str, str]:
        """Return the variable with which ``forebay run`` is killed when it reaches a point for the nth time.

        Raises:
            UnknownCrashPointError: there is no such point.
        """
        if name not in points.POINTS:
            raise points.UnknownCrashPointError(f"{name!r} is no crash point; see forebay.crash_points.POINTS")
        return {points.VARIABLE: f"{name}:{nth}"}

    def arm(self, name: str, nth: int = 1) -> None:
        """Raise ``CrashedError`` in this process when it reaches a point for the nth time."""

        def crash() -> None:
            raise CrashedError(name)

        points.arm(f"{name}:{nth}", crash)

    def disarm(self) -> Counter[str]:
        """Disarm, and return how often each point was reached meanwhile."""
        return points.disarm()
