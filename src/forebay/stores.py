"""The stores that a service may have: a SQLite file of one process, or a schema of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import anyio
from anyio.abc import TaskStatus

from forebay.errors import ConfigurationError, StoreError
from forebay.partitions import Partitions
from forebay.transaction import Store, Transaction

if TYPE_CHECKING:
    from forebay.postgres import PostgresStore
    from forebay.postgres.beside import SchemaBeside


P = ParamSpec("P")
T = TypeVar("T")


class Charge(Protocol):
    """What one process at a time does with a store: sending its events, asking who has them, firing its timers."""

    async def has(self) -> bool:
        """Whether this process has it, after an attempt to take it. Raises ``StoreError``."""
        ...

    def require(self) -> None:
        """Refuse a unit of work of a process that does not have it; called on the store's thread.

        Raises:
            NotTheReaderError: it does not.
        """
        ...


class Part(Protocol):
    """A long-lived part of a service."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        ...


class ChargedStore:
    """Implements ``forebay.transaction.Store``: a store whose units are refused where this process is not in charge."""

    def __init__(self, store: Store, charge: Charge) -> None:
        self._store = store
        self._charge = charge

    async def write(self, unit: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``unit(transaction, *args, **kwargs)``; see ``Store.write``."""

        def run(tx: Transaction) -> T:
            self._charge.require()
            return unit(tx, *args, **kwargs)

        return await self._store.write(run)

    async def read(self, query: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``query(transaction, *args, **kwargs)``; see ``Store.read``."""
        return await self._store.read(query, *args, **kwargs)


class ServiceStore(Store, Protocol):
    """A store as a running service needs it; ``SqliteStore`` and ``PostgresStore`` are."""

    @property
    def reclaiming(self) -> Store:
        """The same store for units that give room back: they run while the disk is full as well."""
        ...

    def on_commit(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after commits; return a function that ends it."""
        ...

    def problem(self) -> str:
        """Return why writes are refused now; empty while they are not."""
        ...

    async def check(self) -> None:
        """Check the database beside the service; returns when that is done."""
        ...

    async def damaged(self) -> StoreError:
        """Wait until the database is found to be damaged, and return how."""
        ...

    def partitions(self, count: int) -> Partitions:
        """Return which partitions of a consumer this process reads."""
        ...

    def charge(self) -> Charge:
        """Return what one process at a time does with this store."""
        ...

    def foreign_commits(self) -> Part | None:
        """Return what calls the callbacks of ``on_commit`` after commits of other processes too; None without any."""
        ...

    async def close(self) -> None:
        """Run what is queued, then close; may be called again."""
        ...


def postgres_store() -> type[PostgresStore]:
    """Return the adapter's store; imported only where it is used.

    Raises:
        ConfigurationError: psycopg is not installed.
    """
    try:
        from forebay.postgres import PostgresStore
    except ImportError as error:
        raise ConfigurationError(
            f"a PostgreSQL store needs psycopg: {error}", hint="pip install 'forebay[postgres]'"
        ) from error
    return PostgresStore


def postgres_beside() -> type[SchemaBeside]:
    """Return what keeps the tables of a rebuild in a PostgreSQL database; see ``postgres_store``."""
    postgres_store()
    from forebay.postgres.beside import SchemaBeside

    return SchemaBeside
