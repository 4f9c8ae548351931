"""Every file system call of the write and the consume path may be the last, or fail; here a sample of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.syscalls import SCRIPTS, WRITE, Point, disturb, points

SAMPLE = 10
"""Points of each path."""

pytestmark = [pytest.mark.timeout(300), pytest.mark.strace]


@pytest.mark.parametrize("path", sorted(SCRIPTS))
def test_no_promise_breaks_where_a_file_system_call_fails_or_is_the_last(path: str, seed: int, tmp_path: Path) -> None:
    """I3, O6 on the node, S5 and B1 in the core: kept as a whole or not at all, and what was acknowledged is kept."""
    script = SCRIPTS[path]
    known = points(script, tmp_path / "undisturbed")
    assert len(known) > 500
    with ForkServer(script.module) as server:
        for number, point in enumerate(random.Random(seed).sample(known, SAMPLE)):
            found = disturb(script, server, point, tmp_path / str(number))
            assert not found.wrong, f"seed {seed}: {point}: {found.wrong}"


def test_a_failing_sync_is_noticed_by_the_verdict_and_not_passed_over(tmp_path: Path) -> None:
    """The faults are really there: with every sync failing nothing is acknowledged; one that never came is known."""
    with ForkServer(WRITE.module) as server:
        found = disturb(WRITE, server, Point("fdatasync", 1, "error=EIO", onwards=True), tmp_path / "a")
        never = disturb(WRITE, server, Point("fdatasync", 10_000, "error=EIO"), tmp_path / "b")
    assert (found.reached, found.wrong) == (True, [])
    assert (never.reached, never.wrong) == (False, [])
    said = (tmp_path / "a" / "journal").read_text()
    assert "ack" not in said
    assert said.endswith("end\n")
