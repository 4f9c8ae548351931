"""A window: what is known of a key in a stretch of event time, declared on a service with plain functions.

Example:
    >>> import msgspec
    >>> from forebay import Event, Lane, Service, UnitOfWork
    >>> from forebay.window import Result, Tumbling
    >>> class Weighed(Event, service="scale", kind="weighed", key="scale"):
    ...     scale: str
    ...     grams: int
    >>> class Weight(msgspec.Struct):
    ...     grams: int = 0
    >>> loads = Service("loads")
    >>> @loads.window(Weighed, Tumbling("1h"), state=Weight, lateness="10m")
    ... def hourly(weight: Weight, weighed: Weighed) -> Weight:
    ...     return Weight(weight.grams + weighed.grams)
    >>> @hourly.closed
    ... def note(tx: UnitOfWork, result: Result[Weight]) -> None:
    ...     tx.execute("insert into load ...", scale=result.key, grams=result.state.grams)
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec

from forebay.envelope import GATEWAY, Message
from forebay.errors import ConfigurationError
from forebay.event import Event, key_of
from forebay.identity import checked_name
from forebay.protocol.windows import Kind, Session, Sliding, Tumbling, duration
from forebay.unit_of_work import UnitOfWork

__all__ = ["Kind", "Late", "Period", "Result", "Session", "Sliding", "Tumbling", "Window"]

E = TypeVar("E", bound=Event)
S = TypeVar("S")

IDLE = "5m"
"""For how long a silent node holds back the others, by the wall clock."""

Lateness = str | float | Callable[[Any], str | float]
"""A duration, or a function that takes it from the service's settings."""

TimeOf = Literal["event", "outside", "hlc"]
"""Which time counts: the event's (``ce-time``) as the node's clock gave it, the event's as a clock outside gave it, or
the node's hybrid logical clock when the event was written."""


class Period(NamedTuple):
    """A stretch of event time, aware and in UTC: from ``opens`` up to, and without, ``closes``."""

    opens: datetime
    closes: datetime


class Result(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """What a window came to.

    Attributes:
        window: its name.
        node: whose events these are; empty where the nodes' events are together.
        key: the key's value.
        opens, closes: the stretch of event time.
        state: the fold of its events.
        events: their number.
        revision: 0 for the first result, and one more each time that late events change it.
        replaces: the periods of the earlier results that this one takes the place of: its own, or those of the sessions
            that a late event joined or made longer.
    """

    window: str
    node: str
    key: str
    opens: datetime
    closes: datetime
    state: S
    events: int
    revision: int
    replaces: list[Period]


class Late(msgspec.Struct, Generic[E], frozen=True, kw_only=True):
    """An event that is missing in a result.

    Attributes:
        event, message: the event, and its envelope.
        at: its time, corrected where the node's clock is off.
        reason: ``late`` where a window it belongs to is final; ``ahead`` where its time has not come by our clock.
        missed: the windows that do not have it; none where it is ahead. A sliding window's other windows may.
    """

    event: E
    message: Message
    at: datetime
    reason: Literal["late", "ahead"]
    missed: list[Period]


class Window(Generic[E, S]):
    """A window's declaration; see ``Service.window``, which makes it.

    Raises:
        ConfigurationError: the name is none, a duration makes no sense, or the state cannot be made of nothing.
    """

    def __init__(
        self,
        name: str,
        event: type[E],
        kind: Kind,
        add: Callable[[S, E], S],
        *,
        state: type[S],
        key: Callable[[E], str | None],
        lateness: Lateness,
        nodes: Literal["each", "together"],
        idle: str | float,
        time: TimeOf,
    ) -> None:
        self.name = checked_name(name, "window")
        self.event = event
        self.kind = kind
        self.key = key
        self.add = add
        self.state_type = state
        self.together = nodes == "together"
        self.idle = duration(idle, f"window {name}: idle", above_zero=True)
        self.time: TimeOf = "outside" if event.spec.service == GATEWAY and time == "event" else time
        self.join: Callable[[S, S], S] | None = None
        self.on_closed: Callable[[UnitOfWork, Result[S]], None] | None = None
        self.on_late: Callable[[UnitOfWork, Late[E]], None] | None = None
        self._lateness = lateness
        if not callable(lateness):
            duration(lateness, f"window {name}: lateness")
        try:
            state()
        except TypeError as error:
            raise ConfigurationError(
                f"window {name}: {state.__name__} cannot be made of nothing: {error}", hint="give its fields defaults"
            ) from error

    def closed(self, function: Callable[[UnitOfWork, Result[S]], None]) -> Callable[[UnitOfWork, Result[S]], None]:
        """Call ``f(tx, result)`` when the watermark closes a window, and again when late events change its result.

        It runs in the transaction of the events. What it emits carries the window and its contents as the cause: a
        restored store that closes the same window again has no second effect (B5).
        """
        self.on_closed = function
        return function

    def merge(self, function: Callable[[S, S], S]) -> Callable[[S, S], S]:
        """Let ``f(left, right)`` return the state of two sessions that turn out to be one; sessions need it."""
        self.join = function
        return function

    def late(self, function: Callable[[UnitOfWork, Late[E]], None]) -> Callable[[UnitOfWork, Late[E]], None]:
        """Call ``f(tx, late)`` for each event that comes too late for a window: the side output."""
        self.on_late = function
        return function

    def lateness(self, settings: object) -> int:
        """Return the milliseconds of event time for which a window takes late events after it has closed.

        Raises:
            ConfigurationError: the settings give no duration.
        """
        value = self._lateness(settings) if callable(self._lateness) else self._lateness
        return duration(value, f"window {self.name}: lateness")

    def check(self, settings: object) -> None:
        """Raise ``ConfigurationError`` where something is missing that only shows once all is declared."""
        self.lateness(settings)
        if self.on_closed is None:
            raise ConfigurationError(
                f"nothing happens when window {self.name} closes", hint=f"write @{self.name.replace('-', '_')}.closed"
            )
        if isinstance(self.kind, Session) and self.join is None:
            raise ConfigurationError(
                f"window {self.name} cannot join two sessions", hint=f"write @{self.name.replace('-', '_')}.merge"
            )


def ordering_key(event: Event) -> str:
    """Return the event's ordering key; all events without one are of one key."""
    return key_of(event) or ""
