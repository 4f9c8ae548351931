"""What the comparison found, as JSON, as a table in Markdown, and in the page that shows it."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench.peers.judging import Outcome, Sum
from forebay.testing.nats_server import find_binary

BEGIN, END = "<!-- leaf:begin -->", "<!-- leaf:end -->"


class MarkerError(Exception):
    """The page has no place for the table."""


class Machine(msgspec.Struct, frozen=True):
    """Where and with what it ran."""

    cpu: str
    cores: int
    kernel: str
    file_system: str
    load: float
    nats_server: str
    python: str
    sqlite: str
    forebay: str


class Report(msgspec.Struct, frozen=True):
    """Everything that was found: by fault and column the sums, and each run."""

    at: str
    machine: Machine
    events_per_part: int
    jobs: int
    """Faults that were under way at a time."""
    seed: int
    seconds: float
    sums: dict[str, dict[str, Sum]]
    runs: dict[str, dict[str, list[Outcome]]]
    failed: list[str]
    """Trials that did not work, and say nothing about their column, with the reason. They are made again."""

    def save(self, path: Path) -> None:
        """Keep it."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def load(path: Path) -> Report:
    """Read a report that was kept."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def publish(report: Report, page: Path) -> None:
    """Put the table between the markers of a page.

    Raises:
        MarkerError: they are not there.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MarkerError(f"{page} needs the lines {BEGIN} and {END}, between which the table goes")
    page.write_text(f"{before}{BEGIN}\n\n{table(report)}\n{END}{after}", encoding="utf-8")


def table(report: Report) -> str:
    """Return the sums as a table in Markdown, with what they are below it."""
    columns = list(next(iter(report.sums.values())))
    lines = ["| Fault | | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for fault, sums in report.sums.items():
        for name, measure, cell in ((fault, "lost, doubled, reordered", _wrong), ("", "next event", _next_event)):
            lines.append(f"| {name} | {measure} | " + " | ".join(cell(sums[column]) for column in columns) + " |")
    here = report.machine
    runs = max(each.runs for sums in report.sums.values() for each in sums.values())
    told = (
        f"{runs} {'run' if runs == 1 else 'runs'} of each, {3 * report.events_per_part} events a run, on "
        f"{report.at[:10]}: nats-server {here.nats_server}, SQLite {here.sqlite}, Python {here.python}, {here.cores} "
        f"cores ({here.cpu}, load {here.load:.1f} at the end). Times are seconds: median (least to most)."
    )
    if report.failed:
        told += f" Trials that did not work and were made again: {len(report.failed)}; the JSON says why."
    return "\n".join([*lines, "", told]) + "\n"


def _wrong(found: Sum) -> str:
    if not found.runs:
        return "did not run"
    counts = f"{found.lost:,}, {found.doubled:,}, {found.reordered:,}"
    if not (found.lost or found.doubled or found.reordered):
        return f"{counts} of {found.acknowledged:,}"
    when = f": {found.lost_before:,} before and {found.lost_after:,} after the heal" if found.lost else ""
    return f"**{counts}** of {found.acknowledged:,}{when}, in {found.runs_wrong} of {found.runs} runs"


def _next_event(found: Sum) -> str:
    if not found.runs:
        return ""
    never = f"never in {found.never} of {found.runs} runs" if found.never else ""
    if found.next_event is None:
        return f"**{never}**"
    least, median, most = found.next_event
    return f"{median:.2f} ({least:.2f} to {most:.2f})" + (f", {never}" if never else "")


def machine(folder: Path) -> Machine:
    """Say where this runs."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return Machine(
        cpu=names[0] if names else platform.machine(),
        cores=os.cpu_count() or 0,
        kernel=platform.release(),
        file_system=kind.stdout.strip(),
        load=round(os.getloadavg()[0], 1),
        nats_server=said.strip().removeprefix("nats-server: v"),
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        forebay=version("forebay"),
    )
