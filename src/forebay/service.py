"""A service: one object that ties event handlers, lanes and HTTP routes together.

Declaring a service opens nothing. ``forebay run`` (or ``forebay.process``) gives it a store, a relay, a consumer and a
place in the process's HTTP application.

Example:
    >>> from forebay import Event, Lane, Service, UnitOfWork
    >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
    ...     door: str
    >>> door = Service("door", lanes=[Lane("ledger", budget="8MiB")])
    >>> audit = Service("audit")
    >>> @audit.on(DoorOpened)
    ... def note(tx: UnitOfWork, opened: DoorOpened) -> None:
    ...     tx.execute("insert into opened (door) values (:door)", door=opened.door)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, TypeVar

from forebay.command import Command
from forebay.delivery import Archive
from forebay.envelope import Message
from forebay.errors import ConfigurationError
from forebay.event import Event
from forebay.handlers import Handler, Handlers
from forebay.identity import checked_name
from forebay.lanes import Lane
from forebay.routes import Routes
from forebay.saga import Sagas
from forebay.timers import TimerHandler
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork
from forebay.window import IDLE, Kind, Lateness, TimeOf, Window, ordering_key
from forebay.windowing import OWNER as WINDOWS
from forebay.windowing import Windows
from forebay.worker import Employed, MakeWork

E = TypeVar("E", bound=Event)
H = TypeVar("H", bound=Handler)
S = TypeVar("S")


class Service(Routes):
    """A service's declaration.

    Args:
        name: its name; a token of its events' subjects, its folder under ``/`` in HTTP, and its consumer's name.
        lanes: the lanes that its events may use, highest priority first; none for a service that emits nothing.
        settings: the type of the table ``[<name>]`` of ``forebay.toml``; a msgspec Struct.
        projection: the version of its read model, from 1, where its tables follow from events alone: then they can be
            rebuilt (``forebay projection``). Raise it when the handlers make other tables of the same events.

    Raises:
        ConfigurationError: the name is none, a lane is there twice, or a read model has a version below 1.

    Example:
        >>> door = Service("door", lanes=[Lane("ledger", budget="8MiB"), Lane("telemetry", budget="1MiB")])
        >>> @door.get("/health")
        ... async def health() -> dict[str, str]:
        ...     return {"door": "shut"}
        >>> [lane.name for lane in door.lanes]
        ['ledger', 'telemetry']
    """

    def __init__(
        self, name: str, *, lanes: Sequence[Lane] = (), settings: type[Any] = dict, projection: int | None = None
    ) -> None:
        super().__init__(checked_name(name, "service"), settings)
        self.lanes = tuple(lanes)
        self.projection = projection
        self.handlers = Handlers()
        self.following = Handlers()
        self.archive: Archive | None = None
        self.derived: frozenset[str] = frozenset()
        """Tables that follow from its others: a damaged database is salvaged without them."""
        self.begin_derived: Callable[[Transaction], None] = lambda _: None
        self.timers: dict[str, TimerHandler] = {}
        """What happens when a timer fires, by its owner (``forebay.timers``)."""
        self.patient: set[str] = set()
        """Owners whose timers end the waiting for an answer: they fire once what the stream has was read."""
        self.windows = Windows()
        self.workers: list[Employed] = []
        """What it does outside its store, and after how many seconds at the latest (``forebay.worker``)."""
        names = [lane.name for lane in self.lanes]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"service {name!r} names a lane twice")
        if projection is not None and projection < 1:
            raise ConfigurationError(
                f"service {name!r}: version {projection} of a read model is none", hint="1 or more"
            )

    @property
    def reads(self) -> bool:
        """Whether it handles events, of a stream or of a service that it follows, or commands."""
        return bool(self.handlers or self.following or self.handlers.takes_commands)

    def on(self, event: type[Event] | type[Command], *, batch: bool = False) -> Callable[[H], H]:
        """Handle one version of an event, or of a command to this service: ``f(tx, event[, message])``.

        With ``batch=True`` the handler is ``f(tx, events, messages)`` and gets consecutive events as two lists of equal
        length, about a thousand at most, or a whole frame; it then names the cause of what it emits
        (``tx.emit(..., cause=message)``). A handler runs in the transaction of the inbox, on the store's thread, and
        may run twice before it counts once.

        Example:
            >>> from forebay import Message, UnitOfWork
            >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
            ...     door: str
            >>> audit = Service("audit")
            >>> @audit.on(DoorOpened, batch=True)
            ... def count(tx: UnitOfWork, opened: list[DoorOpened], messages: list[Message]) -> None:
            ...     tx.executemany("insert into opened (door) values (:door)", [{"door": each.door} for each in opened])
        """
        if batch and issubclass(event, Command):
            raise ConfigurationError(f"{event.spec.type} is a command: it has no handler of batches")

        def register(function: H) -> H:
            if issubclass(event, Command):
                self.handlers.add_command(self.name, event, function)
            else:
                self.handlers.add(event, function, batch=batch)
                self._check_one_way(event)
            return function

        return register

    def follow(self, event: type[Event], *, batch: bool = False) -> Callable[[H], H]:
        """Handle one version of an event of another service of this node, straight from its outbox.

        Handlers have the forms that ``on`` has, and the same inbox; it needs no link. Both services run in one process
        (``forebay run edge.till edge.stock``).

        Example:
            >>> from forebay import Event, Service, UnitOfWork
            >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
            ...     door: str
            >>> lamp = Service("lamp")
            >>> @lamp.follow(DoorOpened)
            ... def light(tx: UnitOfWork, opened: DoorOpened) -> None:
            ...     tx.execute("update lamp set lit = 1 where door = :door", door=opened.door)

        Raises:
            ConfigurationError: it is this service's own event, its service's events are handled from the stream as
                well, or ``on`` would refuse the handler.
        """

        def register(function: H) -> H:
            if event.spec.service == self.name:
                raise ConfigurationError(
                    f"{self.name} cannot follow its own {event.spec.type}", hint="do it in the unit of work that emits"
                )
            self.following.add(event, function, batch=batch)
            self._check_one_way(event)
            return function

        return register

    def expired(self, command: type[Command]) -> Callable[[H], H]:
        """Say what happens where a command has expired before it was done: ``f(tx, command)``, or with the message.

        It runs in place of the command's handler, in the same transaction, and may emit; without it an expired command
        is only counted and logged.
        """

        def register(function: H) -> H:
            self.handlers.add_expired(command, function)
            return function

        return register

    def every(self, function: H) -> H:
        """Handle every event of every service: ``f(tx, messages)``, in batches."""
        self.handlers.add_everything(function)
        if self.following:
            raise ConfigurationError(
                f"{self.name} handles every event and follows {', '.join(self.following.services)} as well",
                hint="give one of them a service of its own",
            )
        return function

    def repeated(self, function: Callable[..., None]) -> Callable[..., None]:
        """Let ``f(tx, message)`` see each event whose id was taken before; it changes nothing that was done for it."""
        self.handlers.repeated = function
        return function

    def on_timer(self, owner: str) -> Callable[[TimerHandler], TimerHandler]:
        """Call ``f(tx, timer)`` when a timer of this owner fires; see ``forebay.timers.set_timer``.

        Raises:
            ConfigurationError: the owner has a handler already.
        """

        def register(function: TimerHandler) -> TimerHandler:
            if owner in self.timers:
                raise ConfigurationError(f"the timers of {owner!r} have a handler already: {self.timers[owner]}")
            self.timers[owner] = function
            return function

        return register

    def window(
        self,
        event: type[E],
        kind: Kind,
        *,
        state: type[S],
        key: Callable[[E], str | None] = ordering_key,
        lateness: Lateness = 0,
        nodes: Literal["each", "together"] = "each",
        idle: str | float = IDLE,
        time: TimeOf = "event",
    ) -> Callable[[Callable[[S, E], S]], Window[E, S]]:
        """Fold the events of each window of event time with ``f(state, event) -> state``.

        The function's name is the window's; see ``forebay.window`` for an example. It must not matter in which order
        events are folded: they come as they come.

        Args:
            event: what is folded.
            kind: ``Tumbling``, ``Sliding`` or ``Session``.
            state: the type of the fold, a msgspec Struct; ``state()`` is an empty window.
            key: what an event belongs to; None keeps it out, and its time counts all the same.
            lateness: for how much event time a closed window still takes late events and tells its result again. What
                is later than that goes to ``Window.late``.
            nodes: ``each`` node has windows and a watermark of its own, or they are ``together``: then the watermark is
                the least over the nodes.
            idle: for how long a silent node holds back the others, where they are together.
            time: which time counts; see ``forebay.window.TimeOf``.

        Raises:
            ConfigurationError: a duration or the state makes no sense, or the event has a handler already.
        """

        def register(add: Callable[[S, E], S]) -> Window[E, S]:
            name = add.__name__.replace("_", "-")
            window = Window(
                name, event, kind, add, state=state, key=key, lateness=lateness, nodes=nodes, idle=idle, time=time
            )
            self.windows.add(window, self.handlers)
            if window.together:
                self.timers[WINDOWS] = self.windows.pass_silent
            return window

        return register

    def runs(self, sagas: Sagas) -> Sagas:
        """Let this service's consumer and timers move these sagas.

        Its own events do not come back to it by the stream: tell the sagas in the unit of work that emits them.

        Raises:
            ConfigurationError: one of their events has a handler here already; let that one call ``sagas.tell``.
        """

        def move(tx: UnitOfWork, event: Event, message: Message) -> None:
            sagas.tell(tx, event, message)

        for event in sagas.events:
            if event.spec.service != self.name:
                self.on(event)(move)
        for owner, handler in sagas.timers.items():
            self.on_timer(owner)(handler)
            self.patient.add(owner)
        return sagas

    def works(self, *, every: float = 1.0, after_commits: bool = True) -> Callable[[MakeWork], MakeWork]:
        """Do something outside the store, after commits and every so many seconds: see ``forebay.worker``.

        ``f(at_work)`` is called once, when the service starts, and returns the work: a function that does, at ``await
        work()``, what is wanted then, and returns whether there was anything to do.
        """

        def register(function: MakeWork) -> MakeWork:
            self.workers.append(Employed(function, every, after_commits))
            return function

        return register

    def reads_archive(self, archive: Archive) -> None:
        """Answer what is asked of the archive; for the one service that keeps every event (C5)."""
        self.archive = archive

    def derives(self, *tables: str) -> Callable[[Callable[[Transaction], None]], Callable[[Transaction], None]]:
        """Say which tables follow from the others, as indexes do: ``f(tx)`` begins with them anew, when all are empty.

        That is done where a damaged database is salvaged, on SQLite: what cannot be read of these tables is no loss.
        """

        def register(function: Callable[[Transaction], None]) -> Callable[[Transaction], None]:
            self.derived, self.begin_derived = frozenset(tables), function
            return function

        return register

    def check_projection(self) -> None:
        """Refuse a version of a read model where the tables do not follow from events alone.

        Raises:
            ConfigurationError: it says what else the service does.
        """
        if self.projection is None:
            return
        whatever = {
            "emits events": self.lanes,
            "sets timers": self.timers,
            "has windows": self.windows,
            "follows services of its node": self.following,
            "keeps every event": self.handlers.takes_everything,
            "handles no event": not self.handlers,
        }
        for what, is_so in whatever.items():
            if is_so:
                raise ConfigurationError(
                    f"service {self.name!r} declares a read model with a version, and {what}:"
                    " its tables could not be rebuilt from the archive",
                    hint="leave projection out, or give the read model a service of its own",
                )

    def _check_one_way(self, event: type[Event]) -> None:
        """One inbox serves both ways: an event that came on the one would be known on the other."""
        service = event.spec.service
        if service in self.following.services and (service in self.handlers.services or self.handlers.takes_everything):
            raise ConfigurationError(
                f"{self.name} handles events of {service} from the stream and follows them as well",
                hint="follow all of them, or none",
            )


def check_followed(service: Service, running: Collection[str]) -> list[str]:
    """Return the services that a service follows.

    Args:
        service: the declaration.
        running: the names of all services of its process.

    Raises:
        ConfigurationError: one of them is not among ``running``.
    """
    followed = service.following.services
    for name in followed:
        if name not in running:
            raise ConfigurationError(
                f"service {service.name!r} follows {name!r}, which does not run in this process",
                hint=f"run both together, such as `forebay run edge.{name} edge.{service.name}`",
            )
    return followed
