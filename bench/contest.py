"""Columns that are measured beside each other: in rounds, interleaved, each round in another order.

What a machine does besides (a disk that is busy, a processor that gets warm) meets every column of a round alike. A
ratio is therefore taken within a round, never between medians.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec

Run = Callable[[Path], Awaitable[dict[str, float]]]
"""Measures once in an empty folder: measure → value. Raises ``EffectsError`` where the check at its end fails."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, in the words of the table."""

    name: str
    unit: str
    more_is_better: bool = True


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A figure to reach: the median itself, or as a multiple of another column's in the same rounds.

    Attributes:
        value: at least that where more is better, else at most.
        beside: the other column; empty for the value itself.
    """

    column: str
    measure: str
    value: float
    beside: str = ""


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the report.

    Attributes:
        name: for ``--only`` and for file names.
        title: of the table.
        told: what is measured and how, in whole sentences.
        columns: name → what measures it once.
    """

    name: str
    title: str
    told: str
    measures: tuple[Measure, ...]
    columns: Mapping[str, Run]
    goals: tuple[Goal, ...] = ()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What a benchmark found: column → measure → one value for each round, and columns that could not be measured."""

    name: str
    title: str
    told: str
    measures: tuple[Measure, ...]
    values: dict[str, dict[str, list[float]]]
    goals: tuple[Goal, ...] = ()
    left_out: dict[str, str] = {}
    seconds: float = 0.0


class LeftOutError(Exception):
    """A column cannot be measured here: a program or a package that it needs is not to be had. Says which."""


def order(columns: Sequence[str], number: int) -> list[str]:
    """Return the order of round ``number``: every column comes first once in as many rounds as there are columns."""
    at = number % len(columns)
    return [*columns[at:], *columns[:at]]


async def hold(benchmark: Benchmark, rounds: int, folder: Path) -> Held:
    """Measure every column in every round.

    Raises:
        EffectsError: a check failed. Nothing of the benchmark is of value then.
    """
    began = time.monotonic()
    values: dict[str, dict[str, list[float]]] = {}
    left_out: dict[str, str] = {}
    for number in range(rounds):
        for at, column in enumerate(order(list(benchmark.columns), number)):
            if column in left_out:
                continue
            where = folder / f"{benchmark.name}-{number}-{at}"
            where.mkdir(mode=0o755)
            try:
                found = await benchmark.columns[column](where)
            except LeftOutError as error:
                left_out[column] = str(error)
                print(f"  {benchmark.name}: {column} is left out: {error}", file=sys.stderr, flush=True)
                continue
            for measure, value in found.items():
                values.setdefault(column, {}).setdefault(measure, []).append(value)
            said = ", ".join(f"{measure} {value:,.4g}" for measure, value in found.items())
            print(f"  {benchmark.name} {number + 1}/{rounds}  {column}: {said}", file=sys.stderr, flush=True)
    return Held(
        name=benchmark.name,
        title=benchmark.title,
        told=benchmark.told,
        measures=benchmark.measures,
        values={column: values[column] for column in benchmark.columns if column in values},
        goals=benchmark.goals,
        left_out=left_out,
        seconds=round(time.monotonic() - began, 1),
    )
