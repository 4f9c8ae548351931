"""``strace``, which fails or kills at a chosen system call without a change of the program (``-e inject``)."""

from __future__ import annotations

import shutil
import subprocess

INSTALL = "strace is not there, or may not trace: apt-get install -y strace; tests of file system calls are NOT RUN"


class StraceMissingError(AssertionError):
    """There is no strace; nothing that needs it counts as tested."""


class Strace:
    """Finds the program."""

    @staticmethod
    def find() -> str:
        """Return its path.

        Raises:
            StraceMissingError: it is not installed.
        """
        found = shutil.which("strace")
        if found is None:
            raise StraceMissingError(INSTALL)
        return found


def works() -> bool:
    """Whether it is installed and may trace a program of its own."""
    found = shutil.which("strace")
    if found is None:
        return False
    command = [found, "-f", "-o", "/dev/null", "true"]
    return not subprocess.run(command, capture_output=True, check=False, timeout=30).returncode
