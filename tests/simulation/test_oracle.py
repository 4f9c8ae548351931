"""The oracle can fail: each rule, switched off, is seen to be missing by the invariant that it defends."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.pace import PACE, Pace
from tests.simulation.rules import Rules, without
from tests.simulation.schedule import simulate

SEEDS = 600
"""Schedules in which a missing rule must show; most do within ten."""


class Broken(NamedTuple):
    """A rule that is off, what strikes, and what the violation begins with."""

    rule: str
    violation: str
    faults: str = ""
    pace: Pace = PACE


BROKEN = [
    Broken("suffix", "5-"),
    Broken("grace", "1-needless-gap", "arestore,wipe", Pace(grace=100, share=0.1)),
    Broken("prev", "3-order"),
    Broken("cause", "2-double-derived", "xrestore,wipe"),
    Broken("identity", "2-double"),
    Broken("read_to_end", "1-needless-gap"),
    Broken("missing", "1-lost-in-needless-gap", "clone,loss,nrestore,crash,msgloss,arestore", Pace(share=0.1)),
    Broken("list_version", "4-freed-early", "wipe,rollback,late"),
    Broken("position_is_truth", "1-needless-gap"),
    Broken("position_names_message", "1-needless-gap", "rollback,arestore,crash,loss", Pace(share=0.1, held_events=3)),
    Broken("runs_on", "1-needless-gap", "dlvloss,arestore,crestore"),
    Broken("resolve", "5-", "withhold,nrestore,xrestore,drop"),
    Broken("go_back", "1-needless-gap", "arestore,msgloss", Pace(held_events=2)),
    Broken("forget_with_position", "1-needless-gap", "arestore,msgloss", Pace(held_events=2)),
    Broken("abandon", "3-order-of-key", "xrestore,wipe,loss", Pace(steps=600)),
    Broken("chain", "5-"),
    Broken("chain_reaches_back", "1-", "late,trim,crash,arestore,wipe,crestore", Pace(share=0.1)),
    Broken("ask_archive", "1-needless-gap", "crestore,trim"),
    Broken("frame_next", "6-books"),
    Broken("frame_borders", "2-double"),
    Broken("sequence_per_destination", "5-"),
    Broken("destination_answers", "4-freed-early"),
    Broken("last_floor", "5-", "commands,xrestore,nrestore,msgloss,trim", Pace(share=0.1)),
    Broken("core_blocks", "1-dropped-unasked"),
    Broken("expiry", "8-done-late"),
    Broken("expiry_in_sequence", "5-"),
    Broken("removal_on_record", "5-"),
    Broken("position_met", "1-lost-in-needless-gap", "commands,rollback,clone,crestore", Pace(share=0.1, grace=100)),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.rule)
def test_a_rule_that_is_switched_off_is_missed(broken: Broken) -> None:
    faults = broken.faults.split(",") if broken.faults else FAULTS
    for seed in range(SEEDS):
        result = simulate(seed, faults, rules=without(broken.rule), pace=broken.pace)
        if result.violation is not None and result.violation.startswith(broken.violation):
            assert simulate(seed, faults, pace=broken.pace).violation is None
            return
    pytest.fail(f"{SEEDS} schedules without {broken.rule} broke nothing")


def test_every_rule_that_can_be_switched_off_is_tried() -> None:
    assert {broken.rule for broken in BROKEN} == set(Rules.__struct_fields__)
