"""The long campaign: ``make faults``, or ``python -m tests.faults --time 2h --only soak,power``.

A campaign that was stopped goes on where it was; ``--fresh`` begins another one.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec

from forebay.jetstream.topology.units import SECOND, parse_duration
from forebay.testing.nats_server import find_binary
from tests.faults.campaign import State, items, work_off
from tests.faults.report import results, table, write_table
from tests.faults.strace import Strace, StraceMissingError
from tests.faults.system import ROOT

PAGE = ROOT / "docs" / "guarantee.md"
FOLDER = ROOT / "tmp" / "faults"
"""State, results, and what failing items left behind; not in version control."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left of the campaign; 0 where nothing was violated."""
    options = _parser().parse_args(arguments)
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "state.json"
    if options.fresh:
        kept.unlink(missing_ok=True)
    if kept.exists():
        state = msgspec.json.decode(kept.read_bytes(), type=State)
        if options.seed not in (None, state.seed):
            print(f"{kept} is of seed {state.seed}; give --fresh to begin another campaign", file=sys.stderr)
            return 2
    else:
        seed = options.seed if options.seed is not None else random.randrange(1_000_000)
        state = State(seed, datetime.now(UTC).isoformat(timespec="seconds"), _versions())
    try:
        Strace.find()
    except StraceMissingError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"campaign seed {state.seed}, {len(state.findings)} items done, state in {kept}", flush=True)
    everything = items(folder)
    wanted = [item for item in everything if any(item.name.startswith(each) for each in options.only.split(","))]
    wanted = wanted[: options.count]

    def keep(known: State) -> None:
        beside = kept.with_suffix(".new")
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(known)))
        beside.replace(kept)

    deadline = time.monotonic() + options.time
    try:
        anyio.run(work_off, state, wanted, folder, deadline, keep)
    except KeyboardInterrupt:
        print("stopped; the next run goes on from here")
    found = results(state, complete=all(item.name in state.findings for item in everything))
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    text = table(found)
    print(text)
    if options.docs:
        write_table(options.docs, text)
    shutil.rmtree(folder / "points", ignore_errors=True)
    for name, violations in found.violations.items():
        print(f"VIOLATED {name}: {violations[0]}", file=sys.stderr)
    return 1 if found.violations else 0


def _versions() -> dict[str, str]:
    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"nats-server": said.split()[-1].lstrip("v"), "SQLite": sqlite3.sqlite_version, "Python": python}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=os.environ.get("FOREBAY_SEED"), help="of the campaign; else random")
    parser.add_argument("--time", type=_duration, default=math.inf, help="stop after: 90m, 2h, or seconds")
    parser.add_argument("--count", type=int, help="work on the first so many items only")
    parser.add_argument("--only", default="", help="names that items begin with, by comma: fault/kill,soak,power")
    parser.add_argument("--fresh", action="store_true", help="forget what was found before")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"state, results and failed runs (default: {FOLDER})")
    parser.add_argument("--docs", type=Path, default=PAGE, help="the page whose table is written")
    parser.add_argument("--no-docs", dest="docs", action="store_const", const=None, help="write no page")
    return parser


def _duration(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return parse_duration(text) / SECOND


if __name__ == "__main__":
    sys.exit(main())
