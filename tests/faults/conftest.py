"""The seed: each run prints its own, and ``--seed N`` or ``FOREBAY_SEED=N`` runs it again; what is not run, loudly."""

from __future__ import annotations

import os
import random
from functools import cache

import pytest

from tests.faults.strace import INSTALL, works


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="seed of the fault tests; else FOREBAY_SEED, else a random one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs with ``make faults``, or ``pytest -m campaign``, and never unasked."""
    if "campaign" not in config.getoption("markexpr"):
        long = [item for item in items if item.get_closest_marker("campaign")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run; a failing test shows it."""
    # The option exists only where this folder was named on the command line.
    chosen = request.config.getoption("--seed", default=None) or os.environ.get("FOREBAY_SEED")
    seed = int(chosen) if chosen else random.randrange(1_000_000)
    print(f"seed {seed}: FOREBAY_SEED={seed} .venv/bin/pytest '{request.node.nodeid}'")
    return seed


@cache
def _strace_works() -> bool:
    return works()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs strace is not run without it, and is not counted as passed."""
    if item.get_closest_marker("strace") and not _strace_works():
        pytest.skip(INSTALL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the end what was not run."""
    missing = [each for each in terminalreporter.stats.get("skipped", ()) if INSTALL in str(each.longrepr)]
    if missing:
        terminalreporter.section("NOT RUN", sep="!", red=True)
        terminalreporter.line(f"{len(missing)} tests: {INSTALL}")
