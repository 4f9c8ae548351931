"""What PostgreSQL reports, in the words of ``forebay.errors``."""

from __future__ import annotations

import psycopg
from psycopg import errors as codes

from forebay.errors import ConstraintError, ForebayError, StoreBusyError, StoreError, StoreFullError

_FULL = frozenset({"53100"})
_BUSY = frozenset({"53300", "55006", "55P03", "57014"})
_CONFLICT = frozenset({"40001", "40P01"})
_DOUBTFUL = frozenset({"23503", "23505", "23P01"})
_ENDED = frozenset({"25P03", "25P04"})
"""The session was silent for too long within a transaction."""
_FAILED_CLASSES = frozenset({"08", "53", "57", "58", "F0", "XX"})
"""The server's trouble, not the statement's: connections, resources, its operators, its disk, its own errors."""


def conflicted(error: psycopg.Error) -> bool:
    """Whether the transaction has to be run again as a whole.

    It is not serializable, or it ran into a deadlock; or a prepared statement does not fit the schema any more, which a
    newer release has changed meanwhile: psycopg prepares anew after a rollback.
    """
    changed = error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"
    return changed or error.sqlstate in _CONFLICT


def doubtful(error: psycopg.Error) -> bool:
    """Whether a constraint may have been broken only because another transaction committed meanwhile.

    PostgreSQL reports a key that a concurrent transaction has taken as a duplicate, not as a collision, also where the
    unit had looked for it in vain.
    """
    return error.sqlstate in _DOUBTFUL


def mapped(error: psycopg.Error) -> ForebayError | None:
    """Return our error for a statement's failure, or None where the statement itself is wrong (raise that as it is)."""
    code = error.sqlstate or ""
    said = first_line(error)
    if isinstance(error, psycopg.IntegrityError):
        return ConstraintError(f"a constraint refused the statement: {said}")
    if code in _FULL:
        return StoreFullError(f"no room in the database: {said}", hint="free disk space on the database server")
    if conflicted(error):
        return StoreBusyError(f"another transaction was in the way: {said}")
    if code in _BUSY:
        return StoreBusyError(f"the database is busy: {said}")
    unnamed = not code and isinstance(error, psycopg.OperationalError)
    if code in _ENDED or code[:2] in _FAILED_CLASSES or unnamed:
        return StoreError(f"the database failed: {said}")
    if isinstance(error, codes.ReadOnlySqlTransaction):
        return StoreError(f"the database accepts no writes: {said}", hint="is this server a replica by now?")
    return None


def store_error(error: Exception, doing: str) -> StoreError:
    """Return a ``StoreError`` for a failure of the store's own work, where no unit of work is to blame."""
    known = mapped(error) if isinstance(error, psycopg.Error) else None
    kind = type(known) if isinstance(known, StoreError) else StoreError
    hint = known.hint if known is not None else ""
    said = first_line(error) if isinstance(error, psycopg.Error) else str(error)
    return kind(f"{doing} failed: {said}", hint=hint)


def first_line(error: psycopg.Error) -> str:
    """Return what the server said, without its hints and the statement."""
    lines = (error.diag.message_primary or str(error) or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[:2]).strip()
