"""The SQLite library that Python was built with, and the oldest one whose SQL is what the engine writes."""

from __future__ import annotations

import sqlite3

from forebay.errors import ConfigurationError

MIN_VERSION = (3, 38, 0)
"""``->>`` came with it; before that came ``strict`` tables with 3.37 and ``returning`` with 3.35."""


def check_library() -> None:
    """Refuse a library that is too old before any statement of ours fails on it with an error of syntax.

    Raises:
        ConfigurationError: it is older than ``MIN_VERSION``.
    """
    if sqlite3.sqlite_version_info < MIN_VERSION:
        needed = ".".join(map(str, MIN_VERSION))
        raise ConfigurationError(
            f"Python's sqlite3 has the SQLite library {sqlite3.sqlite_version}, and {needed} is needed",
            hint="use a Python that comes with a newer one, or upgrade the system's SQLite",
        )
