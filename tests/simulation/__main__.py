"""Run seeded schedules: ``python -m tests.simulation -n 100000 -j 2``, or one with its trace: ``--seed 431 -v``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing import Pool

import msgspec

from tests.simulation.faults import FAULTS
from tests.simulation.pace import PACE, Pace
from tests.simulation.rules import Rules, without
from tests.simulation.schedule import Result, simulate

PROGRESS_INTERVAL = 5.0
"""Seconds between lines of progress."""

CHUNK = 20
"""Seeds that a process takes at once."""


def campaign(seeds: Iterable[int], faults: list[str], rules: Rules, pace: Pace, jobs: int) -> Iterator[Result]:
    """Yield the results of many seeds, in any order."""
    run = partial(simulate, faults=faults, rules=rules, pace=pace)
    if jobs == 1:
        yield from map(run, seeds)
        return
    with Pool(jobs) as pool:
        yield from pool.imap_unordered(run, seeds, CHUNK)


def main() -> int:
    """Return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("-n", type=int, default=1000, help="schedules to run")
    parser.add_argument("-j", type=int, default=1, help="processes")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--faults", default="all", help=f"all, or of {','.join(FAULTS)}; a leading - takes them away")
    parser.add_argument("--without", default="", help=f"break rules: of {','.join(Rules.__struct_fields__)}")
    for name, default in msgspec.structs.asdict(PACE).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help="see pace.Pace")
    parser.add_argument("-v", action="store_true", help="tell what happens, with --seed")
    chosen = parser.parse_args()
    try:
        faults, rules = _faults(chosen.faults), without(*filter(None, chosen.without.split(",")))
    except ValueError as error:
        parser.error(str(error))
    pace = Pace(**{name: getattr(chosen, name) for name in Pace.__struct_fields__})
    options = f"--faults={chosen.faults} --without={chosen.without} {_options(pace)}"
    if chosen.seed is not None:
        print(simulate(chosen.seed, faults, rules=rules, pace=pace, verbose=chosen.v))
        return 0
    seeds = range(chosen.first, chosen.first + chosen.n)
    return _report(campaign(seeds, faults, rules, pace, chosen.j), chosen.n, options)


def _options(pace: Pace) -> str:
    return " ".join(f"--{name.replace('_', '-')}={value}" for name, value in msgspec.structs.asdict(pace).items())


def _faults(text: str) -> list[str]:
    names = [name for name in text.removeprefix("-").split(",") if name and name != "all"]
    if unknown := sorted(set(names) - set(FAULTS)):
        raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    if text == "all" or text.startswith("-"):
        return [name for name in FAULTS if name not in names]
    return names


def _report(results: Iterator[Result], total: int, options: str) -> int:
    begun = said = time.monotonic()
    done = events = resends = worst = 0
    soft: Counter[str] = Counter()
    broken: list[Result] = []
    for result in results:
        done, events, resends = done + 1, events + result.events, resends + result.resends
        worst = max(worst, result.rounds)
        soft.update(result.soft)
        if result.violation:
            broken.append(result)
            print(f"seed {result.seed}: {result.violation}")
        now = time.monotonic()
        if now - said > PROGRESS_INTERVAL or done == total:
            said, rate = now, done / (now - begun) * 60
            print(f"{done}/{total} schedules, {rate:.0f} a minute, {len(broken)} violations", flush=True)
    print(f"{events} events, {resends} sent again, {worst} rounds to drain at most; {dict(soft.most_common())}")
    for result in sorted(broken)[:10]:
        print(f"replay: python -m tests.simulation --seed {result.seed} {options} -v")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
