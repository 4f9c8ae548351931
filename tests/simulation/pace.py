"""How long a schedule is, how often faults strike, and the budgets that are small so that they are spent often."""

from __future__ import annotations

import msgspec


class Pace(msgspec.Struct, frozen=True):
    """The figures of a schedule.

    Attributes:
        steps: before the world heals.
        share: of the steps in which a fault strikes.
        grace: ticks between the two answers that free a row (O1); a step is a tick.
        held_events: the budget of holds per origin (B3).
        room: commands that an outbox of the core keeps for a destination before it blocks (O3).
    """

    steps: int = 400
    share: float = 0.07
    grace: int = 12
    held_events: int = 6
    room: int = 8


PACE = Pace()
