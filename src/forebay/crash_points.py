"""Crash points: named places on the critical paths at which a test can end the process, as a power switch would.

The engine calls ``reach`` at each of them. While nothing is armed that is one comparison; nothing is read from the
environment here: the command line arms what ``FOREBAY_CRASH_AT`` says. A process is ended with SIGKILL, so that
neither ``finally`` nor ``atexit`` runs, nor any buffer is written.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from threading import Lock

VARIABLE = "FOREBAY_CRASH_AT"
"""Names the crash point: ``write.committed``, its third time ``write.committed:3``, or ``17``, the 17th of all."""

POINTS = {
    "write.begun": "the transaction of a group is open, no unit has run",
    "write.unit-kept": "a unit of work has run, and the next one of its group has not",
    "write.committing": "before COMMIT",
    "write.committed": "after COMMIT, before any answer",
    "write.answered": "the answers are handed to the event loop",
    "relay.read": "the next messages are read from the outbox",
    "relay.publishing": "before they are published",
    "relay.published": "the broker has answered, nothing is noted yet",
    "relay.noted": "what was acknowledged is noted in memory",
    "relay.repairing": "before what was missed is sent again",
    "confirm.asking": "before a consumer is asked",
    "confirm.answered": "its answer is there, nothing is done with it",
    "confirm.learned": "a newer list of consumers is on disk",
    "free.begun": "in the transaction that frees, before the first statement",
    "free.deleted": "the rows are deleted, the floor is not raised",
    "free.counted": "the floor is raised, before COMMIT",
    "free.done": "after that COMMIT",
    "consume.delivered": "a batch is taken from the buffers",
    "consume.begun": "in its transaction, before the first event",
    "consume.applied": "an event took effect, the inbox does not know",
    "consume.held": "an event above a hole is kept",
    "consume.saved": "the inbox is written, the position is not",
    "consume.positioned": "the position is written, before COMMIT",
    "consume.committed": "after COMMIT, before the acknowledgement",
    "consume.acknowledged": "the broker was told",
    "answer.read": "a question is answered from the inbox, the answer is not sent",
    "answer.sent": "the answer is sent",
    "timer.taken": "in the transaction of a timer that fires, before its handler",
    "rebuild.begun": "the tables beside are made, and nothing is replayed in this attempt",
    "rebuild.applied": "a step's effects and its progress are written beside, before COMMIT",
    "rebuild.stepped": "after that COMMIT",
    "rebuild.swapping": "in the transaction that replaces the rows in use, before the first of them",
    "rebuild.replaced": "they are replaced, before COMMIT",
    "rebuild.swapped": "after that COMMIT, while the tables beside are still there",
    "timer.fired": "its handler has run, before COMMIT",
}
"""Every crash point and what it lies between."""

Crash = Callable[[], None]


class UnknownCrashPointError(ValueError):
    """A name that is no crash point, or a number that is none."""


def reach(name: str) -> None:
    """Say that the process is at a crash point; it ends here if a test wants so."""
    if _armed is not None:
        _armed.reach(name)


def arm(at: str, crash: Crash | None = None) -> None:
    """Choose the crash point; one at a time, a newer replaces an older one.

    Args:
        at: as ``VARIABLE`` says.
        crash: called there; what it raises comes out of ``reach``. The process is killed if None.

    Raises:
        UnknownCrashPointError: there is no such point.
    """
    global _armed
    if at.isdecimal():
        name, count = "", at
    else:
        name, _, count = at.partition(":")
        count = count or "1"
    if (not at.isdecimal() and name not in POINTS) or not count.isdecimal() or int(count) < 1:
        raise UnknownCrashPointError(f"{VARIABLE}={at!r} is no crash point; write a name, name:N or N")
    _armed = _Armed(name, int(count), crash or _kill)


def disarm() -> Counter[str]:
    """Let ``reach`` do nothing again; return how often each point was reached since ``arm``."""
    global _armed
    counts = Counter[str]() if _armed is None else _armed.counts
    _armed = None
    return counts


class _Armed:
    def __init__(self, name: str, count: int, crash: Crash) -> None:
        self._name = name
        self._count = count
        self._crash = crash
        self._lock = Lock()  # points are reached on the event loop and on the store's thread
        self.counts: Counter[str] = Counter()

    def reach(self, name: str) -> None:
        if name not in POINTS:
            raise UnknownCrashPointError(f"{name!r} is not in crash_points.POINTS")
        with self._lock:
            self.counts[name] += 1
            reached = self.counts[name] if self._name else self.counts.total()
        if reached == self._count and self._name in ("", name):
            self._crash()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_armed: _Armed | None = None
