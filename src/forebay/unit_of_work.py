"""The unit of work: an adapter's transaction joined with the outbox, so that state and events commit together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from types import CoroutineType
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import msgspec

from forebay.command import EXPIRY, Command, destination_of
from forebay.drafts import NO_EXTRA, Draft, Entry, Extra, Tails
from forebay.envelope import Message, format_time
from forebay.errors import ConfigurationError
from forebay.event import Event, key_of
from forebay.identity import Place
from forebay.outbox import Outbox, names_outbox
from forebay.row_cache import RowCache
from forebay.together import Together
from forebay.transaction import Row, Store, Transaction

P = ParamSpec("P")
T = TypeVar("T")


MOST_TOGETHER = 200
"""Events of one lane that units of work leave to the end of their transaction."""


class Trace(NamedTuple):
    """The trace context of a request (W3C Trace Context): the headers ``traceparent`` and ``tracestate``."""

    traceparent: str | None = None
    tracestate: str | None = None


NO_TRACE = Trace()
TRACE: ContextVar[Trace] = ContextVar("forebay-trace", default=NO_TRACE)
"""The trace that the current task works for; events written by it carry it."""


class UnitOfWork:
    """What a unit of work and a handler get: SQL, ``emit`` and ``send``.

    Valid only inside the function that got it. Everything done through it is kept together or not at all.
    """

    def __init__(self, tx: Transaction, outbox: Outbox, trace: Trace = NO_TRACE, settings: Any = None) -> None:
        self.settings = settings
        """The service's own, of the type that it declares."""
        self._tx = tx
        self.row_cache: RowCache | None = getattr(tx, "row_cache", None)
        """What the store's writer knows of the inbox's rows; None where others may write them."""
        self._trace = trace
        self._outbox = outbox
        join: Callable[[], Together | None] | None = getattr(tx, "join", None)
        self._together = join() if join is not None else None
        self._tails: Tails = {}
        if self._together is None:
            # There is nothing to settle, and a consumer's handlers run a statement for each event: one call less.
            self.execute = tx.execute  # type: ignore[method-assign]
        else:
            self._tails = self._together.join(outbox.flush)
        self._cause: Message | None = None
        self._deadline: str | None = None
        self._caused: dict[str, int] = {}

    @property
    def node(self) -> str:
        """The node that this store belongs to."""
        return self._outbox.node

    @property
    def opening(self) -> str:
        """Identifies this opening of the database."""
        return self._tx.opening

    def execute(self, sql: str, **params: Any) -> list[Row]:
        """Run one statement with ``:name`` parameters and return all its rows (none for a plain write).

        Example:
            >>> def rename(tx: UnitOfWork, door: str, name: str) -> bool:
            ...     rows = tx.execute("select name from door where id = :id", id=door)
            ...     if rows and rows[0]["name"] != name:
            ...         tx.execute("update door set name = :name where id = :id", id=door, name=name)
            ...     return bool(rows)

        Raises:
            ConstraintError: a constraint of the schema refused it.
            StoreError: the database failed; the whole unit of work is undone.
        """
        self._settle(sql)
        return self._tx.execute(sql, **params)

    def executemany(self, sql: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run one statement once per mapping; see ``Transaction.executemany``."""
        self._settle(sql)
        self._tx.executemany(sql, rows)

    def insert_many(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows whose values stand in the order of ``columns``; see ``Transaction.insert_many``."""
        self._settle(table)
        self._tx.insert_many(table, columns, rows)

    def emit(self, event: Event, *, time: datetime | None = None, cause: Message | None = None) -> str:
        """Write an event into the outbox and return its message id.

        Example:
            >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
            ...     door: str
            >>> def open_door(tx: UnitOfWork, door: str, at: datetime) -> str:
            ...     tx.execute("update door set opened = opened + 1 where id = :id", id=door)
            ...     return tx.emit(DoorOpened(door=door), time=at)  # commits with the row, or not at all

        Args:
            event: its type says the lane and the ordering key; its service is this store's.
            time: when it happened; aware. Now, where nothing is said.
            cause: the message that caused it; in a handler of single events that is known by itself.

        Raises:
            ValueError: the event belongs to another service, or ``time`` has no offset.
            TypeError: it is a command, which is sent.
            EventTooLargeError, BudgetSpentError, ConfigurationError: see ``Outbox.append``.
        """
        return self.append(self.draft(event, time=time, cause=cause))

    def draft(self, event: Event, *, time: datetime | None = None, cause: Message | None = None) -> Draft:
        """Return an event as ``emit`` would write it; whoever keeps it elsewhere as well appends it once.

        Raises:
            ValueError, TypeError: see ``emit``.
        """
        spec = event.spec
        if isinstance(event, Command):
            raise TypeError(f"{spec.type} is a command: send it")
        if spec.service != self._outbox.service:
            raise ValueError(f"{spec.type} is an event of service {spec.service!r}, this is {self._outbox.service!r}")
        return Draft(
            lane=spec.lane,
            kind=spec.kind,
            type=spec.type,
            body=msgspec.json.encode(event),
            time=_aware(time),
            key=key_of(event),
            cause=self._caused_by(cause),
            extra=self._traced(cause or self._cause),
        )

    def send(self, command: Command, *, to: str, expires: datetime | None = None, cause: Message | None = None) -> str:
        """Send a command to the node ``to``, to the service that its type names, and return its message id.

        It is written in this very transaction, waits on this disk while the node is away, and takes effect there once,
        in the order in which this service sent it. Only services of the core send; the command's lane is one of the
        sending service's own.

        Args:
            command: its type says the receiving service, the lane and the ordering key.
            to: the node.
            expires: aware; after it the node passes the command over without doing it. None: it never expires.
            cause: the message that caused it; in a handler of single events that is known by itself.

        Raises:
            ConfigurationError: this is not the core, ``to`` is not a node's name or this node itself, or the service
                has no such lane.
            ValueError: ``expires`` has no offset.
            EventTooLargeError, BudgetSpentError: see ``Outbox.append``.
        """
        spec = command.spec
        if not self._outbox.sends:
            raise ConfigurationError(
                f"service {self._outbox.service!r} of node {self._outbox.node!r} cannot send {spec.type}",
                hint="only services of the core send commands",
            )
        if to == self._outbox.node:
            raise ConfigurationError(f"{spec.type} is sent to {to!r} itself", hint="commands go to other nodes")
        if expires is not None and expires.tzinfo is None:
            raise ValueError(f"expires {expires} has no offset from UTC")
        extra = self._traced(cause or self._cause)
        if expires is not None:
            extra = msgspec.structs.replace(extra, attributes={EXPIRY: format_time(expires)})
        return self.append(
            Draft(
                lane=spec.lane,
                kind=spec.kind,
                type=spec.type,
                body=msgspec.json.encode(command),
                time=datetime.now(UTC),
                key=key_of(command),
                cause=self._caused_by(cause),
                extra=extra,
                destination=str(destination_of(to, spec.service)),
            )
        )

    def append(self, draft: Draft) -> str:
        """Write an event of a form of its own (the gateway's clients' events) and return its message id."""
        place = self._outbox.append(self._tx, self._tails, draft)
        if self._together is not None:
            self._together.changed = True
        return str(place)

    def extend(self, lane: str, entries: Sequence[Entry]) -> Place:
        """Write many events at once, made with ``drafts.entry``; return the first one's place, from which they run on.

        Raises:
            BudgetSpentError, ConfigurationError: see ``Outbox.extend``.
        """
        if self._together is not None:
            self._together.changed = True
        return self._outbox.extend(self._tx, self._tails, lane, entries)

    def because_of(self, message: Message | None) -> None:
        """Let ``message`` be the cause of what is emitted from here on."""
        self._cause = message
        self._deadline = None

    def because_of_deadline(self, instance: str, deadline: datetime) -> None:
        """Let a deadline be the cause of what is emitted from here on: of a timer, a saga or a window (B5).

        Args:
            instance: whose deadline it is, in printable ASCII without spaces; the same after a restore.
            deadline: an aware time, named in milliseconds since 1970.
        """
        self._cause = None
        self._deadline = f"{instance}/{round(deadline.timestamp() * 1000)}"

    def flush(self) -> None:
        """Write what was emitted; the store calls it when the unit has returned.

        Units that share a transaction leave it to its end, unless it is much: then it goes as fast by itself, and the
        group's time is known.
        """
        if self._together is None:
            self._outbox.flush(self._tx, self._tails)
            self._tails = {}
        elif any(len(tail.rows) > MOST_TOGETHER for tail in self._tails.values()):
            self._together.settle(self._tx)

    def _settle(self, sql: str) -> None:
        """Write what the units before have emitted where a statement is about the outbox's own tables."""
        if self._together is not None and names_outbox(sql):
            self._together.settle(self._tx)

    def _traced(self, cause: Message | None) -> Extra:
        traceparent, tracestate = (cause.traceparent, cause.tracestate) if cause else self._trace
        return Extra(traceparent=traceparent, tracestate=tracestate) if traceparent else NO_EXTRA

    def _caused_by(self, cause: Message | None) -> str | None:
        message = cause or self._cause
        if message is not None:
            self._outbox.clock.merge(message.hlc)  # what is caused comes after its cause, whatever the walls say
            because = f"{message.message_id}/{self._outbox.service}"
        elif self._deadline is not None:
            because = self._deadline
        else:
            return None
        # Counted per cause: a restored store makes up other batches, and must name each effect as it did before (B5).
        index = self._caused.get(because, 0)
        self._caused[because] = index + 1
        return f"{because}/{index}"


class UnitStore:
    """A service's store: every write is a unit of work with ``emit``. Delivery contract as in ``transaction.Store``.

    Example:
        >>> import asyncio
        >>> from pathlib import Path
        >>> from forebay import Service
        >>> from forebay.testing.stores import opened  # in production, `forebay run` opens it
        >>> def learn(tx: UnitOfWork, word: str) -> int:
        ...     tx.execute("insert into word (word) values (:word)", word=word)
        ...     return len(tx.execute("select word from word"))
        >>> async def main() -> None:
        ...     async with opened(Service("words"), Path("data"), schema="create table word (word text)") as store:
        ...         await store.write(learn, "forebay")
        ...         print(await store.write(learn, "outbox"), "words are on disk")
        >>> asyncio.run(main())
        2 words are on disk
    """

    def __init__(self, store: Store, outbox: Outbox, settings: Any = None) -> None:
        self._store = store
        self._outbox = outbox
        self._settings = settings

    async def write(self, unit: Callable[Concatenate[UnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``unit(tx, ...)`` and return its result once state and events are on disk."""
        trace = TRACE.get()  # here, not in the unit: it runs on the store's thread

        def run(tx: Transaction) -> T:
            work = UnitOfWork(tx, self._outbox, trace, self._settings)
            result = unit(work, *args, **kwargs)
            if isinstance(result, CoroutineType):
                result.close()
                raise TypeError(f"unit of work {unit!r} is async: it must be a plain function")
            work.flush()
            return result

        return await self._store.write(run)

    async def read(self, query: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``query(tx, ...)`` on a read-only snapshot."""
        return await self._store.read(query, *args, **kwargs)


def _aware(time: datetime | None) -> datetime:
    if time is None:
        return datetime.now(UTC)
    if time.tzinfo is None:
        raise ValueError(f"time {time} has no offset from UTC")
    return time
