"""Columns that are measured beside each other: in rounds, interleaved, each round in another order.

What a machine does besides (a disk that is busy, a processor that gets warm) meets every column of a round alike. A
ratio is therefore taken within a round, never between medians.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from bench.environments import PROFILER, python_with
from bench.failures import LeftOutError
from bench.profiling import Profile, profiles

Run = Callable[[Path], Awaitable[dict[str, float]]]
"""Measures once in an empty folder: measure → value. Raises ``EffectsError`` where the check at its end fails."""


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, in the words of the table. ``drawn`` has a picture as well."""

    name: str
    unit: str
    more_is_better: bool = True
    drawn: bool = True


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A figure to reach: the median itself, or as a multiple of another column's in the same rounds.

    Attributes:
        name: of what it is about, in the table of goals; columns share it.
        value: at least that where more is better, else at most.
        beside: the other column; empty for the value itself.
        hint: it is no more than what two cores of a usual kind should bring.
    """

    name: str = ""
    column: str
    measure: str
    value: float
    beside: str = ""
    hint: bool = False


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
    """What a benchmark found.

    Attributes:
        values: column → measure → one value for each round.
        left_out: columns that could not be measured, and why.
        seconds: that all rounds took.
        profiles: of columns, each taken in a run of its own that is not among the rounds.
    """

    name: str
    title: str
    told: str
    measures: tuple[Measure, ...]
    values: dict[str, dict[str, list[float]]]
    goals: tuple[Goal, ...] = ()
    left_out: dict[str, str] = {}
    seconds: float = 0.0
    profiles: dict[str, list[Profile]] = {}


def order(columns: Sequence[str], number: int) -> list[str]:
    """Return the order of round ``number``: every column comes first once in as many rounds as there are columns."""
    at = number % len(columns)
    return [*columns[at:], *columns[:at]]


async def hold(
    benchmark: Benchmark, rounds: int, folder: Path, profile: Callable[[Held], Iterable[str]] | None = None
) -> Held:
    """Measure every column in every round, and then take profiles of those columns that ``profile`` names.

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
            started = time.monotonic()
            try:
                found = await _run(benchmark.columns[column], folder / f"{benchmark.name}-{number}-{at}")
            except LeftOutError as error:
                left_out[column] = str(error)
                _say(f"{benchmark.name}: {column} is left out: {error}")
                continue
            for measure, value in found.items():
                values.setdefault(column, {}).setdefault(measure, []).append(value)
            said = ", ".join(f"{measure} {value:,.4g}" for measure, value in found.items())
            took = time.monotonic() - started
            _say(f"{benchmark.name} {number + 1}/{rounds}  {column}: {said}  [{took:.1f} s]")
    held = Held(
        name=benchmark.name,
        title=benchmark.title,
        told=benchmark.told,
        measures=benchmark.measures,
        values={column: values[column] for column in benchmark.columns if column in values},
        goals=benchmark.goals,
        left_out=left_out,
        seconds=round(time.monotonic() - began, 1),
    )
    return (
        msgspec.structs.replace(held, profiles=await _profiles(benchmark, folder, profile(held))) if profile else held
    )


async def _run(column: Run, where: Path) -> dict[str, float]:
    """Measure in a folder that is gone afterwards; nobody's writes of before are left to the disk."""
    where.mkdir(mode=0o755)  # noqa: ASYNC240 - nothing else is to be done here
    await asyncio.to_thread(os.sync)
    try:
        return await column(where)
    except ExceptionGroup as group:
        raise _first(group) from group
    finally:
        shutil.rmtree(where, ignore_errors=True)


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group, as itself: what a column says must not depend on how it runs its tasks."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


async def _profiles(benchmark: Benchmark, folder: Path, columns: Iterable[str]) -> dict[str, list[Profile]]:
    found = {}
    for at, column in enumerate(columns):
        try:
            await python_with(PROFILER)  # what is measured does not wait for it
            with profiles() as taken:
                await _run(benchmark.columns[column], folder / f"{benchmark.name}-profile-{at}")
        except LeftOutError as error:
            _say(f"{benchmark.name}: no profile of {column}: {error}")
            continue
        if taken:
            found[column] = taken
        _say(f"{benchmark.name}  profile of {column}: " + ", ".join(f"{each.process} {each.looks}" for each in taken))
    return found


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
