"""A payment provider for trials: it has accounts in a file of its own, and can be told to fail, be slow, answer twice.

It stands outside the store of the orders on purpose, as a real provider does: what it has done it has done, whatever
becomes of the process that asked.
"""

from __future__ import annotations

import random
import sqlite3
import zlib
from typing import Annotated, NamedTuple

import anyio
import msgspec

from core.orders.provider import Answer, Declined, Outcome, ProviderError, Returned, Taken

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

_SCHEMA = """
    create table if not exists charge (
      key text primary key, cents integer not null,
      charges integer not null default 0, returns integer not null default 0
    )"""

_CHARGE = "insert into charge (key, cents, charges) values (?, ?, 1) on conflict (key) do nothing"
_REFUND = "insert into charge (key, cents) values (?, 0) on conflict (key) do update set returns = charges"


class StandInSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the stand-in behaves.

    Attributes:
        accounts: the file of its accounts; empty: in memory, so that it forgets with the process.
        declines: the share of orders whose payment it declines; always the same ones.
        fails: the share of calls that end in an error, half of them after it has done what was asked.
        slow: the share of calls that take ``slow_for`` seconds.
        twice: the share of answers that it gives twice.
    """

    accounts: str = ""
    declines: Share = 0.0
    fails: Share = 0.0
    slow: Share = 0.0
    slow_for: float = 1.0
    twice: Share = 0.0


class Account(NamedTuple):
    """What was charged and returned for one key, in times."""

    cents: int
    charges: int
    returns: int


class StandIn:
    """Implements ``PaymentProvider``."""

    def __init__(self, settings: StandInSettings) -> None:
        self._settings = settings
        self._accounts = sqlite3.connect(
            settings.accounts or ":memory:", isolation_level=None, timeout=10, check_same_thread=False
        )
        self._accounts.execute(_SCHEMA)
        self._one_by_one = anyio.CapacityLimiter(1)

    async def charge(self, key: str, cents: int, answer: Answer) -> None:
        """Take the money, once for each key; see ``PaymentProvider``."""
        await self._be_as_told()
        declined = zlib.crc32(key.encode()) % 1000 < self._settings.declines * 1000
        if not declined:
            # Where it was refunded before it was charged, nothing is.
            declined = await self._booked(_CHARGE, (key, cents), "charges") == 0
        await self._answer(Declined("the card was declined") if declined else Taken(), answer)

    async def refund(self, key: str, answer: Answer) -> None:
        """Return the money, once for each key; see ``PaymentProvider``."""
        await self._be_as_told()
        await self._answer(Returned(await self._booked(_REFUND, (key,), "cents * returns")), answer)

    def accounts(self) -> dict[str, Account]:
        """Return its accounts, by key."""
        rows = self._accounts.execute("select key, cents, charges, returns from charge order by key").fetchall()
        return {key: Account(*rest) for key, *rest in rows}

    async def _booked(self, entry: str, values: tuple[str, *tuple[int, ...]], said: str) -> int:
        """Make an entry and say what it came to, on a thread: the file is synced, and others may have it locked."""

        def book() -> int:
            self._accounts.execute(entry, values)
            row = self._accounts.execute(f"select {said} from charge where key = ?", values[:1]).fetchone()
            return int(row[0])

        return await anyio.to_thread.run_sync(book, limiter=self._one_by_one)

    async def _be_as_told(self) -> None:
        if random.random() < self._settings.fails / 2:  # noqa: S311 - a trial's chance
            raise ProviderError("the stand-in was told to fail, before it did anything")
        if random.random() < self._settings.slow:  # noqa: S311 - a trial's chance
            await anyio.sleep(self._settings.slow_for)

    async def _answer(self, outcome: Outcome, answer: Answer) -> None:
        if random.random() < self._settings.fails / 2:  # noqa: S311 - a trial's chance
            raise ProviderError("the stand-in was told to fail, after it had done it")
        await answer(outcome)
        if random.random() < self._settings.twice:  # noqa: S311 - a trial's chance
            await answer(outcome)
