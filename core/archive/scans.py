"""When somebody last read the archive in its own order: a rebuild may be under way, and nothing is deleted meanwhile.

It is a row, as another process than the one that answers may do the deleting, and any of them may be started anew.
"""

from __future__ import annotations

from core.archive.event import now
from forebay import Transaction


def note_scan(tx: Transaction) -> None:
    """Note that somebody does so now."""
    tx.execute("insert into scanned (one, at) values (1, :now) on conflict (one) do update set at = :now", now=now())


def scanned_at(tx: Transaction) -> int:
    """Return when somebody last did, in milliseconds since 1970; 0 if nobody has."""
    rows = tx.execute("select at from scanned")
    return int(rows[0]["at"]) if rows else 0
