"""forebay beside a leaf node with JetStream: the same workload, the same faults, side by side in one run.

    python -m bench.peers.leaf                # 5 runs of each fault; about 20 minutes
    python -m bench.peers.leaf --quick        # one run of two faults; below a minute
    python -m bench.peers.leaf --fault "hub killed" --runs 3

The columns, each on the same nats-server binary, with one edge, one hub, one consumer and its SQLite database:

  leaf, default   a leaf node with local JetStream, sourced by a stream of the hub; sync_interval as the server has it
  leaf, always    the same with `sync_interval: always` on both servers
  forebay         `forebay run` on the edge and in the core; the hub with the default sync_interval

The columns run at the same time on one machine: read the times beside each other, not as what a machine of your own
will show. Every trial has three parts of the workload: before the fault, around it, and after the heal. What was
acknowledged to the writer and has no effect at the end is lost. A trial ends when everything arrived, when the leaf
itself has said for 12 s that its source has no lag over a working link and that its consumer has nothing open, or after
90 s. Nobody repairs anything by hand, but for streams and consumers that are gone: these are made anew.

The answer is a table in Markdown on standard output and a JSON file (--json); progress goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.peers.forebay_pair import ForebayPair
from bench.peers.judging import Outcome, add_up
from bench.peers.leaf_pair import LeafPair
from bench.peers.pair import Pair
from bench.peers.report import MarkerError, Report, load, machine, publish, table
from bench.peers.trial import FAULTS, Trial, TrialError
from forebay.errors import ForebayError
from tests.faults.power_cut import RecordingError
from tests.faults.strace import Strace, StraceMissingError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "leaf.json"
PAGE = ROOT / "docs" / "guarantee.md"
EVENTS, QUICK_EVENTS = 200, 60
"""Events of each of the three parts of a trial."""
QUICK_FAULTS = ("edge killed", "power cut at the edge")
JOBS = 2
ATTEMPTS = 3
"""Trials for one run, where the trial itself did not work."""

COLUMNS: dict[str, Callable[[Path, int], Pair]] = {
    "leaf, default": lambda folder, _: LeafPair(folder, "2m"),
    "leaf, always": lambda folder, _: LeafPair(folder, "always"),
    "forebay": ForebayPair,
}


async def compare(faults: Sequence[str], runs: int, events: int, jobs: int, folder: Path, seed: int) -> Report:
    """Run every fault on every column so many times, the columns of one fault side by side."""
    began = time.monotonic()
    found: dict[str, dict[str, list[Outcome]]] = {fault: {column: [] for column in COLUMNS} for fault in faults}
    failed: list[str] = []
    turns = asyncio.Semaphore(jobs)

    async def one(run: int, fault: str) -> None:
        async with turns:
            where = folder / f"{run}-{fault.replace(' ', '-').replace(',', '')}"
            outcomes = await asyncio.gather(
                *(_try(column, fault, where / str(at), events, seed + run, failed) for at, column in enumerate(COLUMNS))
            )
            for column, outcome in zip(COLUMNS, outcomes, strict=True):
                found[fault][column] += [outcome] if outcome else []
            said = "; ".join(f"{column}: {_short(each)}" for column, each in zip(COLUMNS, outcomes, strict=True))
            print(
                f"{time.monotonic() - began:5.0f} s  run {run + 1}/{runs}  {fault}: {said}", file=sys.stderr, flush=True
            )

    async with asyncio.TaskGroup() as tasks:
        for run in range(runs):
            for fault in faults:
                tasks.create_task(one(run, fault))
    sums = {fault: {column: add_up(each) for column, each in columns.items()} for fault, columns in found.items()}
    seconds = round(time.monotonic() - began, 1)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(at, machine(folder), events, jobs, seed, seconds, sums, found, failed)


async def _try(column: str, fault: str, where: Path, events: int, seed: int, failed: list[str]) -> Outcome | None:
    for attempt in range(ATTEMPTS):
        folder = where / str(attempt)
        folder.mkdir(parents=True)
        try:
            return await Trial(COLUMNS[column](folder, seed), folder, events).run(FAULTS[fault])
        except (TrialError, RecordingError, ExceptionGroup) as error:
            failed.append(f"{fault}, {column}: {error!r}")
            print(f"  did not work: {failed[-1]}", file=sys.stderr, flush=True)
    return None


def _short(outcome: Outcome | None) -> str:
    if outcome is None:
        return "did not run"
    arrived = "never" if outcome.next_event is None else f"{outcome.next_event:.2f} s"
    return f"{outcome.lost} of {outcome.acknowledged} lost, next {arrived}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers.leaf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one run of two faults, smaller; writes no JSON")
    parser.add_argument("--runs", type=int, default=5, help="runs of each fault (5)")
    parser.add_argument("--events", type=int, help=f"events of each of a trial's three parts ({EVENTS})")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this fault; may be repeated")
    parser.add_argument("--json", type=Path, help=f"where the result goes ({RESULTS})")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"faults at a time, each in all columns ({JOBS})")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of ports and names, not of time")
    parser.add_argument(
        "--from", dest="kept", type=Path, metavar="JSON", help="run nothing, show what an earlier run kept"
    )
    parser.add_argument("--publish", action="store_true", help="put the table between the markers of docs/guarantee.md")
    options = parser.parse_args(arguments)
    if min(options.runs, options.jobs, EVENTS if options.events is None else options.events) < 1:
        parser.error("--runs, --events and --jobs are at least 1")
    faults = options.fault or (QUICK_FAULTS if options.quick else list(FAULTS))
    events = options.events or (QUICK_EVENTS if options.quick else EVENTS)
    runs = 1 if options.quick else options.runs
    try:
        if options.kept is None:
            Strace.find()
            with tempfile.TemporaryDirectory(prefix="leaf-") as folder:
                report = asyncio.run(compare(faults, runs, events, options.jobs, Path(folder), options.seed))
            if options.json or not options.quick:
                report.save(options.json or RESULTS)
        else:
            report = load(options.kept)
        if options.publish:
            publish(report, PAGE)
    except (StraceMissingError, ForebayError, MarkerError, OSError, msgspec.MsgspecError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
