"""A program that a benchmark measures, as a child process that never outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
"""On PYTHONPATH of what the benchmarks start."""
ENVIRONMENT = {"PYTHONPATH": PATHS, "PYTHONDONTWRITEBYTECODE": ""}
"""Of what the benchmarks start: it is compiled once, as what is installed is, whatever is usual on this machine."""

_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Program:
    """One child process; its output goes to a log."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            command: an absolute path and arguments.
            log: where its output goes.
            environment: variables beside those of this process.
            folder: in which it is started; the log's if None.
        """
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
                env={**os.environ, **ENVIRONMENT, **(environment or {})},
                cwd=folder or log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            RuntimeError: it ended; the message ends with its log.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended with {self._process.returncode}: {self.tail()}")

    async def ended(self, limit: float = 300.0) -> int:
        """Wait for it to end by itself; return its exit code. Raises ``TimeoutError``."""
        async with asyncio.timeout(limit):
            while (code := self._process.poll()) is None:  # noqa: ASYNC110 -- a child process sets no event
                await asyncio.sleep(0.02)
            return code

    def tail(self) -> str:
        """Return the end of its log, in a line."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-6:])

    def stop(self, limit: float = 60.0) -> None:
        """End it as an operator would (SIGTERM). Raises ``subprocess.TimeoutExpired``."""
        self._process.terminate()
        self._process.wait(limit)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
