"""What a script tells its caller, one line a fact, written at once: the moment at which a service would answer."""

from __future__ import annotations

import os
from pathlib import Path


class Journal:
    """Appends lines to a file outside of the database's folder."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def say(self, *words: object) -> None:
        """Write one line."""
        os.write(self._descriptor, f"{' '.join(str(word) for word in words)}\n".encode())


def read_journal(path: Path) -> list[list[str]]:
    """Return the lines that were written, as words."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
