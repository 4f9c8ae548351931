"""What ``forebay.testing`` offers to users works as docs/testing.md says, and its examples run."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from forebay import crash_points as points
from forebay.testing.crash_points import CrashedError, CrashPoints
from forebay.testing.link import Link
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until
from tests.faults.system import ROOT
from tests.services.own_project import write_project

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# (\S+\.py)")


@pytest.mark.timeout(180)
def test_the_examples_of_the_page_on_testing_run(tmp_path: Path) -> None:
    """Pytest runs them in a project of its own, as a user would."""
    write_project(tmp_path / "project")
    (tmp_path / "project" / "pandas.py").write_text("raise ImportError('takes a second to load')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for number, block in enumerate(_BLOCK.findall((ROOT / "docs" / "testing.md").read_text(encoding="utf-8"))):
        named = _NAME.match(block)
        (tmp_path / (named[1] if named else f"test_{number}.py")).write_text(block)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--override-ini=filterwarnings=default"]
    done = subprocess.run([*command, "."], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


# --- waiting


async def test_until_returns_what_the_condition_returned() -> None:
    answers = iter([0, None, "there"])

    async def look() -> str | int | None:
        return next(answers)

    assert await until(look) == "there"


async def test_until_says_what_it_waited_for_in_vain() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: pigs fly, seen 0"):
        await until(lambda: False, limit=0.05, what=lambda: "pigs fly, seen 0")


# --- the link


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(4096):
                        connection.sendall(data)
                except OSError:
                    return

        Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def connect(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=10)


def exchange(connection: socket.socket, data: bytes = b"hello") -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        part = connection.recv(65536)
        if not part:
            raise ConnectionResetError("closed")
        got += part
    return got


def test_a_link_without_a_fault_passes_everything_on(echo: int) -> None:
    with Link(echo) as link, connect(link) as connection:
        payload = bytes(range(256)) * 1000
        assert exchange(connection, payload) == payload
        assert link.accepted == 1
        assert link.carried == (len(payload), len(payload))


def test_a_link_with_a_delay_takes_that_long_each_way(echo: int) -> None:
    with Link(echo) as link, connect(link) as connection:
        exchange(connection)
        link.delay = 0.15
        began = time.monotonic()
        exchange(connection)
        assert time.monotonic() - began >= 0.3


def test_a_link_with_a_rate_takes_as_long_as_the_bytes_need(echo: int) -> None:
    with Link(echo) as link, connect(link) as connection:
        link.rate = 10_000
        began = time.monotonic()
        exchange(connection, b"x" * 3000)
        assert time.monotonic() - began >= 0.3


def test_a_reset_breaks_what_is_open_and_nothing_else(echo: int) -> None:
    with Link(echo) as link:
        with connect(link) as connection:
            exchange(connection)
            link.reset()
            with pytest.raises(OSError, match=r"reset|closed|Broken pipe"):
                exchange(connection)
        with connect(link) as connection:
            assert exchange(connection) == b"hello"


def test_a_cut_link_refuses_until_it_is_healed(echo: int) -> None:
    with Link(echo) as link:
        link.cut()
        with pytest.raises(OSError, match=r"reset|closed|Broken pipe"), connect(link) as connection:
            exchange(connection)
        link.heal()
        with connect(link) as connection:
            assert exchange(connection) == b"hello"


def test_a_frozen_link_keeps_connections_open_and_passes_on_what_it_held_when_healed(echo: int) -> None:
    with Link(echo) as link, connect(link) as connection:
        exchange(connection)
        link.freeze()
        connection.sendall(b"later")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(16)
        with connect(link) as another:
            another.settimeout(0.2)
            with pytest.raises(TimeoutError):
                another.recv(16)
        link.heal()
        connection.settimeout(10)
        assert connection.recv(16) == b"later"


def test_a_link_whose_server_is_away_breaks_connections(echo: int) -> None:
    with Link(1) as link, pytest.raises(OSError, match=r"reset|closed|Broken pipe"), connect(link) as connection:
        exchange(connection)
    assert echo


def test_a_link_may_be_stopped_twice(echo: int) -> None:
    link = Link(echo)
    link.start()
    link.stop()
    link.stop()


# --- crash points


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    points.disarm()


def test_a_crash_point_does_nothing_while_nothing_is_armed() -> None:
    points.reach("write.committed")
    points.reach("no such point")  # not even looked up: it costs one comparison
    assert not points.disarm()


def test_a_crash_point_strikes_at_its_nth_time() -> None:
    crash = CrashPoints()
    crash.arm("write.committed", 2)
    points.reach("write.committed")
    points.reach("write.committing")
    with pytest.raises(CrashedError, match=r"write\.committed"):
        points.reach("write.committed")
    assert crash.disarm() == {"write.committed": 2, "write.committing": 1}


def test_crash_points_are_counted_over_all_names() -> None:
    def crash() -> None:
        raise CrashedError

    points.arm("3", crash)
    points.reach("write.begun")
    points.reach("write.committed")
    with pytest.raises(CrashedError):
        points.reach("relay.read")
    points.reach("relay.read")


@pytest.mark.parametrize("wrong", ["", "0", "write.nowhere", "write.committed:0", "write.committed:x", "-1"])
def test_a_crash_point_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(points.UnknownCrashPointError, match="is no crash point"):
        points.arm(wrong)


def test_reaching_an_unlisted_point_is_a_mistake_that_shows_when_something_is_armed() -> None:
    points.arm("write.begun")
    with pytest.raises(points.UnknownCrashPointError):
        points.reach("write.unlisted")


def test_a_process_is_killed_at_its_crash_point() -> None:
    """As by a power switch: not even what stands in ``finally`` runs."""
    code = (
        "from forebay import crash_points as p\n"
        "p.arm('2')\n"
        "try:\n"
        "    for _ in range(3):\n"
        "        print('reached', flush=True); p.reach('write.begun')\n"
        "finally:\n"
        "    print('finally')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "reached\nreached\n")


# --- the fixtures


def test_a_server_of_the_fixtures_runs_in_a_plain_test(tmp_path: Path) -> None:
    from forebay.testing import fixtures

    fixture = fixtures.nats_server.__wrapped__  # type: ignore[attr-defined]
    steps = fixture(tmp_path)
    server: NatsServer = next(steps)
    try:
        assert server.running
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            assert connection.recv(4) == b"INFO"
    finally:
        assert next(steps, None) is None
    assert not server.running
