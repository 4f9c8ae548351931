"""Windows at work: events become panes, watermarks close them, in the transaction of the events.

Events are taken one by one in their order, whatever the batch: a window closes with what came before the event that
moved the watermark past it. Only results that late events change are told once, at the end of the transaction.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from forebay.clock import wall_milliseconds
from forebay.clock_offsets import skewed_nodes
from forebay.envelope import GATEWAY, Message
from forebay.errors import ConfigurationError
from forebay.event import Event
from forebay.handlers import Handler, Handlers
from forebay.marks import TOGETHER, Marks
from forebay.panes import Pane, Panes, content_of, instance_of, joined_content, milliseconds_of, moment
from forebay.protocol.watermarks import is_plausible
from forebay.protocol.windows import Session, Span, place
from forebay.timers import Timer, set_timer
from forebay.unit_of_work import UnitOfWork
from forebay.window import Late, Period, Result, Window

OWNER = "window"
"""Under which windows set timers, for nodes that fall silent."""

_HLC_COUNTER_BITS = 16


class Windows:
    """The windows of one service, by name.

    Attributes:
        wall: milliseconds since 1970; what tells a silent node, and a time that has not come.
    """

    def __init__(self) -> None:
        self._windows: dict[str, Window[Any, Any]] = {}
        self.wall = wall_milliseconds

    def __bool__(self) -> bool:
        return bool(self._windows)

    @property
    def names(self) -> list[str]:
        """The windows' names, in the order of their declaration."""
        return list(self._windows)

    def add(self, window: Window[Any, Any], handlers: Handlers) -> None:
        """Let a window have its events; the windows of one event share a handler.

        Raises:
            ConfigurationError: there is a window of that name, or the event has a handler that is none of a window.
        """
        if window.name in self._windows:
            raise ConfigurationError(f"there is a window {window.name!r} already")
        if all(each.event is not window.event for each in self._windows.values()):
            handlers.add(window.event, self._handler(window), batch=True)
        self._windows[window.name] = window

    def check(self, settings: object) -> None:
        """Raise ``ConfigurationError`` where a window lacks something, or the settings give it what makes no sense."""
        for window in self._windows.values():
            window.check(settings)

    def pass_silent(self, tx: UnitOfWork, timer: Timer) -> None:
        """Go on without the nodes that are silent: what to do when a window's timer fires."""
        window = self._windows.get(timer.instance)
        if window is not None and window.together:
            run = _Run(tx, window, self.wall())
            run.pass_silent(milliseconds_of(timer.deadline))

    def _handler(self, first: Window[Any, Any]) -> Handler:
        def windows(tx: UnitOfWork, events: list[Event], messages: list[Message]) -> None:
            skewed, now = skewed_nodes(tx), self.wall()
            for window in self._windows.values():
                if window.event is first.event:
                    timed = [
                        _Timed(event, message, time_of(window, message, skewed.get(message.node, 0)))
                        for event, message in zip(events, messages, strict=True)
                    ]
                    _Run(tx, window, now).take(timed)

        return windows


class _Timed(NamedTuple):
    """An event with its time in milliseconds."""

    event: Event
    message: Message
    at: int


class _Run:
    """The work of one window in one transaction."""

    def __init__(self, tx: UnitOfWork, window: Window[Any, Any], now: int) -> None:
        self._tx = tx
        self._window = window
        self._now = now
        self._lateness = window.lateness(tx.settings)
        self._marks = Marks(tx, window.name, window.idle, together=window.together)
        self._panes: dict[str, Panes[Any]] = {}
        self._waiting: dict[str, list[tuple[int, str, int, int]]] = {}
        self._by_number: list[Pane[Any]] = []

    def take(self, timed: Sequence[_Timed]) -> None:
        """Take events in their order."""
        marks = [
            self._marks.observe(each.message.node, each.at, self._now) if is_plausible(each.at, self._now) else None
            for each in timed
        ]
        keys = [self._window.key(each.event) for each in timed]
        self._load(timed, keys)
        told: dict[str, int] = {}
        for each, key, mark in zip(timed, keys, marks, strict=True):
            if mark is None:
                self._tell_late(each, "ahead", [])
                continue
            scope = self._marks.scope(each.message.node)
            if told.get(scope) != mark:
                self._close(scope, mark)
                told[scope] = mark
            if key is not None:
                self._add(scope, key, each, mark)
        self._finish()

    def pass_silent(self, at: int) -> None:
        """Go on without the nodes that have been silent at a wall time."""
        mark = self._marks.pass_silent(at)
        self._panes_of(TOGETHER).load_closing(mark)
        self._wait_for(TOGETHER)
        self._close(TOGETHER, mark)
        self._finish()

    def _load(self, timed: Sequence[_Timed], keys: Sequence[str | None]) -> None:
        """Load what the events belong to, and what the watermarks will close by their end."""
        reached: dict[tuple[str, str], Span] = {}
        for each, key in zip(timed, keys, strict=True):
            scope = self._marks.scope(each.message.node)
            self._panes_of(scope)
            if key is not None and is_plausible(each.at, self._now):
                spans = self._window.kind.spans(each.at)
                whole = spans[0].joined(spans[-1])
                reached[scope, key] = reached.get((scope, key), whole).joined(whole)
        for (scope, key), span in reached.items():
            self._panes_of(scope).load_key(key, span)
        for scope, panes in self._panes.items():
            panes.load_closing(self._marks.of(scope))
            self._wait_for(scope)

    def _add(self, scope: str, key: str, timed: _Timed, mark: int) -> None:
        placed = place(self._window.kind, timed.at, mark - self._lateness)
        for span in placed.live:
            pane = (
                self._join(scope, key, span) if isinstance(self._window.kind, Session) else self._find(scope, key, span)
            )
            pane.state = self._window.add(pane.state, timed.event)
            pane.events += 1
            pane.content = joined_content(pane.content, content_of(timed.message.message_id))
            pane.dirty = True
            self._panes_of(scope).put(pane)
            if pane.span.closes > mark:
                self._wait(scope, pane)
        if placed.missed:
            self._tell_late(timed, "late", placed.missed)

    def _find(self, scope: str, key: str, span: Span) -> Pane[Any]:
        return self._panes_of(scope).find(key, span) or Pane(key, span, self._window.state_type())

    def _join(self, scope: str, key: str, span: Span) -> Pane[Any]:
        """Return one pane in the place of all sessions that an event at ``span`` belongs to."""
        panes = self._panes_of(scope)
        found = panes.overlapping(key, span)
        if not found:
            return Pane(key, span, self._window.state_type())
        first, *others = found
        panes.remove(first)
        joined = Pane(key, first.span.joined(span), first.state)
        joined.events, joined.content = first.events, first.content
        joined.revision, joined.told = first.revision, list(first.told)
        for other in others:
            panes.remove(other)
            if self._window.join is None:
                raise ConfigurationError(f"window {self._window.name} cannot join two sessions")
            joined.state = self._window.join(joined.state, other.state)
            joined.span = joined.span.joined(other.span)
            joined.events += other.events
            joined.content = joined_content(joined.content, other.content)
            joined.revision = max(joined.revision, other.revision)
            joined.told += other.told
        return joined

    # --- closing

    def _wait_for(self, scope: str) -> None:
        for pane in self._panes_of(scope).waiting():
            self._wait(scope, pane)

    def _wait(self, scope: str, pane: Pane[Any]) -> None:
        self._by_number.append(pane)
        entry = (pane.span.closes, pane.key, pane.span.opens, len(self._by_number) - 1)
        heapq.heappush(self._waiting.setdefault(scope, []), entry)

    def _close(self, scope: str, mark: int) -> None:
        """Tell what the watermark has come to, in the order of closing."""
        waiting = self._waiting.get(scope, [])
        while waiting and waiting[0][0] <= mark:
            closes, _, _, number = heapq.heappop(waiting)
            pane = self._by_number[number]
            if pane.dirty and not pane.gone and pane.span.closes == closes:
                self._tell(scope, pane)

    def _tell(self, scope: str, pane: Pane[Any]) -> None:
        window, span = self._window, pane.span
        result = Result(
            window=window.name,
            node=scope,
            key=pane.key,
            opens=moment(span.opens),
            closes=moment(span.closes),
            state=pane.state,
            events=pane.events,
            revision=pane.revision,
            replaces=_periods(pane.told),
        )
        self._tx.because_of_deadline(instance_of(window.name, scope, pane.key, pane.content), result.closes)
        if window.on_closed is not None:
            window.on_closed(self._tx, result)
        pane.dirty = False
        pane.revision += 1
        pane.told = [span]
        self._panes_of(scope).put(pane)

    def _tell_late(self, timed: _Timed, reason: Literal["late", "ahead"], missed: list[Span]) -> None:
        self._marks.count_late(timed.message.node)
        if self._window.on_late is not None:
            self._tx.because_of(timed.message)
            late: Late[Any] = Late(
                event=timed.event,
                message=timed.message,
                at=moment(timed.at),
                reason=reason,
                missed=_periods(missed),
            )
            self._window.on_late(self._tx, late)

    def _finish(self) -> None:
        for scope, panes in self._panes.items():
            mark = self._marks.of(scope)
            changed = [pane for pane in panes.waiting() if pane.span.closes <= mark]
            for pane in sorted(changed, key=lambda pane: (pane.span.closes, pane.key, pane.span.opens)):
                self._tell(scope, pane)
            panes.save(mark, self._lateness)
        self._tx.because_of(None)
        self._marks.save()
        silent_at = self._marks.silent_at()
        if silent_at is not None:
            set_timer(self._tx, OWNER, self._window.name, "idle", moment(silent_at))

    def _panes_of(self, scope: str) -> Panes[Any]:
        found = self._panes.get(scope)
        if found is None:
            found = self._panes[scope] = Panes(self._tx, self._window.name, scope, self._window.state_type)
        return found


def time_of(window: Window[Any, Any], message: Message, ahead: int) -> int:
    """Return the milliseconds of an event's time.

    Args:
        window: says which time counts.
        message: the event's envelope.
        ahead: milliseconds to add where the node's clock gave the time. A client of the gateway, or another clock
            outside, is not off because the node's clock is.
    """
    if window.time == "hlc" and message.hlc:
        return (message.hlc >> _HLC_COUNTER_BITS) + ahead
    return milliseconds_of(message.time) + (ahead if window.time == "event" and message.service != GATEWAY else 0)


def _periods(spans: Iterable[Span]) -> list[Period]:
    return [Period(moment(span.opens), moment(span.closes)) for span in sorted(spans)]
