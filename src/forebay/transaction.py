"""What a database must offer: the protocols ``Transaction`` and ``Store``.

SQL is written once, with ``:name`` parameters; an adapter translates them. Domain code sees these protocols alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Row(Protocol):
    """One row of a result; columns are read by name."""

    def __getitem__(self, key: str, /) -> Any: ...

    def keys(self) -> Iterable[str]:
        """The columns' names."""
        ...


class Transaction(Protocol):
    """One transaction of one store.

    It is valid only inside the function that got it, on that function's thread. Whatever it did is kept as a whole
    when the function returns and the store has committed, or not at all: after an exception, or a crash at any line.
    """

    @property
    def opening(self) -> str:
        """Identifies this opening of the database; every opening takes new epochs (I2)."""
        ...

    def execute(self, sql: str, **params: Any) -> list[Row]:
        """Run one statement with ``:name`` parameters and return all its rows (none for a plain write).

        Raises:
            ConstraintError: a constraint of the schema refused it.
            StoreError: the database failed; the whole unit of work is undone.
        """
        ...

    def executemany(self, sql: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run one statement once per mapping of parameters. Raises as ``execute`` does."""
        ...

    def insert_many(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows whose values stand in the order of ``columns``; many rows cost less than with ``executemany``.

        Raises as ``execute`` does.
        """
        ...


class Store(Protocol):
    """A database that runs units of work one after the other and commits them to disk before it answers.

    Safe to call from any task of the event loop that opened it. A unit of work is a plain function: it runs on the
    store's own thread, must not block on anything but the database, and may run twice before it counts once.
    """

    async def write(self, unit: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``unit(transaction, *args, **kwargs)`` and return its result once it is on disk.

        An exception of the unit undoes that unit alone and is raised here.

        Raises:
            OutcomeUnknownError: COMMIT failed; the unit may be on disk.
            StoreError: the database failed; nothing of the unit was kept.
        """
        ...

    async def read(self, query: Callable[Concatenate[Transaction, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``query`` on a read-only snapshot, beside the writer. Raises ``StoreError``."""
        ...
