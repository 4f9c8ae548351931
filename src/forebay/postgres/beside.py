"""Tables beside those in use: a second schema, in which a read model is built, and whose rows replace those in use.

The rows are copied by the server, in the transaction that makes them count. Moving the tables from schema to schema
would be faster, and would make every reader wait, or fail on a table that is gone; under MVCC nobody waits for a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import psycopg
from psycopg import sql

from forebay.errors import ConfigurationError, StoreBusyError
from forebay.postgres.address import parse_address
from forebay.postgres.failures import store_error
from forebay.postgres.session import Connection, connect
from forebay.postgres.store import PostgresStore
from forebay.scripts import MigrationSet
from forebay.transaction import Transaction

_TABLES = """
    select c.relname as name,
      exists (select 1 from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal) as fires
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = current_schema() and c.relkind in ('r', 'p') and left(c.relname, 8) <> 'forebay_'
    order by c.relname"""

_REFERENCES = """
    select c.relname as name, o.relname as other from pg_constraint k
    join pg_class c on c.oid = k.conrelid join pg_class o on o.oid = k.confrelid
    join pg_namespace n on n.oid = c.relnamespace where k.contype = 'f' and n.nspname = current_schema()"""

_COLUMNS = """
    select column_name as name, pg_get_serial_sequence(quote_ident(:name), column_name) as sequence
    from information_schema.columns
    where table_schema = current_schema() and table_name = :name and is_generated = 'NEVER' order by ordinal_position"""

_LOCK = "select pg_try_advisory_lock(hashtext('forebay rebuild'), hashtext($1)) as locked"


class SchemaBeside:
    """The schema beside one service's; see ``forebay.rebuilding.Beside``."""

    def __init__(self, url: str, schema: str) -> None:
        self._url = url
        self._schema = f"{schema}-rebuild"
        self._session: Connection | None = None

    def check(self, tx: Transaction) -> None:
        """Refuse tables whose rows cannot be replaced. Raises ``ConfigurationError``."""
        _own_tables(tx)

    async def open(self, migrations: Sequence[MigrationSet]) -> PostgresStore:
        """Open the tables; one process at a time.

        Raises:
            StoreBusyError: another process has them open.
            StoreError: the server does not answer.
        """
        await anyio.to_thread.run_sync(self._lock)
        return await PostgresStore.open(self._url, self._schema, migrations=migrations)

    async def remove(self) -> None:
        """Drop the tables. Raises ``StoreError``."""
        await anyio.to_thread.run_sync(self._drop)

    async def close(self) -> None:
        """Let other processes open them."""
        session, self._session = self._session, None
        if session is not None:
            await anyio.to_thread.run_sync(session.close)

    def replace(self, tx: Transaction) -> int:
        """Replace the rows of the service's own tables; return how many there are now. Raises as ``check``."""
        tables, count = _own_tables(tx), 0
        for name in reversed(tables):
            tx.execute(f"delete from {_quoted(name)}")
        for name in tables:
            rows = tx.execute(_COLUMNS, name=name)
            columns = ", ".join(_quoted(row["name"]) for row in rows)
            beside = f"{_quoted(self._schema)}.{_quoted(name)}"
            tx.execute(
                f"insert into {_quoted(name)} ({columns}) overriding system value select {columns} from {beside}"
            )
            for row in rows:
                if row["sequence"] is not None:
                    latest = f"select max({_quoted(row['name'])}) from {_quoted(name)}"
                    tx.execute(f"select setval(:sequence, coalesce(({latest}), 1))", sequence=row["sequence"])
            count += int(tx.execute(f"select count(*) as n from {_quoted(name)}")[0]["n"])
        return count

    def _lock(self) -> None:
        address = parse_address(self._url, self._schema)
        session = self._session = self._session or connect(address, "rebuild")
        try:
            locked = session.execute(_LOCK, [self._schema]).fetchone()
        except psycopg.Error as error:
            raise store_error(error, "the lock of the rebuild") from error
        if not locked or not locked["locked"]:
            session.close()
            self._session = None
            raise StoreBusyError("another process rebuilds this read model")

    def _drop(self) -> None:
        session = connect(parse_address(self._url, self._schema), "rebuild")
        try:
            found = session.execute("select 1 from pg_namespace where nspname = $1", [self._schema]).fetchone()
            if found:
                session.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(self._schema)))
        except psycopg.Error as error:
            raise store_error(error, "dropping the tables of a rebuild") from error
        finally:
            session.close()


def _own_tables(tx: Transaction) -> list[str]:
    """Return the service's own tables, each behind those that it refers to.

    Raises:
        ConfigurationError: one of them has triggers.
    """
    left: dict[str, set[str]] = {}
    for row in tx.execute(_TABLES):
        if row["fires"]:
            raise ConfigurationError(
                f"the table {row['name']!r} of the read model has triggers: its rows cannot be replaced",
                hint="leave them out, or give the table a service of its own without a projection",
            )
        left[row["name"]] = set()
    for row in tx.execute(_REFERENCES):
        if row["name"] in left:
            left[row["name"]].add(row["other"])
    ordered: list[str] = []
    while left:
        free = sorted(name for name, others in left.items() if not (others & left.keys()) - {name}) or sorted(left)
        ordered += free
        left = {name: others for name, others in left.items() if name not in free}
    return ordered


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
