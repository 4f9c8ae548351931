"""The services of this node that follow an outbox: remembered in its store, and asked without a broker.

A follower is a consumer that must have the events before they are freed (O1, C1). It is remembered from the first time
that it runs beside the followed service, so that a process that was started without it frees nothing that it needs.
Only a person takes it off the list, with a reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio

from forebay.errors import StoreError
from forebay.freeing import chain
from forebay.outbox import Outbox
from forebay.protocol.confirmation import VERSION, Answer, Confirmations, OriginQuestion, Question
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

ON_THE_NODE = "@node"
"""What a follower is listed as among the consumers, behind its service's name: a consumer of the core may have the same
name. No name has this character."""

_REMEMBER = """
    insert into forebay_follower (service, since) values (:service, :now)
    on conflict (service) do update set since = excluded.since, removed_at = null, removed_why = null
      where forebay_follower.removed_at is not null"""

_REMOVE = """
    update forebay_follower set removed_at = :now, removed_why = :why
    where service = :service and removed_at is null returning service"""

Answers = Callable[[Question], Awaitable[Answer]]
"""Answers for one follower how far it is, from its own inbox."""


class Followers:
    """The followers of one outbox.

    Args:
        outbox: the followed one.
        store: its store.
        known: where the answers are kept, by the name that a follower is listed as.
        clock: seconds, monotonic: the grace runs on it.
    """

    def __init__(
        self, outbox: Outbox, store: UnitStore, known: dict[str, Confirmations], clock: Callable[[], float]
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._known = known
        self._clock = clock
        self._here: dict[str, Answers] = {}
        self._remembered: Sequence[str] | None = None
        self._moved = anyio.Event()

    @property
    def names(self) -> list[str]:
        """What the followers are listed as among the consumers."""
        return [f"{service}{ON_THE_NODE}" for service in self._remembered or ()]

    @property
    def absent(self) -> list[str]:
        """The services that follow, and do not run in this process."""
        return [service for service in self._remembered or () if service not in self._here]

    async def load(self) -> None:
        """Read the remembered ones, unless that was done. Raises ``StoreError`` where the database fails."""
        if self._remembered is None:
            self._remembered = await self._store.read(remembered)

    async def add(self, service: str, answers: Answers) -> None:
        """Remember a follower that runs in this process; it must have everything that is here from now on.

        Raises:
            StoreError: the database failed.
        """
        await self._store.write(remember, service)
        self._here[service] = answers
        self._remembered = await self._store.read(remembered)

    def remove(self, tx: UnitOfWork, service: str, why: str) -> str:
        """Take a follower off the list for good, on record; return what was done, in a sentence."""
        if service in self._here:
            return f"{service} follows {self._outbox.service} in this process: start it without {service} first"
        if not tx.execute(_REMOVE, service=service, why=why, now=time.time_ns() // 1_000_000):
            return f"{service} does not follow {self._outbox.service}"
        return f"{service} is removed: {self._outbox.service} keeps nothing for it any more"

    async def removed(self) -> None:
        """Read the list anew after ``remove`` was committed."""
        self._remembered = await self._store.read(remembered)
        self.wake()

    def wake(self) -> None:
        """Say that a follower has got further."""
        self._moved.set()

    async def moved(self) -> None:
        """Wait until a follower has got further."""
        await self._moved.wait()
        self._moved = anyio.Event()

    async def ask(self) -> bool:
        """Ask each follower that runs here; return whether any has more than before.

        One whose database fails does not answer: what it said before stands, and frees nothing more.

        Raises:
            StoreError: the followed database failed.
        """
        await self.load()
        if not self._here:
            return False
        question = await self._store.read(self._question)
        moved = False
        for service, answers in self._here.items():
            try:
                answer = await answers(question)
            except StoreError as error:
                logger.info("follower.unanswered", extra={"service": service, "reason": str(error)})
                continue
            known = self._known.setdefault(f"{service}{ON_THE_NODE}", Confirmations())
            moved |= known.record(answer, self._clock())
        return moved

    def _question(self, tx: Transaction) -> Question:
        service = self._outbox.service
        return Question(VERSION, [OriginQuestion(service, lane, chain(tx, lane, ())) for lane in self._outbox.lanes])


def remember(tx: UnitOfWork, service: str) -> None:
    """Remember a follower; one that was removed follows again, from what is still here."""
    tx.execute(_REMEMBER, service=service, now=time.time_ns() // 1_000_000)


def remembered(tx: Transaction) -> Sequence[str]:
    """Return the services that follow this one, sorted."""
    rows = tx.execute("select service from forebay_follower where removed_at is null order by service")
    return [row["service"] for row in rows]
