"""What SQLite reports, in the words of ``forebay.errors``."""

from __future__ import annotations

import sqlite3

from forebay.errors import ConstraintError, ForebayError, StoreBusyError, StoreError, StoreFullError

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_FAILED = frozenset(
    {
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class DamagedError(StoreError):
    """The file's contents are no sound database any more; opening it again salvages what can be read."""


def primary_code(error: sqlite3.Error) -> int | None:
    """Return the primary result code, or None where Python's module raised on its own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def mapped(error: sqlite3.Error) -> ForebayError | None:
    """Return our error for a statement's failure, or None where the statement itself is wrong (raise that as it is)."""
    code = primary_code(error)
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintError(f"a constraint refused the statement: {error}")
    if code in _BUSY:
        return StoreBusyError(f"the database is locked by another connection: {error}")
    if code == sqlite3.SQLITE_FULL:
        return StoreFullError(f"no room in the database: {error}", hint="free disk space, or raise the store's limit")
    if code == sqlite3.SQLITE_INTERRUPT:
        return StoreBusyError(f"the query took too long and was interrupted: {error}")
    if code in _DAMAGED:
        return DamagedError(f"the database is damaged: {error}")
    if code in _FAILED:
        name = getattr(error, "sqlite_errorname", "")
        return StoreError(f"the database failed: {error} ({name})")
    return None


def store_error(error: Exception, doing: str) -> StoreError:
    """Return a ``StoreError`` for a failure of the store's own work, where no unit of work is to blame."""
    known = mapped(error) if isinstance(error, sqlite3.Error) else None
    kind = type(known) if isinstance(known, StoreError) else StoreError
    hint = known.hint if known is not None else ""
    return kind(f"{doing} failed: {error}", hint=hint)
