"""The services' schemas in a PostgreSQL database, opened to be looked at, also while nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from forebay.errors import ConfigurationError, StoreError
from forebay.intent_box import leave_row
from forebay.postgres.address import Address, parse_address
from forebay.postgres.failures import store_error
from forebay.postgres.locks import READERS, reader_key
from forebay.postgres.session import connect
from forebay.postgres.transaction import PostgresTransaction
from forebay.transaction import Transaction

T = TypeVar("T")

_SCHEMAS = """
    select n.nspname as name from pg_namespace n join pg_class c on c.relnamespace = n.oid
    where c.relname = 'forebay_store' and c.relkind = 'r' order by n.nspname"""


class FoundSchema:
    """One service's schema; see ``Found``."""

    def __init__(self, address: Address, node: str) -> None:
        self.node = node
        self.service = address.schema
        self._address = address

    def rows(self, statement: str, /, **params: Any) -> list[dict[str, Any]]:
        """Run a query on a snapshot. Raises ``StoreError``."""
        return [dict(row) for row in self.read(lambda tx: tx.execute(statement, **params)) or []]

    def readers(self) -> dict[int, str]:
        """Return the process that reads each partition, by the session that holds its lock."""
        rows = self.rows(READERS, key=reader_key(self.service))
        return {row["partition"]: row["process"].rpartition(" ")[2] for row in rows}

    @property
    def reads(self) -> bool:
        """Whether its service has ever read a stream."""
        return bool(self.rows("select 1 from forebay_position limit 1"))

    @property
    def http(self) -> str | None:
        """Nothing: several processes may have it open."""
        return None

    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name."""
        return bool(self.rows("select 1 where to_regclass(:name) is not null", name=name))

    def read(self, query: Callable[[Transaction], T]) -> T | None:
        """Run a query function of the engine on a snapshot. Raises ``StoreError``."""
        with _transaction(self._address, read_only=True) as tx:
            return query(tx)

    def leave(self, intent: bytes) -> str:
        """Leave an intent for the process that reads; return its name. Raises ``StoreError``."""
        with _transaction(self._address, read_only=False) as tx:
            return leave_row(tx, intent)


def schemas(url: str, node: str | None = None, service: str | None = None) -> Iterator[FoundSchema]:
    """Yield the services' schemas in a database, of one node or service where one is named.

    Raises:
        ConfigurationError: the URL cannot be read, or there is no service in the database.
        StoreError: the server does not answer.
    """
    somewhere = parse_address(url, "public")
    with _transaction(somewhere, read_only=True) as tx:
        names = [row["name"] for row in tx.execute(_SCHEMAS)]
        nodes = {name: _node(tx, name) for name in names}
    if not names:
        raise ConfigurationError(f"there is no service in {somewhere.shown}", hint="give --store or FOREBAY_STORE")
    for name, owner in nodes.items():
        if owner is not None and node in (None, owner) and service in (None, name):
            yield FoundSchema(parse_address(url, name), owner)


def _node(tx: Transaction, schema: str) -> str | None:
    table = sql.Identifier(schema, "forebay_store").as_string(None)
    rows = tx.execute(f"select node from {table}")
    return str(rows[0]["node"]) if rows else None


@contextmanager
def _transaction(address: Address, *, read_only: bool) -> Iterator[PostgresTransaction]:
    connection = connect(address, "command line")
    try:
        connection.execute(b"begin isolation level repeatable read" + (b" read only" if read_only else b""))
        yield PostgresTransaction(connection, writes=not read_only)
        connection.execute(b"commit")
    except psycopg.Error as error:
        hint = "is it a service's database?"
        raise StoreError(f"{address} cannot be read: {store_error(error, 'the query')}", hint=hint) from error
    finally:
        connection.close()
