"""How long this disk takes to sync: what a durable write costs at the least."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from bench.spread import Spread, spread

BLOCK = 4096
"""Bytes of a write; SQLite's page."""


def fsync_ms(folder: Path, times: int = 200) -> Spread:
    """Append a page and sync it, ``times`` times; return the milliseconds that one takes."""
    found = []
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(times):
            began = time.perf_counter()
            file.write(os.urandom(BLOCK))
            os.fdatasync(file.fileno())
            found.append((time.perf_counter() - began) * 1000)
    return spread(found)
