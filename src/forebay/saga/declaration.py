"""What a saga class says of itself: the events that start and move it, its deadlines, and how a step is undone.

The pattern: H. Garcia-Molina and K. Salem, "Sagas", SIGMOD 1987; as a process manager that events move: G. Hohpe and
B. Woolf, "Enterprise Integration Patterns", 2003.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import msgspec

from forebay.errors import ConfigurationError
from forebay.event import Event
from forebay.identity import checked_name

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__forebay_saga__"


class Starts(NamedTuple):
    """A class method that makes the saga's state from an event."""

    event: type[Event]
    by: str


class Moves(NamedTuple):
    """A method that an event calls while the saga runs."""

    event: type[Event]
    by: str


class TimesOut(NamedTuple):
    """A method that a deadline calls while the saga runs."""

    timeout: str


class Compensates(NamedTuple):
    """A method that undoes what was done; ``until`` is the event that says that it is undone."""

    until: type[Event] | None
    by: str


Mark = Starts | Moves | TimesOut | Compensates


class SagaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a saga class says of itself: names of methods, by what calls them.

    Attributes:
        name: under which its instances are kept; never change it.
        starts, moves: by type of event, the method and the event's field that names the instance.
        timeouts: by name.
        compensations: by the method's name, the event that ends it, with the field that names the instance.
    """

    name: str
    starts: dict[type[Event], tuple[str, str]]
    moves: dict[type[Event], tuple[str, str]]
    timeouts: dict[str, str]
    compensations: dict[str, Compensates]

    @property
    def events(self) -> dict[type[Event], str]:
        """Every event that it wants, with the field that names the instance."""
        fields = {event: by for event, (_, by) in [*self.starts.items(), *self.moves.items()]}
        ends = {each.until: each.by for each in self.compensations.values() if each.until is not None}
        return {**ends, **fields}


def starts(event: type[Event], *, by: str | None = None) -> Callable[[F], F]:
    """Let an event begin a saga: over a class method ``f(cls, step, event)`` that returns its state.

    Args:
        event: its type.
        by: the event's field that names the instance; its ordering key, where nothing is said.

    Raises:
        ConfigurationError: the event has no such field, or no ordering key.
    """
    return _marked(Starts(event, _field(event, by)))


def moves(event: type[Event], *, by: str | None = None) -> Callable[[F], F]:
    """Let an event move a running saga: over a method ``f(self, step, event)``; see ``starts``."""
    return _marked(Moves(event, _field(event, by)))


def times_out(timeout: str) -> Callable[[F], F]:
    """Call ``f(self, step)`` when a timeout of that name passes (``Step.timeout``) and the saga still runs."""
    return _marked(TimesOut(checked_name(timeout, "timeout")))


def compensates(*, until: type[Event] | None = None, by: str | None = None) -> Callable[[F], F]:
    """Undo a step with ``f(self, step)``, once ``Step.undo`` has named the method.

    Args:
        until: the event that says that it is undone; what is to be undone before it waits for that. Where the method
            sends commands, only the answer to one of them counts. None: it is undone at once.
        by: the event's field that names the instance; its ordering key, where nothing is said.

    Raises:
        ConfigurationError: the event has no such field, or no ordering key.
    """
    return _marked(Compensates(until, _field(until, by) if until else ""))


class SagaMeta(msgspec.StructMeta):
    """Takes the saga's own keyword, collects its marked methods, and makes its state keyword-only."""

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        saga: str | None = None,
        **struct_options: Any,
    ) -> SagaMeta:
        """Create the class; raises ``ConfigurationError`` where what it says of itself is missing or contradicts."""
        struct_options.setdefault("kw_only", True)
        cls = super().__new__(mcls, name, bases, namespace, **struct_options)
        if not bases or bases == (msgspec.Struct,):
            return cls
        if saga is None:
            raise ConfigurationError(f"saga {name} does not say its name", hint=f'class {name}(Saga, saga="...")')
        type.__setattr__(cls, "spec", _collect(checked_name(saga, f"saga {name}"), namespace))
        return cls


class Saga(msgspec.Struct, metaclass=SagaMeta):
    """The base of every saga; its fields are the state, kept as JSON. New fields need defaults.

    Example:
        >>> from forebay import Event
        >>> class OrderPlaced(Event, service="shop", kind="order-placed", key="order"):
        ...     order: str
        >>> class OrderPaid(Event, service="shop", kind="order-paid", key="order"):
        ...     order: str
        >>> class Purchase(Saga, saga="purchase"):
        ...     order: str
        ...     @classmethod
        ...     @starts(OrderPlaced)
        ...     def placed(cls, step, event):
        ...         return cls(order=event.order)
        ...     @moves(OrderPaid)
        ...     def paid(self, step, event):
        ...         step.complete()
        >>> sorted(event.__name__ for event in Purchase.spec.events)
        ['OrderPaid', 'OrderPlaced']
    """

    spec: ClassVar[SagaSpec]

    if TYPE_CHECKING:

        def __init_subclass__(cls, *, saga: str, **struct_options: Any) -> None: ...


def _marked(mark: Mark) -> Callable[[F], F]:
    def register(function: F) -> F:
        setattr(function, _MARK, mark)
        return function

    return register


def _field(event: type[Event], by: str | None) -> str:
    field = by or event.spec.key
    if field is None or field not in event.__struct_fields__:
        missing = "has no ordering key" if field is None else f"has no field {field!r}"
        raise ConfigurationError(
            f"{event.__name__} {missing}, so that nobody knows which instance it is for",
            hint='name the field: by="order"',
        )
    return field


def _collect(name: str, namespace: dict[str, Any]) -> SagaSpec:
    spec = SagaSpec(name=name, starts={}, moves={}, timeouts={}, compensations={})
    for method, value in namespace.items():
        mark = getattr(getattr(value, "__func__", value), _MARK, None)
        match mark:
            case Starts(event, by):
                if not isinstance(value, classmethod):
                    raise ConfigurationError(
                        f"saga {name}: {method} starts it and is no class method", hint="put @classmethod above @starts"
                    )
                _once(spec.starts, event, (method, by), name)
            case Moves(event, by):
                _once(spec.moves, event, (method, by), name)
            case TimesOut(timeout):
                _once(spec.timeouts, timeout, method, name)
            case Compensates():
                spec.compensations[method] = mark
    if not spec.starts:
        raise ConfigurationError(f"saga {name}: nothing starts it", hint="mark a class method with @starts(SomeEvent)")
    if both := spec.starts.keys() & spec.moves.keys():
        raise ConfigurationError(f"saga {name}: {both.pop().__name__} both starts and moves it")
    return spec


def _once(found: dict[Any, Any], key: Any, value: Any, name: str) -> None:
    if key in found:
        what = key if isinstance(key, str) else key.__name__
        raise ConfigurationError(f"saga {name}: two methods for {what}")
    found[key] = value
