"""Group commit: many units of work, each in its savepoint, one COMMIT, and who gets which answer.

Transactions are SERIALIZABLE: several processes that work on one database behave as if they came one after the other,
whatever their units read. One that collides is run again, with all its units, and then in its turn: it waits until no
other writer is in the middle of a transaction, and keeps them out until it has committed. So it collides no more, and
writers that never meet do not wait for one another.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import psycopg
from psycopg.pq import TransactionStatus

from forebay.crash_points import reach
from forebay.errors import ConstraintError, OutcomeUnknownError, StoreBusyError, StoreError
from forebay.postgres.failures import conflicted, doubtful, first_line, store_error
from forebay.postgres.session import Connection
from forebay.postgres.transaction import PostgresTransaction
from forebay.work import Verdict, Work, fail_all, run_unit

ATTEMPTS = 12
"""Times that a group is run, at most. From the second on it has its turn: only a program that is none of ours can still
collide with it."""

PAUSE = 0.05
"""Seconds before the third attempt, at most; they double."""

# LOCK TABLE takes no snapshot: what the transaction sees is what was committed when the lock was given.
_BEGIN = b"begin isolation level serializable; lock table forebay_turn in row share mode"
_BEGIN_IN_TURN = b"begin isolation level serializable; lock table forebay_turn in exclusive mode"


class _CollidedError(Exception):
    """The transaction is lost to another one; all of it has to run again."""


@dataclass(slots=True)
class Group:
    """Runs groups on one session, on that session's thread.

    Attributes:
        in_turn: whether it waits for its turn from the first attempt on.
        collisions: how many transactions were run again.
    """

    connection: Connection
    in_turn: bool = False
    collisions: int = 0
    _batches: deque[list[Work]] = field(default_factory=deque, init=False)

    def run(self, works: list[Work]) -> Verdict:
        """Run ``works`` in order; afterwards each that was not abandoned has its answer.

        What the units raise ends in their answers; only what is no ``Exception`` comes out of here.
        """
        verdict = Verdict()
        self._batches = deque([works])
        while self._batches:
            batch = self._batches.popleft()
            if verdict.broken is not None:
                fail_all(batch, lambda: StoreError("not run: the connection to the database is lost"))
                continue
            try:
                self._run_until_serial(batch, verdict)
            except psycopg.Error as error:
                # Before COMMIT was sent: the server keeps nothing of it.
                fail_all(batch, partial(store_error, error, "the transaction"), error)
                self._roll_back(verdict)
        return verdict

    def _run_until_serial(self, batch: list[Work], verdict: Verdict) -> None:
        for attempt in range(ATTEMPTS):
            if attempt > 1:
                time.sleep(random.uniform(0, min(1.0, PAUSE * 2**attempt)))  # noqa: S311 - not a secret
            try:
                return self._run(batch, verdict, in_turn=self.in_turn or attempt > 0)
            except _CollidedError:
                self.collisions += 1
                self._roll_back(verdict)
                if verdict.broken is not None:
                    break
        fail_all(batch, lambda: StoreBusyError("other programs keep colliding with it"))
        return None

    def _run(self, batch: list[Work], verdict: Verdict, *, in_turn: bool) -> None:
        before = _BEGIN_IN_TURN if in_turn else _BEGIN
        alone = len(batch) == 1
        begun = kept = False
        for work in batch:
            if work.abandoned:
                continue
            if not alone:
                before += b"; savepoint unit"
            self._send(before)
            if not begun:
                begun = True
                reach("write.begun")
            elif kept:
                reach("write.unit-kept")
            self._run_unit(work, alone=alone, in_turn=in_turn)
            before = b"release unit" if work.error is None else b"rollback to unit; release unit"
            kept |= work.error is None
            if self.connection.closed:
                raise psycopg.OperationalError("the connection is lost")
        if not kept:
            if begun:
                self._send(b"rollback")
            return
        reach("write.unit-kept")
        reach("write.committing")
        try:
            self._send(b"commit" if alone else before + b"; commit")
        except psycopg.Error as error:
            self._commit_failed(batch, error, verdict, in_turn=in_turn)
        else:
            reach("write.committed")
            verdict.committed = True

    def _run_unit(self, work: Work, *, alone: bool, in_turn: bool) -> None:
        """Run one unit, and wait for its writes together.

        Where one of them failed it is run again, one statement after the other; and once more with a savepoint for each
        statement if it goes on after one that failed.
        """
        for waits, careful in ((False, False), (True, False), (True, True)):
            transaction = PostgresTransaction(self.connection, careful=careful, in_turn=in_turn, waits=waits)
            run_unit(work, transaction)
            transaction.settle()
            if transaction.conflict:
                raise _CollidedError
            went_on = transaction.went_on or (transaction.aborted is not None and work.error is None)
            if not transaction.misplaced and not went_on:
                break
            if self.connection.closed:
                return  # the caller sees that, and fails the whole group
            if alone:
                self._send(b"rollback; " + (_BEGIN_IN_TURN if in_turn else _BEGIN))
            else:
                self._send(b"rollback to unit")
        if work.error is None and self.connection.info.transaction_status != TransactionStatus.INTRANS:
            work.fail(StoreError("the unit of work ended the transaction"))

    def _commit_failed(self, batch: list[Work], error: psycopg.Error, verdict: Verdict, *, in_turn: bool) -> None:
        if self.connection.closed or self.connection.info.transaction_status != TransactionStatus.IDLE:
            verdict.broken = error
            said = f"COMMIT failed: {first_line(error)}"
            fail_all(batch, lambda: OutcomeUnknownError(said, hint="read back before repeating"), error)
        elif conflicted(error) or (doubtful(error) and not in_turn):
            raise _CollidedError
        elif not isinstance(error, psycopg.IntegrityError):
            fail_all(batch, lambda: store_error(error, "COMMIT"), error)
        elif len(batch) == 1:
            refused = f"a deferred constraint refused the unit of work: {first_line(error)}"
            fail_all(batch, lambda: ConstraintError(refused), error)
        else:
            # The server does not tell which unit left the violation: only alone does it show.
            self._batches.extendleft([work] for work in reversed(batch))

    def _roll_back(self, verdict: Verdict) -> None:
        try:
            if self.connection.info.transaction_status != TransactionStatus.IDLE:
                self._send(b"rollback")
        except psycopg.Error as error:
            verdict.broken = error

    def _send(self, script: bytes) -> None:
        """Run statements of our own in one round trip."""
        self.connection.execute(script)
