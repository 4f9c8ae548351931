"""Opening a service's store: a SQLite file of this process alone, or a schema of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from forebay.losses import mend
from forebay.service import Service
from forebay.sqlite import DiskConfig, MigrationSet, Salvaging, SqliteStore
from forebay.stores import ServiceStore, postgres_store
from forebay.transaction import Transaction

ENGINE = MigrationSet("forebay", files("forebay") / "migrations")
"""The engine's own tables, the same in every service's database."""

MIN_BACKSTOP = 1024**3
"""Bytes."""

BACKSTOP = 8
"""An emitting service's database may take so many times its lanes' budgets, and ``MIN_BACKSTOP`` bytes at least: beside
the outbox it has tables of its own. A backstop only; the budgets are counted (O5)."""


async def open_store(
    declared: Service,
    path: Path,
    url: str | None,
    migrations: Sequence[MigrationSet],
    *,
    max_bytes: int | None,
    disk: DiskConfig,
) -> ServiceStore:
    """Open and migrate a service's store. A damaged SQLite file is salvaged.

    Args:
        declared: the service.
        path: its SQLite file, which the caller has locked.
        url: a PostgreSQL database that it has a schema of instead.
        migrations: the engine's and its own.
        max_bytes: the most that a file may take; None for ``BACKSTOP``.
        disk: what a file leaves alone of the disk.

    Raises:
        ConfigurationError: the store or its migrations cannot be used.
        StoreError: the database cannot be opened.
    """
    if url is not None:
        return await postgres_store().open(url, declared.name, migrations=migrations)

    # What a consumer has done and what its inbox says belong together: half of them would be worse than none.
    def mended(tx: Transaction) -> list[str]:
        declared.begin_derived(tx)
        return mend(tx)

    salvaging = Salvaging(partial=not declared.reads, mend=mended, derived=declared.derived)
    limit = max_bytes or _backstop(declared)
    return await SqliteStore.open(path, migrations=migrations, max_bytes=limit, disk=disk, salvaging=salvaging)


def _backstop(declared: Service) -> int | None:
    budgets = sum(lane.budget_bytes for lane in declared.lanes)
    return None if declared.reads or not budgets else max(MIN_BACKSTOP, BACKSTOP * budgets)
