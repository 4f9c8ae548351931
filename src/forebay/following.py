"""Following: a service handles the events of other services of its node straight from their outboxes.

It needs no broker and no link. A batch is read from the followed store; its effects, the inbox and the position are
committed in the follower's own store. What a crash leaves between the two is read again, and known to the inbox. Drops
and the floor reach it as they reach a consumer of the core, and what nobody has any more is a gap on record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import anyio
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.closing import Closed, Statement, close, decide, forget_given_up, says_something
from forebay.committing import Committing
from forebay.crash_points import reach
from forebay.envelope import format_time
from forebay.errors import StoreError
from forebay.followed import FollowedLane, Page
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS, parse_place, partition_of
from forebay.inbox import answered, epochs_of
from forebay.parking import Whose
from forebay.protocol.confirmation import VERSION, Answer, EpochAnswer, OriginQuestion, Question
from forebay.taken import Failing, Taken
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)


class Followed(NamedTuple):
    """A service that is followed.

    Attributes:
        service: its name.
        store_id: of its store.
        lanes: all of its lanes: which events are handled is not asked, as for a consumer of the core (S2).
        on_moved: called after events were taken in.
    """

    service: str
    store_id: str
    lanes: list[FollowedLane]
    on_moved: Callable[[], None]


class Follower:
    """Follows the outboxes of other services for one service. Start it with ``run``; ``wake`` it when they committed.

    Args:
        name: the following service's.
        node: the node of all of them.
        handlers: what is done with the events.
        store: the following service's.
        store_id: of that store.
        followed: the outboxes.
        clock: seconds, monotonic.

    Attributes:
        problem: why it does not follow at the moment, in a sentence; None while it does.
        committing: what its events go through.
    """

    def __init__(
        self,
        name: str,
        node: str,
        handlers: Handlers,
        store: UnitStore,
        store_id: str,
        followed: Sequence[Followed],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.problem: str | None = "not started"
        self._node = node
        self._handlers = handlers
        self._store = store
        self._store_id = store_id
        self._followed = list(followed)
        whose = Whose(node, tuple(each.service for each in followed), followed=True)
        self.committing = Committing(name, handlers, store, clock, whose)
        self._partition = partition_of(node, PARTITIONS)
        self._wakened = anyio.Event()
        self._begun = False

    @property
    def totals(self) -> Taken:
        """What was done since the start, in events."""
        return self.committing.totals

    @property
    def suspended(self) -> str | None:
        """Why it only retries what is parked and takes nothing new in; None while it does (F2)."""
        return self.committing.suspended

    def wake(self) -> None:
        """Say that a followed service has committed; cheap, may be called from the event loop at any time."""
        self._wakened.set()

    def look_again(self) -> None:
        """Say that the inbox or the parking was changed by somebody else: begin again from what they say."""
        self.committing.retries.look_again()
        self._begun = False
        self._wakened.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled; the transaction under way is finished first."""
        task_status.started()
        backoff = Backoff()
        while True:
            try:
                await self._begin()
                self.problem = None
                backoff.reset()
                logger.info("follower.started", extra={"service": self.name})
                await self._follow()
            except StoreError as error:
                self.problem = str(error)
                logger.warning("follower.paused", extra={"service": self.name, "reason": self.problem})
                await anyio.sleep(backoff.next())

    async def answer(self, question: Question) -> Answer:
        """Say how far it is with the epochs of a followed service (C1).

        Raises:
            StoreError: the database failed.
        """
        return Answer(
            v=VERSION,
            consumer=self.name,
            store=self._store_id,
            clock=format_time(datetime.now(UTC)),
            incarnation="",  # there is no stream between
            stream_end=0,
            position=0,
            epochs=await self._store.read(self._answered, question.origins),
        )

    def _answered(self, tx: Transaction, origins: Sequence[OriginQuestion]) -> dict[str, EpochAnswer]:
        said: dict[str, EpochAnswer] = {}
        for origin in origins:
            floor = parse_place(origin.floor) if origin.floor else None
            said |= answered(tx, self._node, origin.service, [link.epoch for link in origin.chain], floor)
        return said

    async def _begin(self) -> None:
        await self.committing.retries.begin()
        await self._find_places()

    async def _find_places(self) -> None:
        """Set each lane to where the inbox is: the inbox is what counts, and may have been restored from a backup."""
        for followed in self._followed:
            for lane in followed.lanes:
                epochs = await lane.standing()
                names = [each.epoch for each in epochs]
                lane.begin(epochs, await self._store.read(epochs_of, self._node, followed.service, names))
        self._begun = True

    async def _follow(self) -> None:
        while True:
            self._wakened = anyio.Event()
            if not await self.take_next():
                with anyio.move_on_after(self.committing.retries.until_next()):
                    await self._wakened.wait()
            await anyio.lowlevel.checkpoint()

    async def take_next(self) -> bool:
        """Retry what is due and take in a page of each lane; return whether there was anything to do.

        Raises:
            StoreError: a database failed; what was committed before is kept.
        """
        if not self._begun:
            await self._find_places()
        done = await self.committing.retry_due()
        for followed in self._followed:
            done |= await self._read(followed)
        return done

    async def _read(self, followed: Followed) -> bool:
        """Take in a page of each lane; return whether there was any."""
        read = False
        for lane in followed.lanes:
            page = None if self.suspended else await lane.next()
            if page is not None:
                read = True
                reach("consume.delivered")
                with anyio.CancelScope(shield=True):
                    await self._take(followed, lane, page)
        if read:
            followed.on_moved()
        return read

    async def _take(self, followed: Followed, lane: FollowedLane, page: Page) -> None:
        if page.floor is not None or page.drops:
            said = OriginQuestion(followed.service, lane.name, page.chain, floor=page.floor, drops=page.drops)
            await self._hear(Statement(self._node, said, followed.store_id, 0))
            lane.floor = page.floor or lane.floor

        def committed(_: int, end: int) -> None:
            lane.read(page, end)

        stream = f"outbox/{followed.service}/{lane.name}"
        done = await self.committing.commit(stream, followed.store_id, lane.deliveries(page), committed)
        if done == len(page.messages):
            lane.read(page, done)

    async def _hear(self, statement: Statement) -> None:
        """Pass what the followed store says that it no longer has (O2, O3, B4)."""
        if not await self._store.read(says_something, statement):
            return
        await self.committing.settle(decide, self._handlers, statement, self._partition)
        if statement.floor is None:
            return
        closed = Closed(Taken())

        def run(work: UnitOfWork, failing: Failing) -> Taken:
            nonlocal closed
            closed = close(work, self._handlers, statement, self._partition, failing)
            return closed.taken

        await self.committing.settle(run)
        if closed.taken.missing:
            logger.error(
                "follower.gaps_recorded",
                extra={"service": self.name, "followed": statement.said.service, "events": closed.taken.missing},
            )
        if closed.back_to is not None:  # what was held and given up for want of room is still in the outbox
            await self._store.write(forget_given_up, statement, closed.back_to)
            self._begun = False
