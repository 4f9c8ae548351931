"""A disk of a node that is small, and outlives its process: a tmpfs in a mount namespace that another process holds."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.integration.small_disk import on_small_disk, seen_from_outside

SIZE = "128m"


class SmallDisk:
    """One disk; nobody has to be root for it. It is there from the first ``launcher`` on, until ``end``.

    Attributes:
        folder: where it is mounted, for those who are started through ``launcher``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        # It says a line when it is mounted, and ends with the harness: its standard input is closed then.
        command = on_small_disk(folder, SIZE, ["sh", "-c", "echo mounted; exec cat"])
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n", "no tmpfs can be mounted here"

    def launcher(self, working_folder: Path) -> Sequence[str]:
        """Return how a command line begins whose program has this disk."""
        return [
            *("nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials"),
            f"--wd={working_folder}",
            "--",
        ]

    def seen(self, path: Path) -> Path:
        """Return where a path on the disk is for everybody else."""
        return seen_from_outside(self._holder.pid, path)

    def end(self) -> None:
        """Give the disk up, with all that is on it."""
        self._holder.kill()
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe is not None:
                pipe.close()
