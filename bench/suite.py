"""The benchmarks: ``make bench``, or ``python -m bench.suite``.

    python -m bench.suite                          # everything, 5 rounds: 45 minutes on an idle machine
    python -m bench.suite --only consumption       # one of them, put into the results that there are
    python -m bench.suite --quick                  # everything at sizes that only show that it works
    python -m bench.suite --from bench/results/performance.json   # run nothing, print what was kept

Prints the tables in Markdown, writes every value to a JSON file, and with --publish puts tables and pictures into
docs/performance.md. Each column of each round ends with the check that every event took effect once; one that fails
ends the run with exit code 1, and nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench import (
    bulk_writes,
    consumption,
    draining,
    edge_writes,
    footprint,
    growth,
    latency,
    nodes,
    on_the_link,
    scaling,
)
from bench.contest import Benchmark, Held, hold
from bench.disk import fsync_ms
from bench.failures import EffectsError
from bench.page import goals, markdown, missed_columns, publish
from bench.peers.report import MarkerError, machine
from bench.results_file import Results, load, merged
from forebay.errors import ForebayError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
WORK = ROOT / "tmp" / "bench"
ROUNDS = 5

BENCHMARKS: dict[str, Callable[[bool], Benchmark]] = {
    "consumption": consumption.benchmark,
    "scaling": scaling.benchmark,
    "edge-writes": edge_writes.benchmark,
    "bulk-writes": bulk_writes.benchmark,
    "draining": draining.benchmark,
    "on-the-link": on_the_link.benchmark,
    "latency": latency.benchmark,
    "footprint": footprint.benchmark,
    "nodes": nodes.benchmark,
    "archive": growth.archive,
    "epochs": growth.epochs,
    "sizes": growth.sizes,
}

PEERS = {"FastStream": "0.7.8", "nats-outbox": "0.1.0", "sqloutbox": "0.6.0"}
PACKAGES = ("forebay", "litestar", "uvicorn", "nats-py", "psycopg")


PROFILES: dict[str, Callable[[Held], Iterable[str]] | None] = {
    "none": None,
    "missed": missed_columns,
    "ours": lambda held: [column for column in held.values if column.startswith("forebay")],
}


async def measure(
    names: Sequence[str],
    rounds: int,
    quick: bool,
    folder: Path,
    most: int = growth.MOST,
    profile: str = "none",
    keep: Callable[[Results], None] = lambda _: None,
) -> Results:
    """Run benchmarks one after the other.

    Args:
        names: of ``BENCHMARKS``.
        rounds: of each.
        quick: at sizes that only show that they work.
        folder: an empty one.
        most: events of the largest archive.
        profile: one of ``PROFILES``.
        keep: gets the results after each benchmark: what was measured is not lost if a later one fails.

    Raises:
        EffectsError: the check of one failed.
    """
    found: list[Held] = []
    for name in names:
        print(f"{name}:", file=sys.stderr, flush=True)
        made = growth.archive(quick, most) if name == "archive" else BENCHMARKS[name](quick)
        found.append(await hold(made, rounds, folder, PROFILES[profile]))
        print(f"{name}: {found[-1].seconds:.0f} s", file=sys.stderr, flush=True)
        results = Results(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=quick,
            rounds=rounds,
            machine=machine(folder),
            fsync_ms=fsync_ms(folder),
            versions={package: version(package) for package in PACKAGES} | PEERS,
            benchmarks=found,
        )
        keep(results)
    return results


def _keep(results: Results) -> None:
    results.save(WORK / "so-far.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round at small sizes; writes no JSON unless told to")
    parser.add_argument("--rounds", type=int, help=f"of each column ({ROUNDS})")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="only this one; may be repeated")
    parser.add_argument("--most", type=int, default=growth.MOST, help="events of the largest archive (10,000,000)")
    parser.add_argument(
        "--profile",
        choices=list(PROFILES),
        help="columns that are run again under a profiler: those whose goals were missed (default), or all of ours",
    )
    parser.add_argument("--json", type=Path, help=f"where the results go ({RESULTS.relative_to(ROOT)})")
    parser.add_argument("--from", dest="kept", type=Path, metavar="JSON", help="run nothing, show what a run kept")
    parser.add_argument("--publish", action="store_true", help="put tables and pictures into docs/performance.md")
    options = parser.parse_args(arguments)
    rounds = options.rounds if options.rounds is not None else (1 if options.quick else ROUNDS)
    if rounds < 1:
        parser.error("--rounds is at least 1")
    if options.quick and options.publish:
        parser.error("a quick run says nothing that could be published")
    try:
        if options.kept is not None:
            results = load(options.kept)
        else:
            WORK.mkdir(parents=True, exist_ok=True)  # on the project's disk: a temporary folder may be memory
            profile = options.profile or ("none" if options.quick else "missed")
            with tempfile.TemporaryDirectory(prefix="run-", dir=WORK) as folder:
                names = options.only or list(BENCHMARKS)
                results = asyncio.run(measure(names, rounds, options.quick, Path(folder), options.most, profile, _keep))
            path = options.json or (None if options.quick else RESULTS)
            if path is not None:
                if options.only and path.exists():
                    results = merged(load(path), results)
                results.save(path)
        if options.publish:
            publish(results, PAGE)
    except (EffectsError, ForebayError, MarkerError, RuntimeError, OSError, ValueError, msgspec.MsgspecError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(goals(results))
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
