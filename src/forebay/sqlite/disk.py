"""The disk below one database: how much is left, and the ballast that gets a node out of a full one.

A full disk deadlocks a write-ahead log: INSERT, DELETE and checkpoint all need room, so that not even confirmed rows
can be freed. Three things prevent it. A *reserve* is left to the machine's other programs: below it writes are refused
while everything still works. Where another program fills the disk all the same, a *ballast* file beside the database
goes: it is larger than what waits in the log, so that the log can be moved into the database, and from then on
units that free rows run inside the log's own file. New writes stay refused until there is room for the ballast again:
they would eat what the draining needs.

The ballast is per database, not per data folder: each database has a log of its own, and a shared one would be gone
after the first of them.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from forebay.errors import ConfigurationError, StoreFullError

MIB = 1024 * 1024
"""Bytes."""

BALLAST = 8 * MIB
"""Bytes; the log has at most 4 MiB (``log.LIMIT``) and one group of units."""

MIN_RESERVE = 64 * MIB
MAX_RESERVE = 1024 * MIB
RESERVE_SHARE = 0.05
"""The reserve is this share of the disk, within the two limits: of a disk of 250 GB it would be 12 otherwise."""

MARGIN = MIB
"""Bytes beside the ballast that have to be free before writes are accepted again; also what a probe asks for."""

LOOK_INTERVAL = 0.1
"""Seconds between looks at a disk that had room: another program takes little of ``MIN_RESERVE`` meanwhile."""

logger = logging.getLogger(__name__)


class DiskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the disk a store leaves alone.

    Attributes:
        reserve: bytes that stay free; None for 5 % of the disk, at least 64 MiB and at most 1 GiB; 0 for none.
        ballast: bytes of the ballast file; 0 for none.
    """

    reserve: int | None = None
    ballast: int = BALLAST

    def __post_init__(self) -> None:
        for name in ("reserve", "ballast"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigurationError(f"{name} is {value} bytes", hint="give 0 or more")


NO_CARE = DiskConfig(reserve=0, ballast=0)
"""Neither reserve nor ballast: writes fail when the disk is full, and go on when it is not."""


class Disk:
    """Watches the file system of one database. The writer's thread changes it; ``problem`` may be asked from any.

    Attributes:
        full: whether a write met a full disk, and the ballast is not back yet.
        low: whether less than the reserve was free when it was looked at last.
    """

    def __init__(self, path: Path, config: DiskConfig) -> None:
        self._folder = path.parent
        self._path = path
        self._ballast = path.with_name(f"{path.name}.ballast")
        self._config = config
        self._looked = 0.0
        self.full = False
        self.low = False

    @property
    def has_ballast(self) -> bool:
        """Whether a ballast belongs to this database."""
        return self._config.ballast > 0

    def prepare(self) -> None:
        """Lay the ballast down where it is missing and there is room; the folder exists."""
        if self._ballast_stands():
            return
        free, reserve = self._free()
        if free < self._config.ballast + reserve or not self._allocate(self._ballast, self._config.ballast):
            logger.warning(
                "store.ballast_missing", extra={"path": str(self._ballast), "bytes": self._config.ballast, "free": free}
            )

    def refusal(self) -> StoreFullError | None:
        """Return why nothing new may be written now, as far as the last look tells; None if it may.

        Each look gives the interpreter away and waits for it: where groups follow each other, not each has one.
        """
        now = time.monotonic()
        if self.full or self.low or (self._config.reserve != 0 and now >= self._looked + LOOK_INTERVAL):
            self._looked = now
            self._look()
        if self.full:
            return StoreFullError("the disk is full", hint="free disk space; what is stored goes on draining")
        if self.low:
            return StoreFullError("the disk's reserve is reached", hint="free disk space, or lower the reserve")
        return None

    def problem(self) -> str:
        """Return why writes are refused, empty if they are not; looks at the disk and changes nothing."""
        free, reserve = self._free()
        if self.full and free < self._config.ballast + max(reserve, MARGIN):
            return f"the disk is full ({free} bytes are free)"
        if free < reserve:
            return f"the disk's reserve of {reserve} bytes is reached ({free} bytes are free)"
        return ""

    def filled(self) -> bool:
        """Say that a write found no room. Returns whether the ballast was given up for it.

        It is not where the database has reached its own limit, and the disk has not.
        """
        if not self.has_ballast or self._probe():
            return False
        with suppress(OSError):
            self._ballast.unlink(missing_ok=True)
        if not self.full:
            self.full = True
            logger.error("store.disk_filled", extra={"path": str(self._path)})
        return True

    def _look(self) -> None:
        free, reserve = self._free()
        if self.full:
            room = free >= self._config.ballast + max(reserve, MARGIN)
            if room and self._allocate(self._ballast, self._config.ballast):
                self.full = False
                logger.warning("store.disk_recovered", extra={"path": str(self._path), "free": free})
        low = free < reserve
        if low and not self.low and not self.full:
            logger.error("store.reserve_reached", extra={"path": str(self._path), "free": free, "reserve": reserve})
        if self.low and not low and not self.full:
            logger.warning("store.disk_recovered", extra={"path": str(self._path), "free": free})
        self.low = low

    def _free(self) -> tuple[int, int]:
        """Return the bytes that are free, and those that have to be."""
        try:
            found = os.statvfs(self._folder)
        except OSError:  # what cannot be known refuses nothing
            return 1 << 62, 0
        reserve = self._config.reserve
        if reserve is None:
            share = int(found.f_blocks * found.f_frsize * RESERVE_SHARE)
            reserve = max(MIN_RESERVE, min(share, MAX_RESERVE))
        return found.f_bavail * found.f_frsize, reserve

    def _ballast_stands(self) -> bool:
        try:
            return self._ballast.stat().st_size >= self._config.ballast
        except OSError:
            return self._config.ballast == 0

    def _probe(self) -> bool:
        """Return whether there is room for ``MARGIN`` bytes; a quota counts too, which ``statvfs`` does not know."""
        probe = self._path.with_name(f"{self._path.name}.probe")
        found = self._allocate(probe, MARGIN)
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        return found

    @staticmethod
    def _allocate(path: Path, size: int) -> bool:
        if size == 0:
            return True
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)  # real blocks, and no wear of flash
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return False
        return True
