"""Which partitions a consumer's process reads: all of them, or its share of them (rules S2, S7)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from forebay.errors import StoreError

LOOK = 1.0
"""Seconds between looks at what others hold."""


class NotTheReaderError(StoreError):
    """The state of these origins is another process's to change, or nobody's yet (S7); nothing was kept."""


class Shares(NamedTuple):
    """What a process holds, and how many of these partitions it is to give up."""

    held: frozenset[int]
    give: int


class Partitions(Protocol):
    """The partitions that a process may read. A store that is one process's own has them all."""

    @property
    def shared(self) -> bool:
        """Whether other processes may read some of them, so that it has to look now and then."""
        ...

    async def look(self) -> Shares:
        """Take what is free and due to this process; return what it holds now. Raises ``StoreError``."""
        ...

    async def release(self, partitions: frozenset[int]) -> None:
        """Give partitions up, of which nothing is under way any more. Raises ``StoreError``."""
        ...

    def require(self, partition: int) -> None:
        """Refuse a unit of work on a partition that this very session does not hold; called on the store's thread.

        Raises:
            NotTheReaderError: it is not held.
        """
        ...

    def condition(self) -> tuple[str, dict[str, str | int]]:
        """Return in SQL, with its parameters, which rows with a ``partition`` are this process's."""
        ...


class AllPartitions:
    """Every partition, always: the file's lock keeps other processes out."""

    shared = False

    def __init__(self, count: int) -> None:
        self._all = frozenset(range(count))

    async def look(self) -> Shares:
        """Return all of them."""
        return Shares(self._all, 0)

    async def release(self, partitions: frozenset[int]) -> None:
        """Do nothing: there is nobody else."""

    def require(self, partition: int) -> None:
        """Do nothing: nobody else has the database open."""

    def condition(self) -> tuple[str, dict[str, str | int]]:
        """Return what is true of every row."""
        return "1 = 1", {}


class Always:
    """The charge of the one process that has the database open."""

    async def has(self) -> bool:
        """Return True."""
        return True

    def require(self) -> None:
        """Do nothing."""
