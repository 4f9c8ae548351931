"""``forebay up`` as a test sees it: a process of its own, on free ports, whose children can be killed one by one."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx

from forebay.testing.waiting import until

__all__ = ["ROOT", "Fleet", "alive", "until"]

ROOT = Path(__file__).parents[2]


class Fleet:
    """A running ``forebay up``; every child that is killed is started again by it."""

    def __init__(self, data: Path, nodes: Sequence[str], *, folder: Path = ROOT, python: str = sys.executable) -> None:
        self.data = data
        self.nodes = list(nodes)
        self.port = _free_block(len(nodes))
        self.log = data.parent / "up.log"
        self._folder = folder
        self._python = python
        self._up: subprocess.Popen[bytes] | None = None

    @property
    def core(self) -> str:
        """The core's address."""
        return f"http://127.0.0.1:{self.port + 100}"

    @property
    def tills(self) -> dict[str, str]:
        """The edge nodes' addresses."""
        return {node: f"http://127.0.0.1:{self.port + at}" for at, node in enumerate(self.nodes)}

    def start(self) -> None:
        """Start ``forebay up``."""
        command = [self._python, "-m", "forebay", "up", "--data", str(self.data), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._up = subprocess.Popen(
                [*command, "--nodes", ",".join(self.nodes)], cwd=self._folder, stdout=log, stderr=log
            )

    async def ready(self, limit: float = 60) -> None:
        """Wait until every process says that it is ready."""
        async with httpx.AsyncClient(timeout=2) as client:

            async def all_ready() -> bool:
                for url in [*self.tills.values(), self.core]:
                    try:
                        if (await client.get(f"{url}/readyz")).status_code != 200:
                            return False
                    except httpx.HTTPError:
                        return False
                return True

            await until(all_ready, limit=limit, what=lambda: f"the fleet is ready; {self.log.read_text()[-2000:]}")

    def children(self) -> dict[str, int]:
        """The processes that ``up`` has started, by the name of what they are."""
        assert self._up is not None
        found = {}
        for pid, parent, command in _processes():
            if parent == self._up.pid:
                name = "broker" if "nats-server" in command else _option(command, "--node")
                found[name] = pid
        return found

    def kill(self, name: str) -> bool:
        """Send SIGKILL to a child; False where it is just not there."""
        pid = self.children().get(name)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def kill_all(self) -> None:
        """Send SIGKILL to ``up`` itself: the kernel ends its children."""
        assert self._up is not None
        self._up.kill()
        self._up.wait()

    def interrupt(self, limit: float = 5) -> int:
        """Send SIGINT as Ctrl-C does and return the exit code, which is there within ``limit`` seconds."""
        assert self._up is not None
        self._up.send_signal(signal.SIGINT)
        return self._up.wait(timeout=limit)

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._up is not None and self._up.poll() is None:
            self._up.kill()
            self._up.wait()


def alive(processes: Mapping[str, int]) -> list[str]:
    """Return the names of those processes that are there."""
    return [name for name, pid in processes.items() if Path(f"/proc/{pid}").exists()]


def _processes() -> Iterator[tuple[int, int, str]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if command:
                yield int(folder.name), parent, command


def _option(command: str, name: str) -> str:
    words = command.split()
    return words[words.index(name) + 1] if name in words else command


def _free_block(nodes: int) -> int:
    """Return a first port whose block (the nodes', +100, +200) is free, below the ephemeral range."""
    for _ in range(200):
        port = random.randrange(10_000, 31_000)
        if all(_is_free(each) for each in [*range(port, port + nodes), port + 100, port + 200]):
            return port
    raise AssertionError("no free block of ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
