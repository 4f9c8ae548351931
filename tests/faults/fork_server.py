"""Traced runs of a script without the half second that an interpreter takes to load it: from a process that forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from tests.faults.scripts import forking
from tests.faults.strace import Strace
from tests.faults.system import ROOT

RUN_TIMEOUT = 120.0
"""Seconds for one run of a script under strace."""

ENDLESS = 124
"""The exit code of a run that did not end in time."""


class Ended(msgspec.Struct, frozen=True):
    """How a run ended: its exit code, negative where a signal killed it, and what it said on standard error."""

    code: int
    errors: str


class ForkServer:
    """Runs one script again and again, each time in a new process that begins where the script's ``main`` does.

    strace attaches to that process before it goes on, and counts the calls of each of its threads from there: what an
    interpreter does to load the script is not part of a run. Not safe from several threads.

    Args:
        module: of the script.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", forking.__name__, module],
            cwd=ROOT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._process:
            self._process.kill()

    def run(self, arguments: Sequence[str], folder: Path, options: Sequence[str]) -> Ended:
        """Run the script with these arguments under strace with these options, and wait for its end.

        One that does not end within ``RUN_TIMEOUT`` is killed, and its code is ``ENDLESS``.

        Raises:
            AssertionError: strace did not attach to it.
        """
        errors = folder / "errors"
        self._say(msgspec.json.encode([str(errors), *arguments]).decode())
        child = int(self._heard())
        command = [Strace.find(), "-f", "-qq", *options, "-p", str(child)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            try:
                self._wait_for_tracer(child, strace)
                self._say("go")
                _, said = strace.communicate(timeout=RUN_TIMEOUT)  # it ends with the last process that it traces
                code = int(self._heard())
            except subprocess.TimeoutExpired:
                os.kill(child, signal.SIGKILL)
                self._heard()
                code, said = ENDLESS, f"it did not end within {RUN_TIMEOUT:g} s"
            finally:
                strace.kill()
        return Ended(code, (errors.read_text() if errors.exists() else "") + said)

    def _wait_for_tracer(self, child: int, strace: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + RUN_TIMEOUT
        status = Path(f"/proc/{child}/status")
        while "\nTracerPid:\t0\n" in status.read_text():
            assert strace.poll() is None, f"strace did not attach: {strace.communicate()[1]}"
            assert time.monotonic() < deadline, "strace does not attach"
            time.sleep(0.001)  # the kernel sets no event

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _heard(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process that forks ended with {self._process.wait()}"
        return line
