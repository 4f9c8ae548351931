"""Confirmation of commands: the core asks each destination that something is unconfirmed of, and frees (rule C1).

The service that a command is for is its only confirmer. A destination that is away is asked more and more rarely, and
none of the others waits for it; one that has confirmed everything is asked once more when its grace is over (O1), which
frees, once more to tell it the floor, and then not until something is sent there again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.books import Books
from forebay.command import parse_destination
from forebay.confirming import TIMEOUT, Confirming
from forebay.dispatching import STREAM, CommandRelay
from forebay.errors import LinkError, StoreError, TopologyError
from forebay.identity import Place
from forebay.jetstream.claims import claim
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import stream_state
from forebay.jetstream.topology.nodes import durable_of
from forebay.outbox import Outbox
from forebay.protocol.confirmation import ConfirmedBy, Question
from forebay.registry import note_registered
from forebay.tail import GRACE, SHED_GRACE
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

AT_ONCE = 16
"""Destinations that are asked at the same time."""

MOST_INTERVAL = 60.0
"""Seconds between questions to a destination that does not answer."""

_WITH_SOMETHING = """
    select distinct o.destination from forebay_origin o where o.destination <> '' and (o.bytes > 0
      or (exists (select 1 from forebay_dropped d join forebay_epoch e on e.id = d.epoch where e.origin = o.id)
          and not exists (select 1 from forebay_destination g where g.node || '/' || g.service = o.destination
                          and g.removed_at is not null)))"""
"""The drops of a node that was removed are told only when something is sent to it again."""


_REMOVED = """
    select 1 as removed from forebay_destination where node || '/' || service = :to and removed_at is not null"""


class DestinationConfirming(Confirming):
    """Asks one destination for one service's outbox; ``Destinations`` says when."""

    def __init__(
        self,
        destination: str,
        outbox: Outbox,
        store: UnitStore,
        connection: Connection,
        relay: CommandRelay,
        *,
        grace: float = GRACE,
        short_of_room: Callable[[], object] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            outbox,
            store,
            connection,
            relay,
            grace=grace,
            short_of_room=short_of_room,
            clock=clock,
            destination=destination,
        )
        self._to = parse_destination(destination)
        self._claimed: str | None = None
        self.due = 0.0
        self.busy = False
        self._answered = Backoff(first=0.1, most=5.0)
        self._silent = Backoff(first=1.0, most=MOST_INTERVAL)
        self.away: str | None = None

    @property
    def needed(self) -> list[str]:
        """The one service that the commands are for."""
        return [self._to.service]

    async def turn(self) -> bool:
        """Ask, free, and say when next; return whether nothing is left here of what was sent.

        Raises:
            StoreError: the database failed.
        """
        self.due = float("inf")  # until it is known; ``hurry`` brings it back
        said_all = not await self._store.read(self._anything)
        try:
            moved = await self.ask()
            await self._claim()
            self.away = None
            self._silent.reset()
        except (LinkError, TopologyError) as error:
            if self.away is None:
                logger.info(
                    "confirmation.unanswered",
                    extra={"service": self._outbox.service, "destination": self.destination, "reason": str(error)},
                )
            self.away = str(error)
            self._claimed = None  # it may be another durable when it answers again
            self._next(self._silent.next(), hurried=False)
            return said_all and await self._store.read(self._is_removed)
        await self.free()
        complete = await self._store.read(self._all_confirmed, self.needed)
        await self._keep_books(settled=complete)
        if moved or complete:
            self._answered.reset()
        if complete:
            self._next(SHED_GRACE if self._tail.is_long else max(self._grace, 1.0))
        else:
            self._next(self._answered.next())
        # What was freed last moved the floor. The node has to hear of that too: after a restore of the core its holes
        # would else stay open until the next command but one.
        return complete and said_all and not await self._store.read(self._anything)

    def _next(self, pause: float, *, hurried: bool = True) -> None:
        at = self._clock() + pause
        self.due = min(self.due, at) if hurried else at

    def hurry(self) -> None:
        """Something was sent: ask soon, unless it is away."""
        if self.away is None:
            self.due = min(self.due, self._clock())

    async def _claim(self) -> None:
        """Let the node's durable be read by no other database than the one that answers (S4)."""
        store_id = self.store_ids.get(self._to.service)
        if store_id is not None and store_id != self._claimed:
            await claim(self._connection, STREAM, durable_of(self._to), store_id)
            await self._store.write(note_registered, self._to)
            self._claimed = store_id

    async def _encode(self, question: Question) -> bytes:
        # Looked at after the question was prepared: what it says was forwarded is not beyond this end.
        state = await stream_state(self._connection, STREAM)
        if state.created != self._relay.incarnation:
            self._claimed = None  # its durables are others
            self._relay.doubt_stream()
        return msgspec.json.encode(msgspec.structs.replace(question, incarnation=state.created, stream_end=state.last))

    def _subject(self, consumer: str) -> str:
        return f"confirm.command.{self._to.node}.{consumer}"

    def _list_stands(self) -> bool:
        return True

    async def _learn(self, known: ConfirmedBy | None) -> None:
        pass

    def _lanes(self, tx: Transaction) -> list[str]:
        rows = tx.execute("select lane from forebay_origin where destination = :to order by id", to=self.destination)
        return [row["lane"] for row in rows]

    def _anything(self, tx: Transaction) -> bool:
        return bool(tx.execute(f"{_WITH_SOMETHING} and o.destination = :to", to=self.destination))

    def _is_removed(self, tx: Transaction) -> bool:
        return bool(tx.execute(_REMOVED, to=self.destination))

    def _may_shed(self, upto: Mapping[str, Place]) -> None:
        for lane in self._outbox.lanes:
            if lane in upto:
                self._outbox.sheddable_to[lane, self.destination] = upto[lane]
            else:
                self._outbox.sheddable_to.pop((lane, self.destination), None)

    async def confirmed(self) -> dict[tuple[str, str], Place]:
        """Return per lane and destination the place up to which everything is confirmed, as far as is known."""
        found = await self._store.read(self._tail.confirmed_upto, self._known(self.needed))
        return {(lane, self.destination): place for lane, place in found.items()}


class Destinations:
    """Asks all destinations of one service's outbox, each in its time. Start it with ``run``.

    Attributes:
        asking: the destinations that something is here for.
    """

    def __init__(
        self,
        outbox: Outbox,
        store: UnitStore,
        connection: Connection,
        *,
        grace: float = GRACE,
        short_of_room: Callable[[], object] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._connection = connection
        self._grace = grace
        self._short_of_room = short_of_room
        self._clock = clock
        self._relay: CommandRelay | None = None
        self._wakened = anyio.Event()
        self._begun = anyio.Event()
        self.asking: dict[str, DestinationConfirming] = {}

    def confirming(self, destination: str) -> DestinationConfirming:
        """Return what asks a destination; one that nothing is here for is not asked."""
        return self.asking.get(destination) or self._make(destination)

    def attach(self, relay: CommandRelay) -> None:
        """Say which relay sends; once, before ``run``."""
        self._relay = relay

    def forwarded(self, destination: str) -> None:
        """Say that something was sent to a destination."""
        self._of(destination).hurry()
        self._wakened.set()

    async def confirmed_to(self) -> Mapping[tuple[str, str], Place]:
        """Return what is confirmed already; waits for the first round of answers, at most ``TIMEOUT`` (O1)."""
        with anyio.move_on_after(TIMEOUT):
            await self._begun.wait()
        found: dict[tuple[str, str], Place] = {}
        for each in list(self.asking.values()):
            found |= await each.confirmed()
        return found

    async def books(self) -> list[Books]:
        """Return the books of each destination that something is here for."""
        return [book for each in list(self.asking.values()) for book in await each.books()]

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Ask and free until cancelled."""
        for row in await self._store.read(lambda tx: tx.execute(_WITH_SOMETHING)):
            self._of(row["destination"])
        task_status.started()
        limiter = anyio.CapacityLimiter(AT_ONCE)
        async with anyio.create_task_group() as tasks:
            while True:
                await self._connection.wait_connected()
                self._wakened = anyio.Event()
                now = self._clock()
                for each in self.asking.values():
                    if each.due <= now and not each.busy:
                        each.busy = True
                        tasks.start_soon(self._turn, each, limiter)
                if not any(each.busy for each in self.asking.values()):
                    self._begun.set()
                waiting = [each.due for each in self.asking.values() if not each.busy]
                with anyio.move_on_after(max(0.02, min(waiting) - self._clock()) if waiting else None):
                    await self._wakened.wait()

    async def _turn(self, each: DestinationConfirming, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            try:
                done = await each.turn()
            except StoreError as error:
                done, each.due = False, self._clock() + 1.0
                logger.warning("confirmation.waits", extra={"destination": each.destination, "reason": str(error)})
        each.busy = False
        if done and each.due > self._clock():  # else something was sent meanwhile
            self.asking.pop(each.destination, None)
            if self._relay is not None:
                self._relay.forget(each.destination)
        self._wakened.set()

    def _of(self, destination: str) -> DestinationConfirming:
        found = self.asking.get(destination)
        if found is None:
            found = self.asking[destination] = self._make(destination)
        return found

    def _make(self, destination: str) -> DestinationConfirming:
        if self._relay is None:
            raise RuntimeError("destinations are asked for a relay: attach it first")
        return DestinationConfirming(
            destination,
            self._outbox,
            self._store,
            self._connection,
            self._relay,
            grace=self._grace,
            short_of_room=self._short_of_room,
            clock=self._clock,
        )
