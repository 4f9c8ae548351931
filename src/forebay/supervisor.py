"""Children of ``forebay up``: started, watched, started again when they die, never outliving their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.abc

from forebay.backoff import Backoff

STABLE = 30.0
"""Seconds after which a child that died again begins with the first delay."""

PARENT = "FOREBAY_PARENT"
"""The variable that tells a child whose child it is: it ends when that process does."""

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Let the kernel end this process when ``parent`` dies, however it dies (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel knew
            os._exit(1)


class Child:
    """One child process, by name; its output goes to a log file.

    It has this process's environment but for the variables in ``environment``; one that is None it does not have.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        report: Callable[[str], None],
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self.name = name
        self.starts = 0
        self._command = command
        self._log = log
        self._report = report
        self._environment = environment or {}
        self._process: anyio.abc.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the child running until cancelled; report every death in a line."""
        backoff = Backoff(first=0.2, most=5.0)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        while True:
            started = anyio.current_time()
            with anyio.CancelScope(shield=True):  # a child that was started is known, and can be stopped
                process = self._process = await self._spawn()
            self.starts += 1
            if self.starts == 1:
                task_status.started()
            status = await process.wait()
            if anyio.current_time() - started > STABLE:
                backoff.reset()
            delay = backoff.next()
            why = _status(status) if status < 0 else f"{_status(status)}: {last_line(self._log)}"
            self._report(f"{self.name} died ({why}), started again in {delay:.1f} s; its log: {self._log}")
            await anyio.sleep(delay)

    async def _spawn(self) -> anyio.abc.Process:
        variables = {**os.environ, **self._environment, PARENT: str(os.getpid())}
        with self._log.open("ab") as log:
            return await anyio.open_process(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in variables.items() if value is not None},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops its children in order
            )

    async def stop(self, limit: float) -> None:
        """End it with SIGTERM, and after ``limit`` seconds with SIGKILL. Cancel ``run`` first."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        with anyio.move_on_after(limit):
            await process.wait()
            return
        self._report(f"{self.name} did not stop within {limit:g} s and was killed")
        process.kill()
        await process.wait()


def last_line(log: Path) -> str:
    """Return the last line of a log, or nothing where there is none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-1] if lines else ""


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"
