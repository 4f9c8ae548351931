from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from forebay.sd_notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def environment(systemd: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": systemd.getsockname(), **more}


def test_ready_and_stopping_are_told(systemd: socket.socket) -> None:
    notifier = Notifier.from_environment(environment(systemd))
    notifier.ready()
    notifier.stopping()
    assert [systemd.recv(100), systemd.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_an_abstract_name_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0forebay-test-{os.getpid()}")
        listening.settimeout(5)
        Notifier.from_environment({"NOTIFY_SOCKET": f"@forebay-test-{os.getpid()}"}).ready()
        assert listening.recv(100) == b"READY=1"


async def test_signs_of_life_come_at_half_the_limit_until_cancelled(systemd: socket.socket) -> None:
    notifier = Notifier.from_environment(environment(systemd, WATCHDOG_USEC="20000", WATCHDOG_PID=str(os.getpid())))
    assert notifier.watchdog_interval == 0.01
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.watch)
        for _ in range(3):
            assert await anyio.to_thread.run_sync(systemd.recv, 100) == b"WATCHDOG=1"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}],
)
async def test_no_watchdog_is_served_that_is_not_ours(systemd: socket.socket, watchdog: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environment(systemd, **watchdog))
    assert notifier.watchdog_interval is None
    await notifier.watch()
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/at/all"])
async def test_without_a_socket_that_listens_nothing_happens(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.stopping()


def test_a_socket_that_nobody_reads_does_not_stop_the_process(systemd: socket.socket) -> None:
    notifier = Notifier.from_environment(environment(systemd))
    for _ in range(5000):
        notifier.ready()
