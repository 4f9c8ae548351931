"""Units of work on their way through a store's writing thread, and their answers' way back to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock
from types import CoroutineType
from typing import Any, Protocol

from forebay.errors import OutcomeUnknownError, StoreClosedError, StoreError
from forebay.transaction import Transaction

GROUP_LIMIT = 64
"""Units of work that share one COMMIT at most."""


@dataclass(slots=True, eq=False)
class Work:
    """One unit of work on its way, and its answer: ``error`` if there is one, else ``result``.

    One that ``reclaims`` gives room back, and runs on a full disk too. One that runs ``beside`` is no unit: it gets the
    session between two transactions.
    """

    unit: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    future: asyncio.Future[Any]
    reclaims: bool = False
    beside: bool = False
    started: bool = False
    result: Any = None
    error: Exception | None = None

    @property
    def abandoned(self) -> bool:
        """Whether the caller went away before the unit started; one that has started counts."""
        return not self.started and self.future.cancelled()

    def fail(self, error: Exception) -> None:
        """Replace the answer by an error."""
        self.result, self.error = None, error


@dataclass(slots=True)
class Verdict:
    """How a group ended.

    Attributes:
        committed: whether a COMMIT succeeded that kept at least one unit.
        broken: why the connection must not be used any more; None while it may.
    """

    committed: bool = False
    broken: Exception | None = None


class UnitTransaction(Transaction, Protocol):
    """What running a unit needs of an adapter's transaction.

    Attributes:
        failure: the ``StoreError`` that spent it; the unit fails even if it caught the error.
    """

    failure: StoreError | None

    def end(self) -> None:
        """Refuse every further statement."""
        ...


def run_unit(work: Work, transaction: UnitTransaction) -> None:
    """Run one unit and note its answer; the transaction is over afterwards."""
    work.started = True
    try:
        work.result, work.error = work.unit(transaction, *work.args, **work.kwargs), None
    except StopIteration as error:
        # asyncio refuses it as a future's exception, as generators do.
        work.fail(RuntimeError("the unit of work raised StopIteration"))
        assert work.error is not None  # noqa: S101
        work.error.__cause__ = error
    except Exception as error:  # noqa: BLE001 - it is the caller's, and raised there
        work.fail(error)
    finally:
        transaction.end()
    if isinstance(work.result, CoroutineType):
        work.result.close()
        work.fail(TypeError("a unit of work is a plain function, not a coroutine function"))
    if work.error is None and transaction.failure is not None:
        work.fail(transaction.failure)


def fail_all(batch: Sequence[Work], make: Callable[[], Exception], cause: Exception | None = None) -> None:
    """Give each unit an error of its own as its answer."""
    for work in batch:
        error = make()
        error.__cause__ = cause
        work.fail(error)


class WorkQueue:
    """What waits for a writing thread, in the order in which it was submitted.

    It never waits for a group to fill: while one group is synced to disk the next one gathers.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closed

    def submit(self, *works: Work) -> None:
        """Queue ``works``. From any thread. Raises ``StoreClosedError`` after ``stop`` or ``end``."""
        with self._lock:
            if self._closed:
                raise StoreClosedError("the store is closed")
            for work in works:
                self._queue.put(work)

    def stop(self) -> None:
        """Take no more; what is queued is still taken. From any thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._queue.empty()

    def take(self, timeout: float | None = None) -> list[Work] | None:
        """Wait for a unit and return it with those that wait behind it, ``GROUP_LIMIT`` at most.

        Returns:
            None at the end, and nothing after ``timeout`` seconds.
        """
        try:
            first = self._queue.get(timeout=timeout)
        except Empty:
            return []
        if first is None:
            return None
        works = [first]
        with suppress(Empty):
            while len(works) < GROUP_LIMIT:
                work = self._queue.get_nowait()
                if work is None:
                    self._queue.put(None)  # nothing can stand behind it
                    break
                works.append(work)
        return works

    def end(self, works: list[Work]) -> None:
        """Take no more, and fail what was taken and not answered, and what still waits: the thread is at its end."""
        with self._lock:
            self._closed = True
            while not self._queue.empty():
                if (work := self._queue.get()) is not None:
                    works.append(work)
        for work in works:
            died = OutcomeUnknownError if work.started else StoreClosedError
            work.fail(died("the store's thread was ended by a unit of work"))


class Answers:
    """Hands answers from a writing thread over to the event loop that made this object.

    The answers of a group, and of groups that ended before the loop came round, reach it in one call: a loop that is
    behind is not buried.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = Lock()
        self._answered: list[Work] = []
        self._committed = False
        self._scheduled = False
        self._listeners: dict[object, Callable[[], None]] = {}

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after commits; return a function that ends it."""
        key = object()
        self._listeners[key] = callback
        return lambda: self._drop(key)

    def give(self, works: list[Work], *, committed: bool = False) -> None:
        """Hand ``works`` over; the list is empty afterwards. From any thread."""
        with self._lock:
            self._answered += works
            works.clear()
            self._committed |= committed
            if self._scheduled:
                return
            self._scheduled = True
        self.call(self._deliver)

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function on the event loop. From any thread."""
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            self._loop.call_soon_threadsafe(function, *args)

    def _drop(self, key: object) -> None:
        self._listeners.pop(key, None)

    def _deliver(self) -> None:
        with self._lock:
            works, self._answered = self._answered, []
            committed, self._committed = self._committed, False
            self._scheduled = False
        # First those who send on what was committed, who take a moment: whoever is answered goes on for longer.
        for callback in list(self._listeners.values()) if committed else ():
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - reported; one listener must not keep the others from hearing
                self._loop.call_exception_handler({"message": "a listener of commits failed", "exception": error})
        for work in works:
            if work.future.done():
                continue
            if work.error is None:
                work.future.set_result(work.result)
            else:
                work.future.set_exception(work.error)


def settle(future: asyncio.Future[None], error: Exception | None) -> None:
    """End a future that may be ended already."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
