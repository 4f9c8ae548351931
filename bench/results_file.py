"""The results as a file: everything measured, each value of each round, and where that was."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.contest import Held
from bench.peers.report import Machine
from bench.spread import Spread


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the benchmarks.

    Attributes:
        at: when, in UTC.
        quick: at sizes that only show that it works; its figures say nothing.
        rounds: of each column.
        fsync_ms: of a page, on the disk where the databases were.
        versions: of the packages that are compared.
    """

    at: str
    quick: bool
    rounds: int
    machine: Machine
    fsync_ms: Spread
    versions: dict[str, str]
    benchmarks: list[Held]

    def save(self, path: Path) -> None:
        """Write them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def load(path: Path) -> Results:
    """Read what ``save`` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def merged(earlier: Results, later: Results) -> Results:
    """Put the benchmarks of a run of some into an earlier run of all; both were on one machine, else it is refused.

    Raises:
        ValueError: the machines or the sizes are not the same.
    """

    def same(results: Results) -> tuple[object, ...]:
        where = results.machine
        return where.cpu, where.cores, where.kernel, where.nats_server, where.python, results.quick

    if same(earlier) != same(later):
        raise ValueError("the earlier results are of another machine, other versions or other sizes")
    new = {held.name: held for held in later.benchmarks}
    kept = [new.pop(held.name, held) for held in earlier.benchmarks]
    return msgspec.structs.replace(later, benchmarks=[*kept, *new.values()])
