"""A small disk of its own: a tmpfs in a mount namespace, for which nobody has to be root.

Only a process inside the namespace sees it: tests start one with ``on_small_disk`` and look at its files from outside
through ``seen_from_outside``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def on_small_disk(folder: Path, size: str, command: Sequence[str]) -> list[str]:
    """Return the command line that runs ``command`` with a new tmpfs of ``size`` mounted on ``folder``."""
    mount = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", size, str(folder), *command]


def run_python(folder: Path, size: str, module: str, scenario: str) -> subprocess.CompletedProcess[str]:
    """Run a scenario of a test module (``python -m module scenario folder``) to its end on a small disk."""
    command = on_small_disk(folder, size, [sys.executable, "-m", module, scenario, str(folder)])
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def seen_from_outside(pid: int, path: Path) -> Path:
    """Return where a file inside the namespace of a process is for everybody else."""
    return Path(f"/proc/{pid}/root{path}")


def fill(file: Path, *, leave: int = 0) -> None:
    """Fill the disk as another program would, until ``leave`` bytes are free."""
    found = os.statvfs(file.parent)
    left = found.f_bavail * found.f_frsize - leave
    with file.open("ab", buffering=0) as filler:
        while left > 0:
            try:
                left -= filler.write(bytes(min(left, 1 << 20)))
            except OSError:
                return


def free(folder: Path) -> int:
    """Return the bytes that are free."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
