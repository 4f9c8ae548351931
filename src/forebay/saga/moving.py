"""Moving sagas: events, deadlines and the service itself call an instance's methods, one transaction a step.

An instance sees each event once: the inbox takes care of repetitions. What comes when it is of no use any more (an
answer after the deadline, a second answer) is told in its story and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec

from forebay.envelope import Message, percent_decode
from forebay.errors import ConfigurationError
from forebay.event import Event
from forebay.saga.declaration import Saga, SagaSpec
from forebay.saga.instances import Awaiting, Instance, load, save
from forebay.saga.step import Step, owner_of, timed
from forebay.timers import Timer, TimerHandler, cancel_timer
from forebay.unit_of_work import UnitOfWork


class Sagas:
    """The sagas of one service.

    Example:
        ``sagas = service.runs(Sagas(Purchase))``; inside a unit of work ``sagas.tell(tx, event)`` lets the service's
        own events start and move them at once, in that transaction.

    Raises:
        ConfigurationError: two of them have the same name.
    """

    def __init__(self, *sagas: type[Saga]) -> None:
        names = [saga.spec.name for saga in sagas]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"two sagas have the same name: {', '.join(sorted(names))}")
        self._sagas = sagas

    @property
    def events(self) -> Sequence[type[Event]]:
        """The events that any of them wants."""
        return list(dict.fromkeys(event for saga in self._sagas for event in saga.spec.events))

    @property
    def timers(self) -> dict[str, TimerHandler]:
        """What their timers call, by owner."""
        return {owner_of(saga.spec): partial(_passed, saga) for saga in self._sagas}

    def tell(self, tx: UnitOfWork, event: Event, message: Message | None = None) -> None:
        """Start or move every saga that wants the event, in this transaction.

        Args:
            tx: the unit of work, or a handler's.
            event: from the consumer, or of this very service.
            message: how it came; None where the service says it itself.
        """
        for saga in self._sagas:
            by = saga.spec.events.get(type(event))
            if by is not None:
                _take(saga, tx, str(getattr(event, by)), event, message)


def _take(saga: type[Saga], tx: UnitOfWork, instance: str, event: Event, message: Message | None) -> None:
    spec, known = saga.spec, load(tx, saga.spec.name, instance)
    moved_by = f"{event.spec.type} {message.message_id if message else 'of its own service'}"
    move = _Move(saga, tx, known or Instance(saga=spec.name, instance=instance), _when(message), message)
    kind = type(event)
    if kind in spec.starts:
        method = spec.starts[kind][0]
        if known is None:
            move.run(method, moved_by, event)
        else:
            move.ignore(method, moved_by, "it was started before")
    elif known is None:
        return  # nobody asked for it here
    elif known.status == "running" and kind in spec.moves:
        move.run(spec.moves[kind][0], moved_by, event)
    elif _ends(spec, known, kind, message):
        move.go_on(moved_by)
    else:
        move.ignore(kind.__name__, moved_by, f"it is {known.status}")


def _passed(saga: type[Saga], tx: UnitOfWork, timer: Timer) -> None:
    """A deadline has passed."""
    known = load(tx, saga.spec.name, percent_decode(timer.instance))
    method = saga.spec.timeouts.get(timer.name)
    if known is None or known.status != "running":
        return  # its end takes its timers back; one that fires beside it is too late
    if method is None:
        raise ConfigurationError(f"saga {saga.spec.name} has no timeout {timer.name!r} any more")
    move = _Move(saga, tx, known, timer.deadline)
    move.run(method, f"timeout {timer.name} at {timer.deadline.isoformat()}")


class _Move:
    """One step of one instance, in one transaction."""

    def __init__(
        self, saga: type[Saga], tx: UnitOfWork, known: Instance, now: datetime, message: Message | None = None
    ) -> None:
        self._saga = saga
        self._tx = tx
        self._known = known
        self._step = Step(tx, saga.spec, known.instance, now, message)

    def run(self, method: str, moved_by: str, *arguments: Event) -> None:
        """Run one method, and write down how the instance stands afterwards."""
        known, step = self._known, self._step
        if known.steps:
            state = self._state()
            getattr(state, method)(step, *arguments)
        else:
            state = getattr(self._saga, method)(step, *arguments)
            if not isinstance(state, self._saga):
                raise TypeError(f"{self._saga.__name__}.{method} starts the saga and returned no state: {state!r}")
        known.undo = [*known.undo, *step.undoing]
        known.state = msgspec.json.encode(state)
        if step.reason is not None:
            known.status = "compensating"
            self._clear()
            self._undo(state)
        elif step.completed:
            known.status, known.undo = "done", []
            self._clear()
        save(self._tx, known, method, moved_by, step.did)

    def go_on(self, moved_by: str) -> None:
        """Go on with what is to be undone: the compensation that was waited for is over."""
        awaited, self._known.awaiting = self._known.awaiting, None
        assert awaited is not None  # noqa: S101
        self._step.did.append(f"undone: {awaited.compensation}")
        self._undo(self._state())
        save(self._tx, self._known, awaited.compensation, moved_by, self._step.did)

    def ignore(self, what: str, moved_by: str, why: str) -> None:
        """Tell of something that changes nothing."""
        save(self._tx, self._known, f"{what} (ignored)", moved_by, [why])

    def _undo(self, state: Saga) -> None:
        """Run compensations, the latest step's first, up to one that has to be waited for."""
        known, step, spec = self._known, self._step, self._saga.spec
        while known.undo:
            name = known.undo.pop()
            compensation = spec.compensations.get(name)
            if compensation is None:
                raise ConfigurationError(
                    f"saga {spec.name} has no compensation {name!r} any more", hint="keep it while instances need it"
                )
            sent = len(step.commands)
            step.did.append(f"undoing: {name}")
            getattr(state, name)(step)
            known.state = msgspec.json.encode(state)
            if compensation.until is not None:
                known.awaiting = Awaiting(name, step.commands[sent:])
                return
        known.status = "compensated"
        step.did.append("compensated")

    def _clear(self) -> None:
        spec = self._saga.spec
        for name in spec.timeouts:
            cancel_timer(self._tx, owner_of(spec), timed(self._known.instance), name)

    def _state(self) -> Saga:
        state: Saga = msgspec.json.decode(self._known.state, type=self._saga)
        return state


def _ends(spec: SagaSpec, known: Instance, kind: type[Event], message: Message | None) -> bool:
    """Whether an event ends the compensation that is waited for; a repeated answer, or one to something else, not."""
    awaiting = known.awaiting
    compensation = spec.compensations.get(awaiting.compensation) if awaiting else None
    if awaiting is None or compensation is None or compensation.until is not kind:
        return False
    cause = (message.cause if message else None) or ""
    return not awaiting.commands or any(cause.startswith(f"{command}/") for command in awaiting.commands)


def _when(message: Message | None) -> datetime:
    return (message.stored_at if message else None) or datetime.now(UTC)
