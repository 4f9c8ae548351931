"""Group commit: many units of work, one COMMIT, and who gets which answer.

What a unit answers, its exception included, counts only once the transaction that it saw is on disk; until then it may
have read what is undone later. So when SQLite rolls back the whole group by itself, as it does on a full disk, the unit
at fault alone fails and all others run again (rule I3).

A savepoint for each unit, and an outbox written for each, are more statements than the unit has itself, and after each
of them this thread waits for the interpreter's lock. So a group is run without at first: what its units emit is written
once, at its end (``Together``). Where a unit fails that had written something, the whole group is undone and run again
with savepoints; one that had not, a check that failed, has nothing to undo. A unit alone needs neither.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from forebay.crash_points import reach
from forebay.errors import ConstraintError, OutcomeUnknownError, StoreBusyError, StoreError, StoreFullError
from forebay.row_cache import RowCache
from forebay.sqlite.failures import primary_code, store_error
from forebay.sqlite.transaction import SqliteTransaction
from forebay.together import Together
from forebay.work import Verdict, Work, fail_all, run_unit

GROUP_TIME = 0.02
"""Seconds after which a group takes no further unit: whoever wrote little does not wait for all that others write."""


class _Fate(Enum):
    """What became of a unit: it is kept, or had nothing to undo; or its fault has lost, or undoes, the transaction."""

    KEPT = "kept"
    LOST = "lost"
    UNDONE = "undone"


@dataclass(slots=True)
class Group:
    """Runs groups on one connection, on that connection's thread.

    Attributes:
        rest: units that were not begun, for want of time; they come first in the next group.
    """

    connection: sqlite3.Connection
    opening: str
    row_cache: RowCache | None = None
    rest: list[Work] = field(default_factory=list, init=False)
    _batches: deque[tuple[list[Work], bool]] = field(default_factory=deque, init=False)

    def run(self, works: list[Work]) -> Verdict:
        """Run ``works`` in order; afterwards each that was not abandoned and is not in ``rest`` has its answer.

        What the units raise ends in their answers; only what is no ``Exception`` comes out of here.
        """
        verdict = Verdict()
        self.rest = []
        self._batches = deque([(works, False)])
        while self._batches:
            batch, carefully = self._batches.popleft()
            if verdict.broken is not None:
                fail_all(batch, lambda: StoreError("not run: the store has to reopen its database first"))
                continue
            try:
                self._run(batch, verdict, carefully=carefully)
            except sqlite3.Error as error:
                # Not a unit's statement but one of ours in between: nothing was kept, and what is open now is unclear.
                verdict.broken = error
                fail_all(batch, partial(store_error, error, "the transaction"), error)
        return verdict

    def _run(self, batch: list[Work], verdict: Verdict, *, carefully: bool) -> None:
        try:
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if primary_code(error) == sqlite3.SQLITE_PROTOCOL:
                # A lock on the log that this process could not give back: nothing is written through these connections.
                verdict.broken = error
            fail_all(batch, partial(store_error, error, "BEGIN"), error)
            return
        if self.row_cache is not None:
            self.row_cache.begin()
        reach("write.begun")
        alone = len(batch) == 1
        together = None if alone or carefully else Together()
        until = time.monotonic() + GROUP_TIME
        for at, work in enumerate(batch):
            if at and time.monotonic() > until:
                self.rest, batch = batch[at:] + self.rest, batch[:at]
                break
            if work.abandoned:
                continue
            fate = self._run_saved(work) if carefully else self._run_bare(work, together)
            if fate is _Fate.LOST:
                self._batches.appendleft(([other for other in batch if other is not work], carefully))
                return
            if fate is _Fate.UNDONE:
                self._undo(batch, again=not alone)
                return
        if together is not None and not self._settled(together):
            self._undo(batch, again=True)
            return
        reach("write.committing")
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._commit_failed(batch, error, verdict)
        else:
            if self.row_cache is not None:
                self.row_cache.commit()
            reach("write.committed")
            verdict.committed |= any(work.started and work.error is None for work in batch)

    def _run_bare(self, work: Work, together: Together | None) -> _Fate:
        """Run one unit without a savepoint."""
        transaction = SqliteTransaction(self.connection, self.opening, together=together, row_cache=self.row_cache)
        if together is not None:
            together.changed = False
        run_unit(work, transaction)
        if together is not None and together.failed:
            return _Fate.UNDONE  # what failed was not its own
        if not self.connection.in_transaction:
            return self._lost(work, transaction)
        if work.error is not None and (transaction.wrote or (together is not None and together.changed)):
            return _Fate.UNDONE
        reach("write.unit-kept")
        return _Fate.KEPT

    def _run_saved(self, work: Work) -> _Fate:
        """Run one unit in its savepoint."""
        self.connection.execute("SAVEPOINT unit")
        run_unit(work, transaction := SqliteTransaction(self.connection, self.opening, row_cache=self.row_cache))
        if not self.connection.in_transaction:
            return self._lost(work, transaction)
        if work.error is not None:
            self.connection.execute("ROLLBACK TO unit")
            if self.row_cache is not None:
                self.row_cache.clear()
        self.connection.execute("RELEASE unit")
        reach("write.unit-kept")
        return _Fate.KEPT

    def _lost(self, work: Work, transaction: SqliteTransaction) -> _Fate:
        if work.error is None:
            work.fail(transaction.failure or StoreError("the unit of work ended the transaction"))
        return _Fate.LOST

    def _settled(self, together: Together) -> bool:
        """Write what the units left to the group's end; return whether that went well."""
        try:
            together.settle(SqliteTransaction(self.connection, self.opening))
        except Exception:  # noqa: BLE001 - run again, the units write for themselves, and it is one of theirs
            return False
        return True

    def _undo(self, batch: list[Work], *, again: bool) -> None:
        """Undo the whole transaction, and have its units run again, each in a savepoint."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        if again:
            self._batches.appendleft((batch, True))

    def _commit_failed(self, batch: list[Work], error: sqlite3.Error, verdict: Verdict) -> None:
        code = primary_code(error)
        if self.connection.in_transaction and code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT}:
            # The two refusals that leave the transaction as it was: nothing is on disk, for certain.
            self.connection.execute("ROLLBACK")
            if code == sqlite3.SQLITE_BUSY:
                fail_all(batch, lambda: StoreBusyError(f"COMMIT found the database locked: {error}"), error)
            elif len(batch) == 1:
                refused = f"a deferred constraint refused the unit of work: {error}"
                fail_all(batch, lambda: ConstraintError(refused), error)
            else:
                # SQLite does not tell which unit left the violation: only alone does it show.
                self._batches.extendleft(([work], False) for work in reversed(batch))
            return
        if code == sqlite3.SQLITE_FULL:
            # The frame that would have made it count was not written: the log is written in order, that frame last.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            fail_all(batch, lambda: StoreFullError(f"no room for the transaction: {error}"), error)
            return
        verdict.broken = error
        unknown = f"COMMIT failed: {error}"
        fail_all(batch, lambda: OutcomeUnknownError(unknown, hint="read back before repeating"), error)
