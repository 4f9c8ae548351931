from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["litestar", "click", "rich", "sqlite_utils", "yaml"]
PURE = [
    "errors",
    "identity",
    "sequences",
    "clock",
    "event",
    "envelope",
    "transaction",
    "protocol.inbox",
    "protocol.confirmation",
]


def loaded_by(module: str) -> set[str]:
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "event",
        "outbox",
        "unit_of_work",
        "sqlite",
        "handlers",
        "inbox",
        "intake",
        "relay",
        "consumer",
        "confirming",
        "following",
        "followers",
        "answering",
    ],
)
def test_importing_the_engine_loads_no_web_framework_and_no_console(module: str) -> None:
    """Whoever writes or forwards events does not pay for what serves pages or prints tables."""
    assert loaded_by(f"forebay.{module}") & set(HEAVY) == set()


@pytest.mark.parametrize("module", PURE)
def test_the_vocabulary_and_the_protocol_load_neither_database_nor_socket(module: str) -> None:
    assert loaded_by(f"forebay.{module}") & {"sqlite3", "nats", "anyio", "asyncio"} == set()


@pytest.mark.parametrize("module", ["outbox", "unit_of_work"])
def test_writing_events_loads_no_broker_client(module: str) -> None:
    assert "nats" not in loaded_by(f"forebay.{module}")


def test_naming_the_package_loads_next_to_nothing() -> None:
    assert loaded_by("forebay") & {*HEAVY, "msgspec", "nats", "sqlite3"} == set()


def test_an_edge_node_loads_nothing_that_it_does_not_need() -> None:
    """What Litestar and sqlite-utils bring along, what makes test data, and what renders what nobody asked for."""
    services = ["edge.gateway", "edge.till", "edge.stock", "edge.coldchain"]
    program = f"""
import sys
from pathlib import Path
import forebay.cli.main, forebay.process
from forebay.project import load_services, read_project
load_services(read_project(Path.cwd()), {services})
print(*sorted({{name.partition('.')[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    unwanted = {"polyfactory", "faker", "sqlite_utils", "httpx", "pygments", "rich", "prometheus_client", "psycopg"}
    assert set(done.stdout.split()) & {*unwanted, "pyarrow", "jinja2", "pydantic"} == set()
