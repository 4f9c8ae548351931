"""A share of the campaign; ``python -m tests.simulation -n 100000 -j 2`` runs it in full."""

from __future__ import annotations

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.pace import Pace
from tests.simulation.schedule import Result, simulate

BLOCK = 300
"""Schedules of one test, some five seconds."""

EVENTS_ALONE = [name for name in FAULTS if name not in ("commands", "frames", "remove")]
"""What strikes a world without commands and frames."""

KEPT = (273, 431, 775, 916, 1400, 100461, 100526, 102701, 103004)
"""Seeds that found something once: in a draft of the code, of the simulation, or in the same world with a rule off."""

KEPT_SINCE = (554, 1066, 1383, 1654, 1677, 10055, 10135, 603068, 728986)
"""The same, since there are commands and frames."""


def broken(results: list[Result]) -> list[str]:
    return [
        f"{result.violation}; replay: python -m tests.simulation --seed {result.seed} -v"
        for result in results
        if result.violation
    ]


@pytest.mark.parametrize("first", range(0, 6 * BLOCK, BLOCK))
def test_whatever_breaks_nothing_is_lost_doubled_or_reordered_and_everything_drains_b1_to_b7(first: int) -> None:
    assert broken([simulate(seed, FAULTS) for seed in range(first, first + BLOCK)]) == []


@pytest.mark.parametrize(
    ("faults", "pace"),
    [
        (["arestore", "crestore", "msgloss", "trim", "rcrash"], Pace(held_events=2)),
        (["clone", "nrestore", "loss", "crash", "drop", "withhold"], Pace(share=0.15)),
        (["xrestore", "wipe", "rollback", "park", "batch"], Pace(share=0.15)),
        (["frames", "loss", "msgloss", "forget", "withhold", "dlvloss", "clone"], Pace(share=0.1, held_events=3)),
        (["commands", "remove", "loss", "nrestore", "crestore", "xrestore", "clone", "wipe"], Pace(share=0.1)),
        (["commands", "crash", "rcrash", "rollback", "msgloss", "park", "durable"], Pace(share=0.15, room=4)),
    ],
    ids=["restored-consumers", "restored-nodes", "restored-emitters", "frames", "restored-commands", "lost-commands"],
)
def test_few_faults_that_strike_often_break_nothing_either_b3_b5_o1(faults: list[str], pace: Pace) -> None:
    assert broken([simulate(seed, faults, pace=pace) for seed in range(80)]) == []


def test_without_faults_everything_takes_effect_at_once_and_nothing_is_sent_again_c2() -> None:
    results = [simulate(seed, faults) for seed in range(20) for faults in ([], ["commands", "frames"])]
    assert broken(results) == []
    assert sum(result.resends for result in results) == 0


@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_that_found_something_once_finds_nothing_any_more(seed: int) -> None:
    assert broken([simulate(seed, EVENTS_ALONE)]) == []


@pytest.mark.parametrize("seed", KEPT_SINCE)
def test_a_seed_that_found_something_about_commands_finds_nothing_any_more(seed: int) -> None:
    assert broken([simulate(seed, FAULTS)]) == []


def test_a_seed_replays_exactly() -> None:
    first, again = simulate(431, FAULTS), simulate(431, FAULTS)
    assert (first.events, first.resends, first.rounds, first.soft) == (
        again.events,
        again.resends,
        again.rounds,
        again.soft,
    )
