"""Power cuts at every recorded point: no acknowledged write is lost, no database fails its integrity check."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.power import Step, cuts, judge, record
from tests.faults.syscalls import SCRIPTS, reopens_in

pytestmark = pytest.mark.strace

SIZES = {"write": 20, "consume": 45}
"""Units, and events: enough that the log is checkpointed on the way."""

SHARE = 0.3
REOPENED = 25
"""One cut in so many is opened by the engine as well."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", sorted(SCRIPTS))
def test_no_acknowledged_write_is_lost_by_a_power_cut(path: str, seed: int, tmp_path: Path) -> None:
    """Points 1 and 2 of the promise on one disk: synced first, answered then."""
    script = SCRIPTS[path]
    steps = record(script, tmp_path / "run", SIZES[path])
    disk = tmp_path / "disk"
    disk.mkdir()
    done = 0
    for done, cut in enumerate(cuts(steps, random.Random(seed), SHARE), 1):
        wrong = judge(script, cut, disk)
        if done % REOPENED == 0 and not wrong:
            wrong = reopens_in(script, disk / "x.db")
        assert not wrong, f"seed {seed}: {cut}: {wrong}"
    assert done > 300


@pytest.mark.timeout(120)
def test_a_store_that_does_not_sync_would_be_found_out(tmp_path: Path) -> None:
    """The replay is as cruel as it says: the same steps without their syncs lose what was acknowledged."""
    script = SCRIPTS["write"]
    steps = record(script, tmp_path / "run", SIZES["write"])
    unsynced = [step for step in steps if step.kind not in ("sync", "sync-folder")]
    disk = tmp_path / "disk"
    disk.mkdir()
    found = [cut for cut in cuts(unsynced, random.Random(1), 0.2) if judge(script, cut, disk)]
    assert {"none", "random", "torn"} <= {cut.policy for cut in found}


def test_steps_are_replayed_as_they_were_written() -> None:
    """A synced write stays, an unsynced one goes; a file whose folder was not synced goes as a whole."""
    steps = [
        Step("create", "x.db"),
        Step("write", "x.db", 0, b"old"),
        Step("sync", "x.db"),
        Step("sync-folder"),
        Step("write", "x.db", 2, b"new"),
        Step("create", "x.db-wal"),
        Step("write", "x.db-wal", 0, b"log"),
        Step("sync", "x.db-wal"),
    ]
    last = {cut.policy: cut.files for cut in cuts(steps, random.Random(1)) if cut.at == len(steps) - 1}
    assert last["none"] == {"x.db": b"old"}
    assert last["all"] == {"x.db": b"olnew", "x.db-wal": b"log"}
