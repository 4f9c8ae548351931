"""Confirmation on the node's side: ask every consumer that needs the events, and free what all of them confirmed.

One request at a time per consumer (C1). Nothing is freed by an acknowledgement of the broker, by a timer, or by an
answer from before a grace (O1); an empty, missing or older list of consumers frees nothing (S3).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.errors import LinkError, StoreError
from forebay.identity import Place
from forebay.jetstream.connection import Connection
from forebay.outbox import Outbox
from forebay.protocol.confirmation import VERSION, Answer, Confirmations, ConfirmedBy, OriginQuestion, Question
from forebay.protocol.resending import Forwarded, missed
from forebay.relay import Relay
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

GRACE = 24 * 3600.0
"""Seconds for which a confirmed row stays (the grace tail), unless it takes more than ``TAIL_SHARE`` of the budget."""

TAIL_SHARE = 0.2
"""Share of a lane's budget that confirmed rows may take before they go earlier."""

SHED_GRACE = 10.0
"""Seconds between the two answers that free what is beyond ``TAIL_SHARE``."""

TIMEOUT = 2.0
"""Seconds for one answer."""

IDLE_INTERVAL = 300.0
"""Seconds between questions while everything is confirmed: they keep the list of consumers and the grace going."""

FREE_LIMIT = 1000
"""Rows freed in one transaction, so that writers wait for milliseconds only."""


class Asked(NamedTuple):
    """A question, and what had been forwarded when it was asked, per lane and epoch."""

    question: Question
    forwarded: dict[str, dict[str, list[Forwarded]]]


class Confirming:
    """Asks for one service's outbox. Start it with ``run``; ``wake`` it when something was forwarded."""

    def __init__(
        self,
        outbox: Outbox,
        store: UnitStore,
        connection: Connection,
        relay: Relay,
        *,
        grace: float = GRACE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._connection = connection
        self._relay = relay
        self._grace = grace
        self._clock = clock
        self._wakened = anyio.Event()
        self._tail_is_long = False
        self.confirmed_by: ConfirmedBy | None = None
        self.consumers: dict[str, Confirmations] = {}
        self._listed: dict[str, int] = {}
        self._asked = anyio.Event()

    def wake(self) -> None:
        """Say that there is something new to ask about."""
        self._wakened.set()

    @property
    def needed(self) -> list[str]:
        """The consumers that need this service's events, as far as is known."""
        return self.confirmed_by.needing(self._outbox.service) if self.confirmed_by else []

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Ask and free until cancelled."""
        self.confirmed_by = await self._store.read(self._outbox.confirmed_by)
        task_status.started()
        backoff = Backoff(first=0.1, most=5.0)
        while True:
            await self._connection.wait_connected()
            self._wakened = anyio.Event()
            moved, complete = False, False
            try:
                moved = await self.ask()
                await self.free()
                complete = await self._store.read(self._all_confirmed)
            except (LinkError, StoreError) as error:
                logger.info("confirmation.unanswered", extra={"service": self._outbox.service, "reason": str(error)})
            self._asked.set()
            if moved:
                backoff.reset()
            if complete:
                backoff.reset()
                # A tail above its share needs a second answer, at least the shed grace after the first, to go.
                with anyio.move_on_after(SHED_GRACE if self._tail_is_long else IDLE_INTERVAL):
                    await self._wakened.wait()
            else:
                await anyio.sleep(backoff.next())

    async def ask(self) -> bool:
        """Ask each needed consumer once; return whether any confirmed more than before.

        Raises:
            LinkError: one of them did not answer in time; the others were asked.
        """
        if not self.needed:
            reply = await self._connection.request(f"confirm.list.{self._outbox.node}", b'{"v":1}', timeout=TIMEOUT)
            await self._learn(_decode_list(reply.body))
        asked = await self._store.read(self._prepare)
        question = msgspec.json.encode(asked.question)
        moved, failure = False, None
        for consumer in self.needed:
            try:
                reply = await self._connection.request(
                    f"confirm.event.{consumer}.{self._outbox.node}", question, timeout=TIMEOUT
                )
                answer = _decode_answer(reply.body, consumer)
            except LinkError as error:
                failure = error
                continue
            moved |= self.consumers.setdefault(consumer, Confirmations()).record(answer, self._clock())
            self._repair(asked, answer)
            known = answer.confirmed_by
            self._listed[consumer] = known.version if known and known.consumers else 0
            await self._learn(known)
        if failure:
            raise failure
        return moved

    async def confirmed_upto(self) -> dict[str, Place]:
        """Return per lane the place up to which all needed consumers have everything; lanes without one are left out.

        Waits for the first round of answers, at most ``TIMEOUT``: after reopening, a node asks before it sends (O1).
        """
        if not await self._store.read(self._outbox.has_earlier_events):
            return {}
        with anyio.move_on_after(TIMEOUT):
            await self._asked.wait()
        return await self._store.read(self._confirmed_upto)

    def _confirmed_upto(self, tx: Transaction) -> dict[str, Place]:
        known = [self.consumers.get(name) for name in self.needed]
        found: dict[str, Place] = {}
        for lane in self._outbox.lanes if known else ():
            for end in self._outbox.ends(tx, lane):
                upto = min(each.watermark(end.epoch) if each else 0 for each in known)
                if upto:
                    found[lane] = Place(end.epoch, min(upto, end.sequence))
                if upto < end.sequence:
                    break
        return found

    async def free(self) -> int:
        """Free every lane's ripe prefix; return how many rows went."""
        freed = 0
        self._tail_is_long = False
        if not self._list_stands():
            return 0
        for lane in self._outbox.lanes:
            while count := await self._free_some(lane):
                freed += count
        if freed:
            logger.info("outbox.freed", extra={"service": self._outbox.service, "events": freed})
        return freed

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

    async def _free_some(self, lane: str) -> int:
        needed = [self.consumers.get(name) for name in self.needed]
        if not needed:
            return 0
        oldest, excess = await self._store.read(self._oldest, lane)
        if oldest is None:
            return 0
        grace = min(SHED_GRACE, self._grace) if excess else self._grace
        upto = min(known.ripe(oldest.epoch, grace) if known else 0 for known in needed)
        if upto < oldest.sequence:
            self._tail_is_long |= excess > 0
            return 0
        limit = min(FREE_LIMIT, excess or FREE_LIMIT)
        return await self._store.write(self._outbox.free, lane, oldest.epoch, upto, limit=limit)

    def _oldest(self, tx: Transaction, lane: str) -> tuple[Place | None, int]:
        """Return a lane's oldest row, and how many rows it has above the share of the budget that a tail may take."""
        rows = tx.execute(
            "select e.epoch, r.sequence, o.bytes, o.written - o.confirmed as rows from forebay_origin o"
            " join forebay_epoch e on e.origin = o.id join forebay_outbox r on r.epoch = e.id"
            " where o.lane = :lane and o.destination = '' order by e.id, r.sequence limit 1",
            lane=lane,
        )
        if not rows:
            return None, 0
        row = rows[0]
        share = self._outbox.lanes[lane].budget_bytes * TAIL_SHARE
        average = row["bytes"] / row["rows"]
        excess = int((row["bytes"] - share) / average) + 1 if row["bytes"] > share else 0
        return Place(row["epoch"], row["sequence"]), excess

    def whereabouts(self, place: Place) -> dict[str, tuple[bool, float | None]]:
        """Return for each needed consumer whether it confirmed a place, and at which wall time that was known first."""
        nobody = Confirmations()
        wall_zero = time.time() - self._clock()  # the grace runs on a clock that nobody can set
        found = {}
        for name in self.needed:
            known = self.consumers.get(name, nobody)
            at = known.confirmed_at(place)
            found[name] = (known.confirmed(place), None if at is None else wall_zero + at)
        return found

    def _prepare(self, tx: Transaction) -> Asked:
        """Return what to ask, and what had been forwarded by then: an answer judges nothing that came later (C2)."""
        origins = []
        forwarded: dict[str, dict[str, list[Forwarded]]] = {}
        for lane, state in self._relay.lanes.items():
            sent = state.sent
            forwarded[lane] = state.known_forwards(self._outbox.ends(tx, lane))
            chain = self._outbox.chain(tx, lane)
            if chain:
                segment = state.forwards.covering(sent) if sent else None
                origins.append(
                    OriginQuestion(
                        service=self._outbox.service,
                        lane=lane,
                        chain=chain,
                        floor=self._outbox.floor(tx, lane),
                        forwarded=str(sent) if sent else None,
                        stream_sequence=segment.stream_sequence if segment else None,
                    )
                )
        return Asked(Question(VERSION, origins), forwarded)

    def _repair(self, asked: Asked, answer: Answer) -> None:
        """Let the relay send again what the consumer has read past without it, or what no stream has any more."""
        if answer.incarnation != self._relay.incarnation:
            self._relay.doubt_stream()
        for lane, epochs in asked.forwarded.items():
            for epoch, segments in epochs.items():
                if ranges := missed(epoch, segments, answer):
                    self._relay.send_again(lane, epoch, ranges)

    def _all_confirmed(self, tx: Transaction) -> bool:
        if not self.needed:
            return False
        ends = [end for lane in self._outbox.lanes for end in self._outbox.ends(tx, lane)]
        return all(
            name in self.consumers and self.consumers[name].watermark(end.epoch) >= end.sequence
            for name in self.needed
            for end in ends
        )

    async def _learn(self, known: ConfirmedBy | None) -> None:
        if known is None or not known.consumers:
            return
        if self.confirmed_by is None or known.version > self.confirmed_by.version:
            await self._store.write(self._outbox.remember_confirmed_by, known)
            self.confirmed_by = known


def _decode_answer(body: bytes, consumer: str) -> Answer:
    try:
        answer = msgspec.json.decode(body, type=Answer)
    except msgspec.DecodeError as error:
        raise LinkError(f"the confirmation of {consumer} cannot be read: {error}") from error
    if (answer.v, answer.consumer) != (VERSION, consumer):
        raise LinkError(f"{consumer} was asked, and {answer.consumer!r} answered in version {answer.v}")
    return answer


def _decode_list(body: bytes) -> ConfirmedBy | None:
    try:
        return msgspec.json.decode(body, type=ConfirmedBy | None)
    except msgspec.DecodeError as error:
        raise LinkError(f"the list of consumers cannot be read: {error}") from error
