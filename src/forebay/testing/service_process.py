"""A ``forebay run`` as a child process: started, killed, frozen and stopped by a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from forebay.supervisor import PARENT
from forebay.testing.nats_server import free_port
from forebay.testing.waiting import until

READY_TIMEOUT = 60.0
"""Seconds for a process to be ready on a machine that is busy with other tests."""


class ServiceProcess:
    """One process with services of one node; it never outlives its parent.

    Start it from a thread that lives on (the main thread): the kernel ties the child to the thread that made it.
    """

    def __init__(
        self,
        services: Sequence[str],
        *,
        node: str,
        project: Path,
        data: Path,
        nats: str,
        port: int | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
    ) -> None:
        """Prepare a process; nothing happens before ``start``.

        Args:
            services: as ``forebay run`` takes them, such as ``edge.till``.
            node: the node's name; ``core`` for the central services.
            project: the folder with ``forebay.toml``, in which it is started.
            data: the data folder; the log is ``<node>.log`` in it.
            nats: the broker's URL, or a faulty link's.
            port: of HTTP; a free one if None.
            options: more options of ``forebay run``, such as ``["--grace", "0"]``.
            environment: variables beside those of this process.
            launcher: the beginning of a command line that becomes the process, such as ``["nice"]``.
        """
        self.services = list(services)
        self.node = node
        self.project = project
        self.data = data
        self.nats = nats
        self.port = port or free_port()
        self.options = list(options)
        self.environment = dict(environment or {})
        self.launcher = list(launcher)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its HTTP is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What it wrote to standard output and standard error, over all its starts."""
        return self.data / f"{self.node}.log"

    @property
    def pid(self) -> int | None:
        """The process's id; None where it was not started or was killed here."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; does nothing when it runs. Use ``ready`` to wait."""
        if self.running:
            return
        self.data.mkdir(parents=True, exist_ok=True)
        command = [*self.launcher, sys.executable, "-m", "forebay", "run", *self.services, "--node", self.node]
        command += ["--data", str(self.data), "--nats", self.nats, "--port", str(self.port), *self.options]
        environment = {**os.environ, **self.environment, PARENT: str(os.getpid())}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                command, cwd=self.project, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def ready(self, limit: float = READY_TIMEOUT) -> None:
        """Wait until it says that it is ready.

        Raises:
            AssertionError: it ended, or is not ready within ``limit`` seconds; the message ends with its log.
        """
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:

            async def says_so() -> bool:
                assert self.running, f"{self.node} ended: {self._log_tail()}"  # noqa: S101
                try:
                    return (await client.get(f"{self.url}/readyz")).status_code == 200
                except httpx.HTTPError:
                    return False

            await until(says_so, limit=limit, what=lambda: f"{self.node} is ready: {self._log_tail()}")

    def wait(self, limit: float = READY_TIMEOUT) -> int:
        """Wait for its end and return the exit code, negative for a signal. Raises ``subprocess.TimeoutExpired``."""
        if self._process is None:
            raise RuntimeError(f"{self.node} was not started")
        return self._process.wait(limit)

    def stop(self, limit: float = READY_TIMEOUT) -> int:
        """Stop it as an operator would (SIGTERM) and return its exit code. Raises ``subprocess.TimeoutExpired``."""
        self.resume()
        if self.running and self._process is not None:
            self._process.terminate()
        return self.wait(limit)

    def kill(self) -> None:
        """End it at once (SIGKILL). Does nothing when it is not there."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze it (SIGSTOP) and return once it stands: connections stay open and nothing answers."""
        if self.running and self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a frozen one go on (SIGCONT)."""
        if self.running and self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _log_tail(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-8:])
