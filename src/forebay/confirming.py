"""Confirmation on the node's side: ask every consumer that needs the events, and free what all of them confirmed.

One request at a time per consumer (C1). Nothing is freed by an acknowledgement of the broker, by a timer, or by an
answer from before a grace (O1); an empty, missing or older list of consumers frees nothing (S3).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.books import Books, keep_books, read_books
from forebay.crash_points import reach
from forebay.errors import LinkError, PublishRefusedError, StoreError
from forebay.followers import Followers
from forebay.freeing import standing
from forebay.identity import Place
from forebay.jetstream.connection import Connection
from forebay.outbox import Outbox
from forebay.protocol.confirmation import (
    Answer,
    Confirmations,
    ConfirmedBy,
    Question,
    unpassed,
)
from forebay.protocol.resending import missed
from forebay.questions import LISTED, Asked, clock_offset, decode_answer, decode_list, prepare
from forebay.relay import Relay
from forebay.sequences import Range, within, without
from forebay.tail import GRACE, NOBODY, SHED_GRACE, Tail
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

TIMEOUT = 2.0
"""Seconds for one answer."""

LATER = 0.1
"""Seconds from the first event that was forwarded to the question: asked at once, consumers have hardly committed it,
and each event of a steady flow would have a question of its own."""

IDLE_INTERVAL = 300.0
"""Seconds between questions while everything is confirmed: they keep the list of consumers and the grace going."""

BOOKS_INTERVAL = 60.0
"""Seconds between the books that are written down while events are under way; and once when all are confirmed."""

Fate = Literal["confirmed", "pending", "missed", "dropped", "withheld"]
"""What became of an event for one consumer."""

CLOCK_NOISE = 1.0
"""Seconds by which two measurements of the clock's offset may differ without being told at once."""


class Confirming:
    """Asks for one service's outbox. Start it with ``run``; ``wake`` it when something was forwarded.

    Attributes:
        destination: of commands, where it asks for those alone (``destinations``); empty for events.
        clock_offset: seconds that the core's wall clock is ahead of this machine's; None where that is not known.
    """

    def __init__(
        self,
        outbox: Outbox,
        store: UnitStore,
        connection: Connection,
        relay: Relay,
        *,
        grace: float = GRACE,
        short_of_room: Callable[[], object] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        destination: str = "",
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._connection = connection
        self._relay = relay
        self._grace = grace
        self._clock = clock
        self._wakened = anyio.Event()
        self.destination = destination
        self._tail = Tail(outbox, store, destination, grace, short_of_room)
        self.confirmed_by: ConfirmedBy | None = None
        self.consumers: dict[str, Confirmations] = {}
        self.followers = Followers(outbox, store, self.consumers, clock)
        self._listed: dict[str, int] = {}
        self._asked = anyio.Event()
        self._missed: dict[str, dict[str, list[Range]]] = {}
        self._unpassed: dict[str, dict[str, str]] = {}
        self.clock_offset: float | None = None
        self._clock_told = False
        self.store_ids: dict[str, str] = {}
        self._most_listed = LISTED
        self._books_at = 0.0
        self._books_settled = False

    def wake(self) -> None:
        """Say that there is something new to ask about."""
        self._wakened.set()

    @property
    def needed(self) -> list[str]:
        """The consumers of the core that need this service's events, as far as is known."""
        return self.confirmed_by.needing(self._outbox.service) if self.confirmed_by else []

    @property
    def listed(self) -> list[str]:
        """All who need this service's events: the consumers of the core, and the followers on the node."""
        return [*self.needed, *self.followers.names]

    @property
    def _confirmers(self) -> list[str]:
        """Who must have confirmed what is freed; empty while the core's consumers are not known (S3)."""
        return self.listed if self.needed else []

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Ask and free until cancelled."""
        self.confirmed_by = await self._store.read(self._outbox.confirmed_by)
        await self.followers.load()
        task_status.started()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ask_followers)
            await self._ask_consumers()

    async def _ask_followers(self) -> None:
        """Ask the followers whenever they have got further, with a link or without."""
        while True:
            try:
                if await self.followers.ask():
                    await self._keep_books(settled=await self._store.read(self._all_confirmed, self.followers.names))
            except StoreError as error:
                logger.info("confirmation.unanswered", extra={"service": self._outbox.service, "reason": str(error)})
            await self.followers.moved()

    async def _ask_consumers(self) -> None:
        backoff = Backoff(first=2 * LATER, most=5.0)
        while True:
            await self._connection.wait_connected()
            self._wakened = anyio.Event()
            moved, complete = False, False
            try:
                moved = await self.ask()
                await self.followers.ask()
                await self.free()
                complete = await self._store.read(self._all_confirmed, self.needed)
                await self._keep_books(settled=complete)
            except (LinkError, StoreError) as error:
                logger.info("confirmation.unanswered", extra={"service": self._outbox.service, "reason": str(error)})
            self._asked.set()
            if moved:
                backoff.reset()
            if complete and self._clock_told:
                backoff.reset()
                # A second answer frees, a grace after the first; soon where the tail is above its share.
                pause = SHED_GRACE if self._tail.is_long else min(IDLE_INTERVAL, max(self._grace, 1.0))
                with anyio.move_on_after(pause):
                    await self._wakened.wait()
                    await anyio.sleep(LATER)
            else:
                await anyio.sleep(backoff.next())

    async def ask(self) -> bool:
        """Ask each needed consumer once; return whether any confirmed more than before.

        Raises:
            LinkError: one of them did not answer in time; the others were asked.
        """
        if not self.needed:
            reply = await self._connection.request(f"confirm.list.{self._outbox.node}", b'{"v":1}', timeout=TIMEOUT)
            await self._learn(decode_list(reply.body))
        asked = await self._store.read(self._prepare)
        question = await self._encode(asked.question)
        reach("confirm.asking")
        moved, failure = False, None
        for consumer in self.needed:
            began = time.time()
            try:
                reply = await self._connection.request(self._subject(consumer), question, timeout=TIMEOUT)
                answer = decode_answer(reply.body, consumer)
            except LinkError as error:
                if isinstance(error, PublishRefusedError):  # too large for the broker: ask about fewer places
                    self._most_listed = max(1, self._most_listed // 4)
                failure = error
                continue
            self._measured(clock_offset(answer.clock, began, time.time()), asked.question.clock_offset)
            self.store_ids[consumer] = answer.store
            reach("confirm.answered")
            known_before = self.consumers.setdefault(consumer, Confirmations())
            self._unpassed[consumer] = unpassed(asked.question, answer, known_before.passed_upto)
            moved |= known_before.record(answer, self._clock())
            self._repair(asked, answer)
            known = answer.confirmed_by
            self._listed[consumer] = known.version if known and known.consumers else 0
            await self._learn(known)
        if failure:
            raise failure
        return moved

    def _measured(self, offset: float | None, told: float | None) -> None:
        self.clock_offset = None if offset is None else round(offset, 3)
        # What was measured just now is told by the next question, and soon: event times are corrected by it.
        self._clock_told = offset is None or (told is not None and abs(offset - told) < CLOCK_NOISE)

    async def confirmed_upto(self) -> dict[str, Place]:
        """Return per lane the place up to which all needed consumers have everything; lanes without one are left out.

        Waits for the first round of answers, at most ``TIMEOUT``: after reopening, a node asks before it sends (O1).
        """
        if not await self._store.read(self._outbox.has_earlier_events):
            return {}
        with anyio.move_on_after(TIMEOUT):
            await self._asked.wait()
        return await self._store.read(self._tail.confirmed_upto, self._known(self.needed))

    async def free(self) -> int:
        """Free every lane's ripe prefix; return how many rows went."""
        await self.followers.load()
        stands = self._list_stands()
        known = self._known(self._confirmers) if stands else {}
        freed = await self._tail.free(known)
        self._may_shed(await self._store.read(self._tail.sheddable, known) if stands else {})
        if freed:
            logger.info("outbox.freed", extra={"service": self._outbox.service, "events": freed})
        return freed

    def _known(self, names: Sequence[str]) -> dict[str, Confirmations]:
        return {name: self.consumers.get(name, NOBODY) for name in names}

    def _list_stands(self) -> bool:
        """Whether every needed consumer's latest answer carries the list that is kept: any other frees nothing (S3)."""
        kept = self.confirmed_by.version if self.confirmed_by else 0
        older = {name: self._listed[name] for name in self.needed if self._listed.get(name, kept) < kept}
        if older:
            logger.warning(
                "confirmation.list_is_older",
                extra={"service": self._outbox.service, "kept": kept, "answered": older},
            )
        return all(self._listed.get(name) == kept for name in self.needed)

    async def books(self) -> list[Books]:
        """Return the books of each lane and needed consumer, as they stand (O3); of "" where none is known yet."""
        consumers = {name: self.consumers.get(name, NOBODY) for name in self.listed or [""]}
        lanes = await self._store.read(self._lanes)
        return await self._store.read(read_books, lanes, consumers, self._missed, self.destination)

    async def _keep_books(self, *, settled: bool) -> None:
        """Write the books down for those who look into the database, at most once in ``BOOKS_INTERVAL``."""
        if self._clock() < self._books_at and not (settled and not self._books_settled):
            return
        self._books_at, self._books_settled = self._clock() + BOOKS_INTERVAL, settled
        if self.listed:
            await self._store.write(keep_books, await self.books(), time.time_ns() // 1_000_000)

    def whereabouts(self, place: Place) -> dict[str, tuple[bool, float | None]]:
        """Return for each needed consumer whether it confirmed a place, and at which wall time that was known first."""
        wall_zero = time.time() - self._clock()  # the grace runs on a clock that nobody can set
        found = {}
        for name in self.listed:
            known = self.consumers.get(name, NOBODY)
            at = known.confirmed_at(place)
            found[name] = (known.confirmed(place), None if at is None else wall_zero + at)
        return found

    def fate(self, place: Place, consumer: str, *, dropped: bool) -> Fate:
        """Return what became of an event for a consumer; ``dropped``: it is not here any more, the budget took it."""
        known = self.consumers.get(consumer, NOBODY)
        if known.confirmed(place):
            return "confirmed"
        if known.wanted(place):
            return "withheld"
        if dropped:
            return "dropped"
        missed = known.missing(place) or within(place.sequence, self._missed.get(consumer, {}).get(place.epoch, ()))
        return "missed" if missed else "pending"

    def _prepare(self, tx: Transaction) -> Asked:
        states = self._relay.states(self.destination)
        known = {lane: self._unpassed_in(lane) for lane in states}
        offset = None if self.destination else self.clock_offset  # it is the node's to tell
        needed = [self.consumers.get(name, NOBODY) for name in self.needed]
        return prepare(tx, self._outbox.service, states, known, self._most_listed, offset, self.destination, needed)

    async def _encode(self, question: Question) -> bytes:
        return msgspec.json.encode(question)

    def _subject(self, consumer: str) -> str:
        return f"confirm.event.{consumer}.{self._outbox.node}"

    def _lanes(self, _: Transaction) -> list[str]:
        """The lanes that there is an origin of."""
        return list(self._outbox.lanes)

    def _may_shed(self, upto: Mapping[str, Place]) -> None:
        """Say up to which place of each lane rows may go for want of room."""
        self._outbox.sheddable = upto

    def _unpassed_in(self, lane: str) -> set[str] | None:
        """The oldest epoch of a lane that each needed consumer has not passed; None where that is not known of one."""
        known = [self._unpassed.get(consumer, {}).get(lane) for consumer in self.needed]
        return {epoch for epoch in known if epoch is not None} if known and None not in known else None

    def _repair(self, asked: Asked, answer: Answer) -> None:
        """Let the relay send again what the consumer has read past without it, or what no stream has any more."""
        if answer.incarnation != self._relay.incarnation:
            self._relay.doubt_stream()
        found = self._missed[answer.consumer] = {}
        for lane, epochs in asked.forwarded.items():
            for epoch, segments in epochs.items():
                if ranges := without(missed(epoch, segments, answer), asked.gone[epoch]):
                    found[epoch] = ranges
                    self._relay.send_again(lane, epoch, ranges, self.destination)

    def _all_confirmed(self, tx: Transaction, names: Sequence[str]) -> bool:
        """Whether nothing is under way to these: rows are confirmed, drops and withheld places passed."""
        known = [self.consumers.get(name, NOBODY) for name in names]
        epochs = [each for lane in self._outbox.lanes for each in standing(tx, lane, self.destination)]
        return bool(known) and all(
            each.watermark(epoch.epoch, epoch.first, epoch.aside) >= epoch.last for each in known for epoch in epochs
        )

    async def _learn(self, known: ConfirmedBy | None) -> None:
        if known is None or not known.consumers:
            return
        if self.confirmed_by is None or known.version > self.confirmed_by.version:
            await self._store.write(self._outbox.remember_confirmed_by, known)
            reach("confirm.learned")
            self.confirmed_by = known
            self._may_shed({})  # it was what the consumers of the older list have
