"""The stores that a service may have: a SQLite file of one process, or a schema of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from forebay.errors import ConfigurationError, StoreError
from forebay.transaction import Store

if TYPE_CHECKING:
    from forebay.postgres import PostgresStore
    from forebay.postgres.beside import SchemaBeside


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
