"""``forebay health``, and the process as systemd sees it."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from forebay.cli.health import LIVE, check
from forebay.testing.nats_server import free_port

ROOT = Path(__file__).parents[2]
COMMANDS = [["-m", "forebay.cli.health"], ["-m", "forebay", "health"]]


@contextmanager
def answering(status: int, body: str) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 200)
            self.end_headers()
            self.wfile.write(body.encode() if self.path == "/readyz" else b"ok")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


READY = '{"ready":true,"connected":true,"problems":[]}'
UNREADY = '{"ready":false,"connected":false,"problems":["sales: does not read: not connected"]}'


@pytest.mark.parametrize("command", COMMANDS, ids=["check", "command"])
@pytest.mark.parametrize(
    ("status", "body", "code", "line"),
    [
        (200, READY, 0, "ready, connected\n"),
        (200, READY.replace('true,"p', 'false,"p'), 0, "ready, no link\n"),
        (503, UNREADY, 1, "503: sales: does not read: not connected\n"),
        (502, "<html>\nno</html>", 1, "502: <html> no</html>\n"),
    ],
)
def test_health_is_a_line_and_an_exit_code(command: list[str], status: int, body: str, code: int, line: str) -> None:
    with answering(status, body) as port:
        done = ask(command, str(port))
    assert (done.returncode, done.stdout + done.stderr) == (code, line)


@pytest.mark.parametrize("command", COMMANDS, ids=["check", "command"])
def test_nobody_who_answers_is_a_line_and_1(command: list[str]) -> None:
    port = free_port()
    done = ask(command, str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"no answer from 127.0.0.1:{port}: Connection refused\n"


def test_a_port_that_is_none_is_a_line() -> None:
    done = ask(["-m", "forebay.cli.health"], "http")
    assert (done.returncode, done.stderr) == (1, "FOREBAY_PORT: 'http' is none\n")


def test_live_asks_only_whether_it_answers() -> None:
    with answering(503, UNREADY) as port:
        assert check("0.0.0.0", port, LIVE) == (True, "ok")


def test_what_does_not_speak_http_is_not_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        assert not check("127.0.0.1", port).well


def test_what_never_answers_is_not_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert check("127.0.0.1", server.getsockname()[1], timeout=0.05) == (
            False,
            f"no answer from 127.0.0.1:{server.getsockname()[1]}: timed out",
        )


def test_the_check_loads_neither_click_nor_the_engine() -> None:
    program = "import sys, forebay.cli.health; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert not {"click", "litestar", "msgspec", "nats", "anyio", "asyncio"} & set(loaded.stdout.split())


def ask(command: list[str], port: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "FOREBAY_PORT": port},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_systemd_hears_of_the_start_of_life_and_of_the_stop(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        port = free_port()
        command = ["run", "edge.till", "--node", "store-1", "--data", str(tmp_path / "data"), "--port", str(port)]
        process = await anyio.open_process(
            [sys.executable, "-m", "forebay", *command],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            heard: list[bytes] = []
            while b"READY=1" not in heard or heard.count(b"WATCHDOG=1") < 3:
                heard.append(await anyio.to_thread.run_sync(systemd.recv, 100))
            assert check("127.0.0.1", port, LIVE).well
            process.send_signal(signal.SIGTERM)
            while heard[-1] != b"STOPPING=1":
                heard.append(await anyio.to_thread.run_sync(systemd.recv, 100))
            with anyio.fail_after(10):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            await process.aclose()
