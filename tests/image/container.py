"""An image as a container engine runs it, without an engine: its own root, read-only, its own user, as process 1.

The process gets a mount and a process namespace of its own (``unshare``), sees nothing but the image's files, its
volume, ``/proc`` and a few devices, and runs as the image's user. Only the network is the machine's, so that a broker
of the test is reached. All that needs root, and no daemon.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from forebay.testing.nats_server import free_port
from tests.faults.fleet import until

STOP_LIMIT = 10.0
"""Seconds that a container engine waits after SIGTERM before it kills."""

# $1 the image's root, $2 the volume, then pairs of what is mounted over what, then -- and the command.
_ENTER = r"""
root=$1 volume=$2; shift 2
mount --bind "$root" "$root"
mount --bind "$volume" "$root/data"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done; shift
mount -o remount,bind,ro "$root"
mount -t tmpfs -o size=64k,mode=755 dev "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc proc "$root/proc"
exec "$@"
"""


class Image:
    """An image of the build, and its files in a folder of this machine.

    Attributes:
        root: the image's root folder.
        config: as ``docker image inspect`` shows it under ``Config``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._container = buildah("from", "--pull-never", name)
        self.root = Path(buildah("mount", self._container))
        self.config: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", name))["Docker"]["config"]

    @property
    def user(self) -> tuple[int, int]:
        """User and group."""
        user, _, group = self.config["User"].partition(":")
        return int(user), int(group)

    @property
    def environment(self) -> dict[str, str]:
        """What the image sets."""
        return dict(each.split("=", 1) for each in self.config["Env"])

    def remove(self) -> None:
        """Remove the folder."""
        buildah("rm", self._container)

    def volume(self, folder: Path) -> Path:
        """Prepare a folder as a fresh named volume is: owned as the image's own folder is."""
        folder.mkdir(exist_ok=True)
        of = (self.root / "data").stat()
        os.chown(folder, of.st_uid, of.st_gid)
        folder.chmod(of.st_mode & 0o777)
        return folder


class Container:
    """A running container.

    Attributes:
        pid: of its process 1, as this machine counts.
        url: where its HTTP is reached.
        log: what it has written.
    """

    def __init__(
        self,
        image: Image,
        volume: Path,
        *command: str,
        settings: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> None:
        port = free_port()
        self.image = image
        self.url = f"http://127.0.0.1:{port}"
        self.log = volume.with_name(f"{volume.name}.log")
        self._environment = image.environment | {"FOREBAY_PORT": str(port)} | dict(settings or {})
        over = [word for source, target in (mounts or {}).items() for word in (str(source), target)]
        user, group = image.user
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        words += ["sh", "-eu", "-c", _ENTER, "sh", str(image.root), str(volume), *over, "--"]
        words += ["chroot", f"--userspec={user}:{group}", "--groups=", str(image.root), *self._env()]
        words += [*image.config["Entrypoint"], *(command or image.config["Cmd"])]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        children = self._children()
        assert len(children) == 1, f"{children}; {self.log.read_text()}"
        return children[0]

    @property
    def resident(self) -> float:
        """Resident memory in MiB."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no Rss")

    def status(self) -> dict[str, str]:
        """What the kernel says about its process 1."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value for name, _, value in (line.partition(":\t") for line in lines)}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as ``docker exec`` does."""
        user, group = self.image.user
        enter = [
            "nsenter",
            f"--target={self.pid}",
            "--mount",
            "--pid",
            "--root",
            f"--setuid={user}",
            f"--setgid={group}",
        ]
        return subprocess.run([*enter, *self._env(), *command], capture_output=True, text=True, timeout=30, check=False)

    def health(self) -> subprocess.CompletedProcess[str]:
        """Run the image's HEALTHCHECK."""
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*command)

    async def answers(self, path: str, status: int = 200, *, limit: float = 20) -> httpx.Response:
        """Wait until a path answers with a status, and return the answer."""
        answer = httpx.Response(0)

        async def as_wanted() -> bool:
            nonlocal answer
            assert self._process.poll() is None, self.log.read_text()
            try:
                answer = await http.get(f"{self.url}{path}")
            except httpx.TransportError:
                return False
            return answer.status_code == status

        async with httpx.AsyncClient(timeout=5) as http:
            await until(
                as_wanted, limit=limit, what=lambda: f"{path} answers {status}; {answer.text} {self.log.read_text()}"
            )
        return answer

    def wait(self, limit: float = 20) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(timeout=limit)

    def stop(self) -> float:
        """Send SIGTERM as an engine does; it ends with code 0 within the limit. Return the seconds that it took."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        assert self.wait(STOP_LIMIT) == 0, self.log.read_text()
        return time.monotonic() - began

    def kill(self) -> None:
        """End it whatever it does."""
        children = self._children() if self._process.poll() is None else []
        for child in children:  # it ends with its parent only as long as its user does not change
            os.kill(child, signal.SIGKILL)
        if not children:
            self._process.kill()
        self._process.wait()

    def _children(self) -> list[int]:
        found = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(each) for each in found.split()]

    def _env(self) -> Sequence[str]:
        folder = self.image.config["WorkingDir"]
        return ["env", "-i", f"--chdir={folder}", *(f"{name}={value}" for name, value in self._environment.items())]


@contextmanager
def started(image: Image, volume: Path, *command: str, **options: Any) -> Iterator[Container]:
    """Start a container and see to it that nothing of it is left."""
    container = Container(image, volume, *command, **options)
    try:
        yield container
    finally:
        container.kill()


def buildah(*words: str) -> str:
    """Run buildah and return what it prints."""
    done = subprocess.run(
        [*os.environ["BUILDAH"].split(), *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
