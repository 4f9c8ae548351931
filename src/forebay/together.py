"""What the units of work of one group leave to be written once for all of them, before the group's COMMIT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forebay.transaction import Transaction

State = dict[Any, Any]
"""What is to be written, by whoever writes it: the ends of the outbox's origins, with their new rows."""


class Together:
    """Holds what waits for the end of a group whose units run without savepoints.

    It is as good as written: a unit reads the tables below it only after ``settle``. Undone is all of it or nothing;
    where a unit fails that has changed it, the whole transaction is undone and this object thrown away.

    Attributes:
        changed: whether the unit that runs has changed what is held.
        failed: whether writing it failed; no unit is known to be at fault then.
    """

    __slots__ = ("_state", "_write", "changed", "failed")

    def __init__(self) -> None:
        self._state: State = {}
        self._write: Callable[[Transaction, State], None] | None = None
        self.changed = False
        self.failed = False

    def join(self, write: Callable[[Transaction, State], None]) -> State:
        """Return what is held, the same to each unit of the group; ``write(tx, state)`` writes it."""
        self._write = write
        return self._state

    def settle(self, tx: Transaction) -> None:
        """Write what is held, and forget it: what comes after reads it from the tables. Raises as ``write`` does."""
        if self._write is not None and self._state:
            self.failed = True
            self._write(tx, self._state)
            self.failed = False
            self._state.clear()
