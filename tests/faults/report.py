"""What a campaign found, as JSON for programs and as a table in docs/guarantee.md for people."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec

from tests.faults.campaign import Finding, State

BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
SEEDS_SHOWN = 3

MEANING = {
    "kill-edge": "an edge process is killed (SIGKILL)",
    "kill-core": "the core process is killed",
    "kill-broker": "the broker is killed",
    "kill-everything": "all processes and the broker are killed at once",
    "kill-at-start": "a process is killed four times while it starts",
    "crash-point": "a process is killed at a random crash point, between two statements",
    "crash-points": "a process is killed at each of the crash points",
    "freeze-core": "the core stands still (SIGSTOP) for longer than `ack_wait`, and goes on",
    "freeze-edge": "an edge process stands still, and goes on",
    "freeze-broker": "the broker stands still, and goes on",
    "broker-rolled-back": "the broker's store goes back to an older copy",
    "messages-repeated": "150 stored messages are sent again, in any order",
    "broker-wiped": "the broker's store is wiped; `forebay apply`",
    "stream-deleted": "the stream is deleted; `forebay apply`",
    "durables-deleted": "a consumer's durables are deleted; `forebay apply`",
    "block-truncated": "a block file of the stream is truncated",
    "bit-flipped": "a bit of a block file is flipped",
    "stream-full": "the stream is full and refuses",
    "broker-disk-full": "the broker's disk is full until it restarts",
    "publishing-forbidden": "a node's permission to publish is taken, and given back",
    "pulling-forbidden": "the core's permission to fetch is taken, and given back",
    "limit-lowered": "the broker takes smaller messages than before, then large ones again",
    "slow-link": "a link with 50 to 400 ms each way and 4 to 100 kB/s",
    "resets": "a link is reset five times",
    "flaps": "a link is cut and there again 25 times",
    "cut-link": "a link is cut for a while",
    "half-open": "a link lets nothing pass and closes nothing",
    "clock-set": "a running node's clock is set: to 1970, ten years off, or by a step",
    "clock-set-between-runs": "the same while the node is away",
    "broker-power-cut": "a power cut of a broker that syncs by its default",
    "core-power-cut": "a power cut of the core while it runs",
    "edge-power-cut": "a power cut of a node while it runs",
    "edge-disk-full": "a node's disk is full for a while",
    "edge-truncated": "a node's database ends early",
    "edge-bits-flipped": "bits of a node's database or its log are flipped",
    "edge-pages-zeroed": "pages of a node's database read as zeros",
    "edge-log-lost": "a node's log is gone",
    "release-changed": "a node is upgraded with a backlog, rolled back, and upgraded again",
    "core-release-changed": "the core is upgraded with a backlog, rolled back, and upgraded again",
    "edge-restored": "a node's database goes back to an older copy",
    "edge-cloned": "a node's disk is cloned and both run under its name",
    "edge-wiped": "a node's disk is gone",
    "core-restored": "the core's databases go back to an older copy",
    "core-restored-after-freeing": "the same, after the nodes have freed what came later",
    "mixed": "all of these, in a random order",
    "flapping": "the same while links break 1,000 times",
    "syscalls-write": "a file system call of the write path is the last, or fails",
    "syscalls-consume": "a file system call of the consume path is the last, or fails",
    "power-write": "a power cut on a node's disk",
    "power-consume": "a power cut on the core's disk",
    "backlog": "kills with 500,000 events waiting, and 1,000,000 after an outage",
    "orders": "click and collect: core, stores and broker are killed, the payment provider fails and repeats",
}
"""The kinds of findings, in the order of the table."""


class Row(msgspec.Struct):
    """One line of the table."""

    kind: str
    faults: int = 0
    events: int = 0
    violations: int = 0
    seeds: list[int] = []
    figures: dict[str, float] = {}


class Results(msgspec.Struct):
    """A campaign's results; ``complete`` is false while items are left."""

    seed: int
    started: str
    versions: dict[str, str]
    complete: bool
    rows: list[Row]
    violations: dict[str, list[str]]


def results(state: State, *, complete: bool) -> Results:
    """Add up what was found."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in state.findings.values():
        by_kind[finding.kind].append(finding)
    rows = [
        Row(
            kind=kind,
            faults=sum(sum(each.faults.values()) for each in by_kind[kind]),
            events=sum(each.events for each in by_kind[kind]),
            violations=sum(len(each.violations) for each in by_kind[kind]),
            seeds=[each.seed for each in by_kind[kind]],
            figures=_worst(by_kind[kind]),
        )
        for kind in sorted(by_kind, key=list(MEANING).index)
    ]
    violated = {name: each.violations for name, each in state.findings.items() if each.violations}
    return Results(state.seed, state.started, state.versions, complete, rows, violated)


def _worst(findings: list[Finding]) -> dict[str, float]:
    """Return the highest value of each figure; all of them but the speed are better when they are low."""
    worst: dict[str, float] = {}
    for finding in findings:
        for name, value in finding.figures.items():
            worst[name] = max(value, worst.get(name, value))
    return worst


def table(found: Results) -> str:
    """Return the table, with a line before it that says what it is."""
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    part = "" if found.complete else " It is not complete."
    lines = [
        f"Campaign of {found.started[:10]}, seed {found.seed}, with {versions}.{part}",
        f"`make faults` runs it; `make faults ARGS='--seed {found.seed}'` runs this one again.",
        "",
        "| What breaks | Faults | Events | Violations | Seeds |",
        "|---|---:|---:|---:|---|",
    ]
    for row in found.rows:
        shown = ", ".join(str(seed) for seed in row.seeds[:SEEDS_SHOWN])
        more = f" and {len(row.seeds) - SEEDS_SHOWN} more" if len(row.seeds) > SEEDS_SHOWN else ""
        events = f"{row.events:,}" if row.events else ""
        lines.append(f"| {MEANING[row.kind]} | {row.faults:,} | {events} | {row.violations} | {shown}{more} |")
    total = Row("all")
    for row in found.rows:
        total.faults += row.faults
        total.events += row.events
        total.violations += row.violations
    lines.append(f"| **all** | **{total.faults:,}** | **{total.events:,}** | **{total.violations}** | |")
    figures = {name: value for row in found.rows for name, value in row.figures.items()}
    if figures:
        lines += ["", "Measured: " + ", ".join(f"`{name}` {value:,.1f}" for name, value in figures.items()) + "."]
    return "\n".join(lines)


def write_table(page: Path, text: str) -> None:
    """Put the table between the markers of a page; where it has none they come at its end, under a heading.

    Raises:
        ValueError: one of the markers is missing, or they are the wrong way round.
    """
    content = page.read_text(encoding="utf-8")
    if BEGIN not in content and END not in content:
        content = f"{content.rstrip()}\n\n## Broken on purpose\n\n{BEGIN}\n{END}\n"
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has not both {BEGIN} and {END}, in this order")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
