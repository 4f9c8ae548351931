"""``forebay`` as a process of its own, in a folder of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from forebay.cli.main import main
from forebay.testing.nats_server import free_port
from tests.faults.fleet import until


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of forebay's but these."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")} | settings


def forebay(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "forebay", *arguments],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that loads no service in this process, which is much faster."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["forebay", *arguments])
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


class Running:
    """A ``forebay run`` under way, on a free port."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.process = process
        self.log = log
        self.url = f"http://127.0.0.1:{port}"

    async def answers(self, path: str, status: int, *, limit: float = 20) -> httpx.Response:
        """Wait until a path answers with a status, and return the answer."""
        answer = httpx.Response(0)

        async def as_wanted() -> bool:
            nonlocal answer
            assert self.process.poll() is None, self.log.read_text()
            try:
                answer = await http.get(f"{self.url}{path}")
            except httpx.TransportError:
                return False
            return answer.status_code == status

        async with httpx.AsyncClient(timeout=5) as http:
            await until(as_wanted, limit=limit, what=lambda: f"{path} answers {status}, not {answer}: {answer.text}")
        return answer

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=5)


@contextlib.contextmanager
def running(folder: Path, services: Sequence[str], **options: str | Path) -> Iterator[Running]:
    """Run services from a project's folder; the options are those of the command line."""
    port = free_port()
    words = [word for name, value in {"port": port, **options}.items() for word in (f"--{name}", str(value))]
    data = Path(options["data"])
    data.mkdir(exist_ok=True)
    log = data / f"{options.get('node', 'core')}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "forebay", "run", *services, *words],
            cwd=folder,
            env=environment(),
            stdout=output,
            stderr=output,
        )
    try:
        yield Running(process, log, port)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """Listen on a port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def one_line(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """Assert that a command failed with a status and a single line that holds the words."""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("forebay: ")
    missing = [word for word in words if word not in result.stderr]
    assert not missing, f"{missing} in {result.stderr}"
    assert result.returncode == status
    assert not result.stdout
