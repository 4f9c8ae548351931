"""What a process takes, as the kernel counts it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_BETWEEN = 0.1
_LITTLE = 0.01
"""Seconds of processor time that a process may use between two looks, which are ``_BETWEEN`` apart, and be idle."""
_QUIET = 5
"""Looks in a row that find it so."""


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


def processor_seconds(pid: int, *, children: bool = False) -> float:
    """Return the processor time that a process has used, in seconds; that of its children too, where asked for."""
    fields = _stat(pid)
    ticks = sum(map(int, fields[11:15] if children else fields[11:13]))
    if children:
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = _stat(int(path.parent.name))
                ticks += int(fields[11]) + int(fields[12]) if int(fields[1]) == pid else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def running_seconds(pid: int) -> float:
    """Return for how long the threads that a process has now have run, in seconds: exact where ticks are too coarse."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


async def idle(pid: int | None, limit: float = 120.0) -> None:
    """Wait until a process has nothing to do.

    Raises:
        RuntimeError: it goes on for longer than ``limit`` seconds.
    """
    give_up = time.monotonic() + limit
    before, quiet = -1.0, 0
    while quiet < _QUIET:
        if pid is None or time.monotonic() > give_up:
            raise RuntimeError(f"process {pid} is not idle after {limit:g} s")
        now = running_seconds(pid)
        quiet = quiet + 1 if now - before < _LITTLE else 0
        before = now
        await asyncio.sleep(_BETWEEN)


class Busy:
    """How much of the machine's processor time was used, 0 to 1."""

    share = 0.0


@asynccontextmanager
async def machine_busy() -> AsyncIterator[Busy]:
    """Yield what says after the block how busy the machine was in it."""
    found = Busy()
    before = _machine()
    yield found
    used, all_of_it = (now - then for now, then in zip(_machine(), before, strict=True))
    found.share = used / all_of_it if all_of_it else 0.0


def folder_mib(folder: Path) -> float:
    """Return what the files below a folder take on disk, in MiB; links are not followed, a file counts once."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found = path.stat()
            seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values()) / 2**20


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _machine() -> tuple[int, int]:
    """Return the ticks that all processors were busy, and all ticks."""
    with Path("/proc/stat").open() as file:
        ticks = [int(each) for each in file.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)
