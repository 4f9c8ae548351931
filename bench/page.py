"""The results on their page: tables in Markdown between two markers, and a picture for each measure beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.contest import Goal, Held, Measure
from bench.peers.report import MarkerError
from bench.plot import bars, number
from bench.results_file import Results
from bench.spread import Spread, ratio, spread

TIMES = "\N{MULTIPLICATION SIGN}"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def publish(results: Results, page: Path) -> None:
    """Put the tables between the markers of a page, and the pictures into a folder beside it with the page's name.

    Raises:
        MarkerError: the markers are not there.
        ValueError: the results are of a quick run: its figures say nothing.
    """
    if results.quick:
        raise ValueError("results of a quick run are not published")
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MarkerError(f"{page} needs the lines {BEGIN} and {END}, between which the tables go")
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    for held in results.benchmarks:
        for measure in held.measures:
            if columns := spreads(held, measure):
                picture = bars(f"{held.title}: {measure.name}", measure.unit, columns)
                (folder / picture_name(held, measure)).write_text(picture, encoding="utf-8")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(results, folder.name)}\n{END}{after}", encoding="utf-8")


def markdown(results: Results, pictures: str = "") -> str:
    """Return all tables; with the pictures of a folder, where one is named."""
    parts = [_where(results)]
    for held in results.benchmarks:
        parts += [f"### {held.title}", held.told, table(held)]
        parts += list(_goals(held))
        parts += [f"Left out, {column}: {why}" for column, why in held.left_out.items()]
        if pictures:
            parts += [
                f"![{measure.name}]({pictures}/{picture_name(held, measure)})"
                for measure in held.measures
                if spreads(held, measure)
            ]
    return "\n\n".join(parts) + "\n"


def table(held: Held) -> str:
    """Return one benchmark's table: median (least to most) for each column and measure."""
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
    found = ratio(values, beside) if beside else spread(values)
    more = next(each.more_is_better for each in held.measures if each.name == goal.measure)
    return found, found.median >= goal.value if more else found.median <= goal.value


def picture_name(held: Held, measure: Measure) -> str:
    """Return the file name of a measure's picture."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in measure.name.lower())
    return f"{held.name}-{kept.strip('-')}.svg"


def _goals(held: Held) -> Iterator[str]:
    lines = []
    for goal in held.goals:
        of = f"{goal.measure}, {goal.column}"
        times = TIMES if goal.beside else next(each.unit for each in held.measures if each.name == goal.measure)
        than = f" beside {goal.beside}" if goal.beside else ""
        found = reached(held, goal)
        if found is None:
            lines.append(f"- {of}{than}: goal {number(goal.value)} {times}, not measured")
        else:
            verdict = "reached" if found[1] else "**missed**"
            lines.append(f"- {of}{than}: {_cell(found[0])} {times}, goal {number(goal.value)}: {verdict}")
    if lines:
        yield "\n".join(lines)


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
