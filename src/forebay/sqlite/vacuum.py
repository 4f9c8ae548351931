"""Giving free pages back to the disk, a little at a time, while nothing else is to be done."""

from __future__ import annotations

import sqlite3

KEPT = 2048
"""Free pages (8 MiB) that stay in the file: what comes and goes every day takes them again, without wear of flash."""

STEP = 256
"""Pages given back in one transaction: the size at which the log is checkpointed, and milliseconds of the writer."""


def give_back(connection: sqlite3.Connection, *, keep: int = KEPT) -> bool:
    """Give at most ``STEP`` free pages back; return whether there are more.

    Raises:
        sqlite3.Error: the database failed.
    """
    free = int(connection.execute("PRAGMA freelist_count").fetchone()[0])
    if free <= keep:
        return False
    # Only stepping the statement to its end frees them all, and execute() steps one without columns once.
    connection.executescript(f"PRAGMA incremental_vacuum({min(STEP, free - keep)})")
    return free - STEP > keep
