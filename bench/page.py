"""The results on their page: tables in Markdown between markers, and a picture for each measure beside it.

The table of goals stands at the top of the page. Where a goal was missed, the page says what the limit is (from
``bench/limits.toml``, written by hand) and shows the profile that was taken of its column.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.contest import Goal, Held, Measure
from bench.peers.report import MarkerError
from bench.plot import bars, number
from bench.profiling import Profile
from bench.results_file import Results
from bench.spread import Spread, ratio, spread

TIMES = "\N{MULTIPLICATION SIGN}"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GOALS_BEGIN, GOALS_END = "<!-- goals:begin -->", "<!-- goals:end -->"
LIMITS = Path(__file__).with_name("limits.toml")
MOST_MEASURES = 5
"""Measures beside each other in a table."""
PROFILED = 8
"""Functions of a profile that are shown."""


def publish(results: Results, page: Path) -> None:
    """Put the tables between the markers of a page, and the pictures into a folder beside it with the page's name.

    Raises:
        MarkerError: the markers are not there.
        ValueError: the results are of a quick run: its figures say nothing.
    """
    if results.quick:
        raise ValueError("results of a quick run are not published")
    text = page.read_text(encoding="utf-8")
    folder = page.with_suffix("")
    text = _between(text, GOALS_BEGIN, GOALS_END, goals(results), page)
    text = _between(text, BEGIN, END, markdown(results, folder.name), page)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for held in results.benchmarks:
        for measure in held.measures:
            if measure.drawn and (columns := spreads(held, measure)):
                picture = bars(f"{held.title}: {measure.name}", measure.unit, columns)
                (folder / picture_name(held, measure)).write_text(picture, encoding="utf-8")
    page.write_text(text, encoding="utf-8")


def _between(text: str, begin: str, end: str, new: str, page: Path) -> str:
    before, begins, rest = text.partition(begin)
    _, ends, after = rest.partition(end)
    if not begins or not ends:
        raise MarkerError(f"{page} needs the lines {begin} and {end}, between which the tables go")
    return f"{before}{begin}\n\n{new}\n{end}{after}"


def markdown(results: Results, pictures: str = "") -> str:
    """Return all tables; with the pictures of a folder, where one is named."""
    limits = read_limits()
    parts = [_where(results)]
    for held in results.benchmarks:
        parts += [f"### {held.title}", held.told, table(held)]
        parts += list(_goals(held))
        parts += [f"Left out, {column}: {why}" for column, why in held.left_out.items()]
        parts += [limits[name] for name in missed(held) if name in limits]
        parts += [_profile(column, each) for column, taken in held.profiles.items() for each in taken]
        if pictures:
            parts += [
                f"![{measure.name}]({pictures}/{picture_name(held, measure)})"
                for measure in held.measures
                if measure.drawn and spreads(held, measure)
            ]
    return "\n\n".join(parts) + "\n"


def goals(results: Results) -> str:
    """Return the table of goals: what is to be reached, and what was."""
    lines = ["| Goal | Figure | To reach | Reached: median (least to most) | |", "|---|---|---:|---:|---|"]
    for held in results.benchmarks:
        for goal in held.goals:
            found = reached(held, goal)
            than = f", beside {goal.beside}" if goal.beside else ""
            value = "not measured" if found is None else f"{_cell(found[0])} {_unit(held, goal)}"
            verdict = "" if found is None else ("reached" if found[1] else "**not reached**")
            bound = "at least" if _measure(held, goal).more_is_better else "at most"
            hint = " (a hint)" if goal.hint else ""
            lines.append(
                f"| {goal.name or held.title} | {goal.column}: {goal.measure}{than} "
                f"| {bound} {number(goal.value)} {_unit(held, goal)}{hint} | {value} | {verdict} |"
            )
    quick = "**A quick run: its figures say nothing.**\n\n" if results.quick else ""
    return f"{quick}{chr(10).join(lines)}\n"


def missed(held: Held) -> list[str]:
    """Return the names of goals that were measured and not reached, each once."""
    found = [goal.name or held.title for goal in held.goals if (got := reached(held, goal)) and not got[1]]
    return list(dict.fromkeys(found))


def missed_columns(held: Held) -> list[str]:
    """Return the columns whose goals were measured and not reached, each once."""
    return list(dict.fromkeys(goal.column for goal in held.goals if (got := reached(held, goal)) and not got[1]))


def read_limits(path: Path = LIMITS) -> Mapping[str, str]:
    """Return what is known to limit a figure: the name of its goal → a paragraph in Markdown."""
    found: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: " ".join(text.split()) for name, text in found.items()}


def table(held: Held) -> str:
    """Return one benchmark's table: median (least to most) for each column and measure.

    A column is a row there, unless there are so many measures that nobody could read that.
    """
    if len(held.measures) > MOST_MEASURES:
        lines = [f"| | {' | '.join(held.values)} |", "|---|" + "---:|" * len(held.values)]
        for each in held.measures:
            found = [values.get(each.name) for values in held.values.values()]
            cells = [_cell(spread(values)) if values else "" for values in found]
            lines.append(f"| {each.name}, {each.unit} | " + " | ".join(cells) + " |")
        return "\n".join(lines)
    head = " | ".join(f"{measure.name}, {measure.unit}" for measure in held.measures)
    lines = [f"| | {head} |", "|---|" + "---:|" * len(held.measures)]
    for column, values in held.values.items():
        cells = [_cell(spread(values[each.name])) if each.name in values else "" for each in held.measures]
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spreads(held: Held, measure: Measure) -> dict[str, Spread]:
    """Return how a measure is spread in each column that has it."""
    return {column: spread(found[measure.name]) for column, found in held.values.items() if measure.name in found}


def reached(held: Held, goal: Goal) -> tuple[Spread, bool] | None:
    """Return what a goal is about and whether its median reaches it; None where it was not measured."""
    values = held.values.get(goal.column, {}).get(goal.measure)
    beside = held.values.get(goal.beside, {}).get(goal.measure) if goal.beside else None
    if not values or (goal.beside and not beside):
        return None
    if beside and (len(values) != len(beside) or not all(beside)):
        return None
    found = ratio(values, beside) if beside else spread(values)
    more = _measure(held, goal).more_is_better
    return found, found.median >= goal.value if more else found.median <= goal.value


def picture_name(held: Held, measure: Measure) -> str:
    """Return the file name of a measure's picture."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in measure.name.lower())
    return f"{held.name}-{kept.strip('-')}.svg"


def _goals(held: Held) -> Iterator[str]:
    lines = []
    for goal in held.goals:
        of = f"{goal.measure}, {goal.column}"
        times = _unit(held, goal)
        than = f" beside {goal.beside}" if goal.beside else ""
        found = reached(held, goal)
        if found is None:
            lines.append(f"- {of}{than}: goal {number(goal.value)} {times}, not measured")
        else:
            verdict = "reached" if found[1] else "**missed**"
            lines.append(f"- {of}{than}: {_cell(found[0])} {times}, goal {number(goal.value)}: {verdict}")
    if lines:
        yield "\n".join(lines)


def _measure(held: Held, goal: Goal) -> Measure:
    return next(each for each in held.measures if each.name == goal.measure)


def _unit(held: Held, goal: Goal) -> str:
    return TIMES if goal.beside else _measure(held, goal).unit


def _profile(column: str, profile: Profile) -> str:
    """Return a profile as two lists that are folded away."""
    lines = [
        f"<details><summary>Profile of {column}: the {profile.process}, {profile.looks:,} looks</summary>",
        "",
        "| Function | in itself | in all |",
        "|---|---:|---:|",
    ]
    functions = [*profile.functions[:PROFILED], *profile.callers[:PROFILED]]
    shown = sorted(dict.fromkeys(functions), key=lambda each: -each.own)
    rows = [f"| `{each.name}` | {each.own:.1%} | {each.total:.1%} |" for each in shown]
    return "\n".join([*lines, *rows, "", "</details>"])


def _cell(found: Spread) -> str:
    return f"{number(found.median)} ({number(found.least)} to {number(found.most)})"


def _where(results: Results) -> str:
    here = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.versions.items()))
    warning = "**A quick run: it shows that everything works; its figures say nothing.** " if results.quick else ""
    return (
        f"{warning}{results.at[:10]}, {here.cores} cores ({here.cpu}), Linux {here.kernel}, {here.file_system}, a page "
        f"synced to disk in {_cell(results.fsync_ms)} ms, load {here.load:.1f} at the end; nats-server "
        f"{here.nats_server}, SQLite {here.sqlite}, Python {here.python}; {versions}. {results.rounds} "
        f"{'round' if results.rounds == 1 else 'rounds'} of every column, interleaved: median (least to most)."
    )
