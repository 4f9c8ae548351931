"""Aggregates: things whose state is what happened to them.

An aggregate is *loaded* (its events are folded, from the latest snapshot on), a plain method *decides* and returns
events, and ``append`` records them: in one transaction they go into the aggregate's history, which stays, and into the
outbox, from where they flow as any event does. A version counts the events; what was decided on another version than
the latest is refused, so that two who decide at once cannot both be right.

Example:
    >>> from msgspec.structs import replace
    >>> from forebay import Event, UnitOfWork
    >>> class Filled(Event, service="cellar", kind="filled", key="barrel"):
    ...     barrel: str
    ...     litres: int
    >>> class Barrel(Aggregate, name="barrel"):
    ...     litres: int = 0
    ...     def fill(self, litres: int) -> Filled:
    ...         if self.litres + litres > 225:
    ...             raise ValueError("it would run over")
    ...         return Filled(barrel=self.id, litres=litres)
    >>> @Barrel.applies(Filled)
    ... def filled(barrel: Barrel, event: Filled) -> Barrel:
    ...     return replace(barrel, litres=barrel.litres + event.litres)
    >>> def fill(tx: UnitOfWork, barrel: str, litres: int) -> Barrel:
    ...     found = load(tx, Barrel, barrel)
    ...     return append(tx, found, found.fill(litres))

Values are frozen: whoever runs a unit of work twice begins with the same aggregate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import msgspec

from forebay import history, snapshot
from forebay.envelope import Message
from forebay.errors import ConfigurationError, MessageError, UnreadableHistoryError, VersionConflictError
from forebay.event import Event, key_of
from forebay.evolution import Reader
from forebay.history import Instance, Last, Recorded
from forebay.identity import checked_name
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitOfWork

A = TypeVar("A", bound="Aggregate")
E = TypeVar("E", bound=Event)

SNAPSHOT_EVERY = 100
"""Events after which a snapshot is written, unless the type says otherwise."""


class Fold(NamedTuple):
    """How one kind of event changes the state."""

    event: type[Event]
    function: Callable[[Any, Any], Any]


class AggregateSpec:
    """What an aggregate's type says of itself, and the folds that were registered for it."""

    def __init__(self, name: str, schema: int, snapshot_every: int) -> None:
        self.name = name
        self.schema = schema
        self.snapshot_every = snapshot_every
        self.folds: dict[str, Fold] = {}
        self._readers: dict[str, Reader[Event]] = {}
        self._snapshot_schema: str | None = None

    def register(self, event: type[Event], function: Callable[[Any, Any], Any]) -> None:
        """Add a fold; raises ``ConfigurationError`` where the event does not fit in with the others."""
        spec = event.spec
        if spec.kind in self.folds:
            known = self.folds[spec.kind].event.spec.type
            raise ConfigurationError(
                f"aggregate {self.name} applies {known} already, beside {spec.type}",
                hint="apply the newest version, and lead older ones to it with @upcasts",
            )
        if spec.key is None:
            raise ConfigurationError(
                f"aggregate {self.name} applies {spec.type}, which has no key",
                hint="give the event key=..., the field that holds the aggregate's id",
            )
        for other in self.folds.values():
            if (other.event.spec.service, other.event.spec.lane) != (spec.service, spec.lane):
                raise ConfigurationError(
                    f"aggregate {self.name} applies {other.event.spec.type} and {spec.type} of another service or lane",
                    hint="order is kept within a lane of a service: give all events of an aggregate the same",
                )
        self.folds[spec.kind] = Fold(event, function)
        self._snapshot_schema = None

    def read(self, row: Row) -> Event:
        """Return the event of a row of the history, as the newest version of its kind.

        Raises:
            MessageError: this release does not know it.
        """
        return self._reader(row["kind"]).decode(row["revision"], row["body"])

    def reread(self, event: Event) -> Event:
        """Return a new event as it will be read again: what cannot be would make the whole history unreadable.

        Raises:
            ValueError: it is not an event that is applied here, or not what its own type says.
        """
        spec = event.spec
        fold = self.folds.get(spec.kind)
        if fold is None or type(event) is not fold.event:
            raise ValueError(f"aggregate {self.name} does not apply {spec.type}")
        try:
            return self._reader(spec.kind).decode(spec.version, msgspec.json.encode(event))
        except MessageError as error:
            raise ValueError(f"the event could not be read again: {error}") from error

    def _reader(self, kind: str) -> Reader[Event]:
        if kind not in self.folds:
            raise MessageError(f"nothing here applies events of kind {kind!r}")
        if kind not in self._readers:  # made late: upcasters are declared behind both versions
            self._readers[kind] = Reader(self.folds[kind].event)
        return self._readers[kind]

    def snapshot_schema(self, state: type[msgspec.Struct]) -> str:
        """Name what the type's snapshots depend on; see ``snapshot.schema_of``."""
        if self._snapshot_schema is None:
            folded = [fold.event.spec.type for fold in self.folds.values()]
            self._snapshot_schema = snapshot.schema_of(state, self.schema, folded)
        return self._snapshot_schema


class AggregateMeta(msgspec.StructMeta):
    """Takes the aggregate's own keywords, which msgspec would refuse, and makes every aggregate frozen."""

    def __new__(
        mcls,
        name_: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        name: str | None = None,
        schema: int = 1,
        snapshot_every: int = SNAPSHOT_EVERY,
        **struct_options: Any,
    ) -> AggregateMeta:
        """Create the class; raises ``ConfigurationError`` where a keyword is missing or wrong."""
        struct_options.setdefault("frozen", True)
        struct_options.setdefault("kw_only", True)
        cls = super().__new__(mcls, name_, bases, namespace, **struct_options)
        if bases == (msgspec.Struct,):
            return cls
        if name is None:
            raise ConfigurationError(f"aggregate {name_} does not say what it is", hint="give it name=...")
        if snapshot_every < 1:
            raise ConfigurationError(f"aggregate {name_}: snapshot_every {snapshot_every} is below 1")
        try:
            cls(id="")
        except TypeError as error:
            raise ConfigurationError(
                f"aggregate {name_}: {error}", hint="give each field a default: what it is before anything happened"
            ) from None
        spec = AggregateSpec(checked_name(name, f"aggregate {name_}: name"), schema, snapshot_every)
        type.__setattr__(cls, "spec", spec)
        return cls


class Aggregate(msgspec.Struct, metaclass=AggregateMeta):
    """The base of every aggregate; its fields are the state, each with a default: what it is before anything happened.

    Keywords: ``name``, under which the history is kept; ``snapshot_every`` so many events (100); ``schema``, a number
    to raise when a fold comes to count differently, so that older snapshots are not used (a change of the fields is
    noticed by itself).

    Attributes:
        id: which one it is; the ordering key of its events.
        version: how many events made this state; 0 where nothing has happened, and for a state at a time (``at``).
    """

    id: str
    version: int = 0

    spec: ClassVar[AggregateSpec]

    if TYPE_CHECKING:

        def __init_subclass__(
            cls, *, name: str, schema: int = 1, snapshot_every: int = 100, **struct_options: Any
        ) -> None: ...

    @classmethod
    def applies(cls: type[A], event: type[E]) -> Callable[[Callable[[A, E], A]], Callable[[A, E], A]]:
        """Say how an event changes the state: ``f(aggregate, event) -> aggregate``.

        The function is plain and pure, never refuses and changes nothing in place: it tells what happened. It gets
        older versions of the event through their upcasters.

        Raises:
            ConfigurationError: another version of the event is applied already, it has no key, or it is of another
                service or lane than the other events.
        """

        def register(function: Callable[[A, E], A]) -> Callable[[A, E], A]:
            cls.spec.register(event, function)
            return function

        return register


class Entry(NamedTuple):
    """One event of a history.

    Attributes:
        version: the version that it led to.
        event: as the newest version of its kind.
        time: when it happened.
        recorded_at: when it was written; never earlier than for the version before.
        message_id: under which it went out.
        cause: what it was emitted for, as ``forebay-cause`` says it.
    """

    version: int
    event: Event
    time: datetime
    recorded_at: datetime
    message_id: str
    cause: str | None


def load(
    tx: Transaction,
    kind: type[A],
    instance: str,
    *,
    version: int | None = None,
    known_at: datetime | None = None,
    at: datetime | None = None,
) -> A:
    """Return an aggregate: as it is, or as it was; one to which nothing happened has version 0.

    Args:
        tx: a transaction or a read-only snapshot.
        kind: its type.
        instance: its id.
        version: as of this version.
        known_at: as of this time of *recording*: what was known here then.
        at: as of this time of *happening*: all that happened until then, whenever it was recorded, in the order of
            recording. It is made of all events, without snapshots, and nothing can be appended to it.

    Raises:
        ValueError: more than one of the three, a time without an offset, or a version that is not there.
        UnreadableHistoryError: this release cannot read the history.
    """
    if sum(given is not None for given in (version, known_at, at)) > 1:
        raise ValueError("say one of version, known_at and at")
    of = Instance(kind.spec.name, instance)
    empty = kind(id=instance)
    if at is not None:
        state = _folded(empty, of, history.read(tx, of, 1, happened_by=at))
        return msgspec.structs.replace(state, version=0)
    if known_at is not None:
        version = history.version_known(tx, of, known_at)
    state = _from_snapshot(tx, of, kind, version) or _dense(empty, of, history.read(tx, of, 1, last=version))
    if version is not None and state.version != version:
        raise ValueError(f"{of} has no version {version}, only {state.version}")
    return state


def append(
    tx: UnitOfWork, aggregate: A, *events: Event, time: datetime | None = None, cause: Message | None = None
) -> A:
    """Record what was decided: write the events into the aggregate's history and the outbox; return its new state.

    Args:
        tx: the unit of work that decides. Where it raises, or the process dies at any line, both are written or
            neither.
        aggregate: as it was loaded, by this unit of work or an earlier one.
        events: in order; each of a kind that the aggregate applies, with the aggregate's id as its key.
        time: when they happened; aware. Now, where nothing is said.
        cause: see ``UnitOfWork.emit``.

    Raises:
        VersionConflictError: other events were recorded since it was loaded, or it is not its latest state.
        ValueError: an event is not the aggregate's or could not be read again, or ``time`` has no offset.
        EventTooLargeError, BudgetSpentError, ConfigurationError: see ``Outbox.append``. Let them out of the unit of
            work: events before the one that failed are recorded.
    """
    spec = aggregate.spec
    of = Instance(spec.name, aggregate.id)
    before = history.last(tx, of)
    if before.version != aggregate.version:
        raise VersionConflictError(str(of), aggregate.version, before.version)
    states = _states(aggregate, of, events)
    for event in events:
        before = _record(tx, of, before, event, time, cause)
    state = states[-1] if states else aggregate
    schema = spec.snapshot_schema(type(aggregate))
    known = snapshot.version_of(tx, of, schema)
    # One beyond the history, which lost its end, is of other events: the history must not grow up to it.
    if events and (known > aggregate.version or state.version - known >= spec.snapshot_every):
        snapshot.save(tx, of, state.version, schema, state)
    return state


def history_of(
    tx: Transaction, kind: type[Aggregate], instance: str, *, after: int = 0, limit: int = 100
) -> list[Entry]:
    """Return an aggregate's events in the order of recording, at most ``limit`` of them behind version ``after``.

    Raises:
        UnreadableHistoryError: this release cannot read one of them.
    """
    of = Instance(kind.spec.name, instance)
    rows = history.read(tx, of, after + 1, last=after + limit)
    return [
        Entry(
            row["version"],
            _event(kind.spec, of, row),
            history.moment(row["time"]),
            history.moment(row["recorded_at"] * 1000),
            row["message_id"],
            row["cause"],
        )
        for row in rows
    ]


def _from_snapshot(tx: Transaction, of: Instance, kind: type[A], version: int | None) -> A | None:
    found = snapshot.find(tx, of, kind.spec.snapshot_schema(kind), kind, version)
    if found is None:
        return None
    at, state = found
    rows = history.read(tx, of, at, last=version)
    # Its own event is read as well: a snapshot beyond the history (of a salvaged database, say) is none.
    if next(rows, None) is None or (state.id, state.version) != (of.id, at):
        return None
    return _dense(state, of, rows)


def _dense(state: A, of: Instance, rows: Iterable[Row]) -> A:
    def checked() -> Iterable[Row]:
        expected = state.version
        for row in rows:
            expected += 1
            if row["version"] != expected:
                raise UnreadableHistoryError(str(of), expected, "it is missing")
            yield row

    return _folded(state, of, checked())


def _folded(state: A, of: Instance, rows: Iterable[Row]) -> A:
    for row in rows:
        state = _applied(state, _event(state.spec, of, row), row["version"])
    return state


def _event(spec: AggregateSpec, of: Instance, row: Row) -> Event:
    try:
        return spec.read(row)
    except MessageError as error:
        raise UnreadableHistoryError(str(of), row["version"], str(error)) from error


def _states(aggregate: A, of: Instance, events: Iterable[Event]) -> list[A]:
    """Fold new events before anything is written, so that a fold that fails leaves nothing behind."""
    states: list[A] = []
    state = aggregate
    for new in events:
        event = aggregate.spec.reread(new)
        if key_of(event) != aggregate.id:
            raise ValueError(f"{event.spec.type} has the key {key_of(event)!r} and was appended to {of}")
        state = _applied(state, event, state.version + 1)
        states.append(state)
    return states


def _applied(state: A, event: Event, version: int) -> A:
    fold = state.spec.folds[event.spec.kind]
    new = fold.function(state, event)
    if type(new) is not type(state):
        raise ConfigurationError(
            f"{fold.function.__name__} returned {type(new).__name__}, not {type(state).__name__}",
            hint="a fold returns the new state",
        )
    return msgspec.structs.replace(new, id=state.id, version=version)


def _record(
    tx: UnitOfWork, of: Instance, before: Last, event: Event, time: datetime | None, cause: Message | None
) -> Last:
    draft = tx.draft(event, time=time or datetime.now(UTC), cause=cause)
    message_id = tx.append(draft)
    spec = event.spec
    return history.write(
        tx, of, before, Recorded(spec.kind, spec.version, draft.time, message_id, draft.cause, draft.body)
    )
