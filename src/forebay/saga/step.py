"""One step of a saga: what its methods get to act with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from forebay.command import Command
from forebay.envelope import Message, percent_encode
from forebay.errors import ConfigurationError
from forebay.event import Event
from forebay.saga.declaration import SagaSpec
from forebay.timers import cancel_timer, set_timer
from forebay.transaction import Row
from forebay.unit_of_work import UnitOfWork


class Step:
    """One transaction of one instance. Valid only inside the method that got it.

    Attributes:
        instance: the instance's name: the value of the event's field that names it.
        message: the message that moved it; None for a timeout, and for what the service itself said.
        now: when the step counts as taken, aware: when the broker stored the message, or the deadline that passed. So
            a restored store that takes the step again sets the same deadlines (B5), where it reads the message again
            where it stood; in a stream that was made anew it has another time.
    """

    def __init__(
        self, tx: UnitOfWork, spec: SagaSpec, instance: str, now: datetime, message: Message | None = None
    ) -> None:
        self._tx = tx
        self._spec = spec
        self.instance = instance
        self.now = now
        self.message = message
        self.did: list[str] = []
        self.commands: list[str] = []
        self.undoing: list[str] = []
        self.reason: str | None = None
        self.completed = False

    @property
    def settings(self) -> Any:
        """The service's settings."""
        return self._tx.settings

    def execute(self, sql: str, **params: Any) -> list[Row]:
        """Run one statement on the service's tables; see ``Transaction.execute``."""
        return self._tx.execute(sql, **params)

    def executemany(self, sql: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run one statement once per mapping; see ``Transaction.executemany``."""
        self._tx.executemany(sql, rows)

    def emit(self, event: Event, *, time: datetime | None = None) -> str:
        """Write an event into the outbox and return its message id; see ``UnitOfWork.emit``."""
        message_id = self._tx.emit(event, time=time)
        self.did.append(f"emitted {event.spec.type} {message_id}")
        return message_id

    def send(self, command: Command, *, to: str, expires: datetime | None = None) -> str:
        """Send a command to a node and return its message id; see ``UnitOfWork.send``."""
        message_id = self._tx.send(command, to=to, expires=expires)
        self.commands.append(message_id)
        until = f", until {expires.isoformat()}" if expires else ""
        self.did.append(f"sent {command.spec.type} {message_id} to {to}{until}")
        return message_id

    def timeout(self, name: str, after: timedelta) -> datetime:
        """Let the method marked ``@times_out(name)`` be called when so much time has passed; return that deadline.

        One of the same name that was set before is replaced. When the saga ends, or begins to compensate, all go.

        Raises:
            ConfigurationError: no method is marked with that name.
            ValueError: the instance's name, percent-encoded, is longer than 128 characters.
        """
        if name not in self._spec.timeouts:
            raise ConfigurationError(
                f"saga {self._spec.name} has no timeout {name!r}", hint=f'mark a method with @times_out("{name}")'
            )
        deadline = self.now + after
        set_timer(self._tx, owner_of(self._spec), timed(self.instance), name, deadline)
        self.did.append(f"set timeout {name} to {deadline.isoformat()}")
        return deadline

    def clear(self, name: str) -> None:
        """Take a timeout back; one that is not set is no error."""
        if cancel_timer(self._tx, owner_of(self._spec), timed(self.instance), name):
            self.did.append(f"cleared timeout {name}")

    def undo(self, compensation: Callable[..., None]) -> None:
        """Remember how to undo this step, should the saga not reach its end: ``step.undo(self.release)``.

        Name it in the step that begins what is to be undone: whether a command that was never answered took effect is
        not known, and it has to be undone all the same.

        Raises:
            ConfigurationError: the method is not marked with ``@compensates``.
        """
        name = compensation.__name__
        if name not in self._spec.compensations:
            raise ConfigurationError(
                f"saga {self._spec.name}: {name} is no compensation", hint=f"mark {name} with @compensates(...)"
            )
        self.undoing.append(name)
        self.did.append(f"to undo: {name}")

    def compensate(self, reason: str) -> None:
        """Give the saga up when this method has returned: undo its steps, the latest first."""
        self.reason = reason
        self.did.append(f"gave up: {reason}")

    def complete(self) -> None:
        """End the saga when this method has returned: nothing of it will be undone."""
        self.completed = True
        self.did.append("completed")


def owner_of(spec: SagaSpec) -> str:
    """The owner of a saga's timers."""
    return f"saga.{spec.name}"


def timed(instance: str) -> str:
    """An instance's name as its timers have it: an ordering key may hold what a timer's name, and a header, cannot."""
    return percent_encode(instance)
