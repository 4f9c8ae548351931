"""Timers: what is to happen at a time, kept in the store, so that neither a crash nor a restart forgets it.

A timer is set and cancelled in the transaction that wants it, and fires in a transaction of its own, which takes it
out: once, however often the process dies around it. What its handler emits carries the deadline as its cause (rule
B5): a store that was restored from a backup and fires again has no second effect.

Deadlines are wall-clock times of this machine. One that passed while the process was down fires at the next start; one
that waits for an answer by the stream (a saga's) once what the stream had by then was read.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import anyio
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.crash_points import reach
from forebay.errors import StoreError
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

TOGETHER = 32
"""Timers that fire at once, at most; their transactions share a COMMIT where the store groups them."""

LONGEST_WAIT = 30.0
"""Seconds after which the wall clock is looked at again, whatever is due: it may have been set."""

LATE_LOOK = 0.5
"""Seconds between looks whether timers that are due have waited for long enough for what the stream has."""

FIRST_RETRY = 1.0
"""Seconds until a timer whose handler failed is tried again; they double with each attempt."""

LONGEST_RETRY = 300.0
"""Seconds between attempts, at most."""

_TOKEN = re.compile(r"[!-~]{1,128}")

_SET = """
    insert into forebay_timer (owner, instance, name, deadline, due_at)
    values (:owner, :instance, :name, :deadline, :deadline)
    on conflict (owner, instance, name) do update set
      deadline = excluded.deadline, due_at = excluded.due_at, attempts = 0, error = null"""

_CANCEL = "delete from forebay_timer where owner = :owner and instance = :instance and name = :name returning 1 as was"

_TAKE = """
    delete from forebay_timer
    where owner = :owner and instance = :instance and name = :name and deadline = :deadline returning 1 as was"""

_POSTPONE = """
    update forebay_timer set attempts = attempts + 1, due_at = :due_at, error = :error
    where owner = :owner and instance = :instance and name = :name and deadline = :deadline"""

_DUE = """
    select owner, instance, name, deadline, due_at, attempts from forebay_timer
    where owner = :owner and due_at <= :now order by due_at limit :limit"""


class Timer(NamedTuple):
    """A timer that fires: whose it is, and for when it was set."""

    owner: str
    instance: str
    name: str
    deadline: datetime


TimerHandler = Callable[[UnitOfWork, Timer], None]
"""What happens when a timer of one owner fires: a plain function, in the transaction that takes the timer out."""


class TimerTotals(NamedTuple):
    """What was done since the start."""

    fired: int = 0
    failed: int = 0


def set_timer(tx: Transaction, owner: str, instance: str, name: str, deadline: datetime) -> None:
    """Let the owner's handler be called at ``deadline``; one that was set under the same names before is replaced.

    Args:
        tx: the transaction that wants it; where it is undone, the timer is too.
        owner: under which the handler is registered (``Service.timers``).
        instance: which of the owner's things it is for.
        name: tells apart the timers of one instance.
        deadline: an aware time, counted in whole milliseconds; one that is past fires at once. In a handler of events
            reckon it from ``message.stored_at``, which is the broker's clock; ``message.time`` is the clock of the node
            that wrote it, which may be years off.

    Raises:
        ValueError: the deadline has no offset, or a name is empty, above 128 characters, or not printable ASCII
            without spaces: they become part of a header (``forebay-cause``).
    """
    for what, value in (("owner", owner), ("instance", instance), ("name", name)):
        if not _TOKEN.fullmatch(value):
            raise ValueError(f"the timer's {what} {value!r} is not 1 to 128 printable ASCII characters without spaces")
    if deadline.tzinfo is None:
        raise ValueError(f"the timer's deadline {deadline} has no offset from UTC")
    tx.execute(_SET, owner=owner, instance=instance, name=name, deadline=_milliseconds(deadline))


def cancel_timer(tx: Transaction, owner: str, instance: str, name: str) -> bool:
    """Take a timer out before it fires; return whether it was set."""
    return bool(tx.execute(_CANCEL, owner=owner, instance=instance, name=name))


class Timers:
    """Fires the timers of one store. Start it with ``run``; ``wake`` it after commits.

    A handler that raises undoes its transaction; the timer stays and is tried again, later each time. A failing
    database only makes it wait.

    Args:
        handlers: by owner. Timers of other owners stay until a release that knows them.
        store: where they are.
        clock: seconds since 1970.
        patient: owners whose timers end the waiting for something that the stream may have by now.
        caught_up: whether what the stream has was read; until then theirs do not fire.

    Attributes:
        totals: what was done since the start.
    """

    def __init__(
        self,
        handlers: Mapping[str, TimerHandler],
        store: UnitStore,
        clock: Callable[[], float] = time.time,
        *,
        patient: Iterable[str] = (),
        caught_up: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._handlers = handlers
        self._store = store
        self._clock = clock
        self._patient = frozenset(patient)
        self._caught_up = caught_up
        self._held = False
        self._wakened = anyio.Event()
        self.totals = TimerTotals()

    def wake(self) -> None:
        """Say that timers may have been set; cheap, may be called from the event loop at any time."""
        self._wakened.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Fire what is due until cancelled."""
        task_status.started()
        backoff = Backoff(first=0.5, most=30.0)
        while True:
            self._wakened = anyio.Event()
            try:
                if await self.fire_due():
                    backoff.reset()
                    continue
                wait = LATE_LOOK
                if not self._held:
                    wait = await self._store.read(_until_next, list(self._handlers), self._now())
            except StoreError as error:
                logger.warning("timers.paused", extra={"reason": str(error)})
                await anyio.sleep(backoff.next())
                continue
            with anyio.move_on_after(min(LONGEST_WAIT, wait)):
                await self._wakened.wait()

    async def fire_due(self) -> int:
        """Fire what is due now, at most ``TOGETHER``, the earliest first; return how many it tried.

        Raises:
            StoreError: the database failed; what had not fired by then stays.
        """
        due = await self._due()
        failures: list[StoreError] = []

        async def fire(row: Row) -> None:
            try:
                await self._fire(row)
            except StoreError as error:
                failures.append(error)  # raised outside: a task group would wrap it

        with anyio.CancelScope(shield=True):  # what has begun to commit is counted
            async with anyio.create_task_group() as tasks:
                for row in due:
                    tasks.start_soon(fire, row)
        if failures:
            raise failures[0]
        return len(due)

    async def _due(self) -> list[Row]:
        due = await self._store.read(_due, list(self._handlers), self._now())
        self._held = False
        if self._caught_up is not None and any(row["owner"] in self._patient for row in due):
            self._held = not await self._caught_up()
        if self._held:
            others = [owner for owner in self._handlers if owner not in self._patient]
            due = await self._store.read(_due, others, self._now())
        return due

    async def _fire(self, row: Row) -> None:
        timer = Timer(row["owner"], row["instance"], row["name"], _time(row["deadline"]))
        extra = {"owner": timer.owner, "instance": timer.instance, "timer": timer.name}
        try:
            fired = await self._store.write(fire_one, self._handlers[timer.owner], timer)
        except StoreError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            delay = min(FIRST_RETRY * 2 ** min(row["attempts"], 30), LONGEST_RETRY)
            await self._store.write(partial(_postpone, timer, self._now() + int(delay * 1000), reason))
            self.totals = self.totals._replace(failed=self.totals.failed + 1)
            logger.exception("timer.failed", extra={**extra, "attempts": row["attempts"] + 1, "reason": reason})
        else:
            self.totals = self.totals._replace(fired=self.totals.fired + fired)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def fire_one(work: UnitOfWork, handler: TimerHandler, timer: Timer) -> bool:
    """Take a timer out and call its handler; False where it was cancelled or set anew meanwhile."""
    if not work.execute(_TAKE, **_key(timer)):
        return False
    reach("timer.taken")
    work.because_of_deadline(f"{timer.owner}:{timer.instance}:{timer.name}", timer.deadline)
    handler(work, timer)
    reach("timer.fired")
    return True


def failing(tx: Transaction) -> int:
    """Return how many timers wait for another attempt."""
    return int(tx.execute("select count(*) as n from forebay_timer where attempts > 0")[0]["n"])


def _postpone(timer: Timer, due_at: int, error: str, work: UnitOfWork) -> None:
    work.execute(_POSTPONE, **_key(timer), due_at=due_at, error=error)


def _due(tx: Transaction, owners: Iterable[str], now: int) -> list[Row]:
    # By owner: one that this release does not know must not stand before those that it does.
    rows = [row for owner in owners for row in tx.execute(_DUE, owner=owner, now=now, limit=TOGETHER)]
    return sorted(rows, key=lambda row: int(row["due_at"]))[:TOGETHER]


def _until_next(tx: Transaction, owners: Iterable[str], now: int) -> float:
    waits = [
        row["due_at"] - now
        for owner in owners
        for row in tx.execute(
            "select due_at from forebay_timer where owner = :owner order by due_at limit 1", owner=owner
        )
    ]
    return max(0.0, min(waits) / 1000) if waits else float("inf")


def _key(timer: Timer) -> dict[str, str | int]:
    return {
        "owner": timer.owner,
        "instance": timer.instance,
        "name": timer.name,
        "deadline": _milliseconds(timer.deadline),
    }


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
