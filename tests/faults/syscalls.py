"""Every file system call of a path, one by one: killed there, or failed there, by ``strace -e inject``."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from forebay.sqlite import MigrationSet
from tests.faults.fork_server import Ended, ForkServer
from tests.faults.scripts import consume_path, write_path
from tests.faults.scripts.journal import read_journal
from tests.faults.verdicts import Verdict, consume_verdict, reopens, write_verdict

WRITING = frozenset({"pwrite64", "write", "ftruncate", "fallocate", "openat", "mkdir"})
"""Calls that a full disk fails."""

CALLS = "calls"
"""The file in a run's folder that has the calls, as strace wrote them down."""

_CALL = re.compile(r"^(\d+)\s+(\w+)\(")


class Script(msgspec.Struct, frozen=True):
    """A script, how to judge its database, and its migrations."""

    name: str
    module: str
    verdict: Verdict
    migrations: list[MigrationSet]


WRITE = Script("write", write_path.__name__, write_verdict, write_path.migrations())
CONSUME = Script("consume", consume_path.__name__, consume_verdict, consume_path.migrations())
SCRIPTS = {each.name: each for each in (WRITE, CONSUME)}


class Point(msgspec.Struct, frozen=True, order=True):
    """The nth time that a script makes a system call, and what happens there.

    ``fault`` is what strace injects; with ``onwards`` every later one of these calls fails as well.
    """

    call: str
    nth: int
    fault: str
    onwards: bool = False

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} {self.nth}{' and on' if self.onwards else ''}"


def points(script: Script, folder: Path) -> list[Point]:
    """Run a script undisturbed and return every point at which it can be disturbed."""
    with ForkServer(script.module) as server:
        return list(_points(_counts(server, folder)))


def _points(counts: Counter[str]) -> Iterator[Point]:
    for call, count in sorted(counts.items()):
        for nth in range(1, count + 1):
            yield Point(call, nth, "signal=SIGKILL")
            yield Point(call, nth, "error=EIO")
            if call in WRITING:
                yield Point(call, nth, "error=ENOSPC")
            if call in ("pwrite64", "fdatasync"):
                yield Point(call, nth, "error=EIO", onwards=True)
                yield Point(call, nth, "error=ENOSPC", onwards=True)


class Disturbed(msgspec.Struct, frozen=True):
    """What came of one fault: whether the run got to it, and what is wrong afterwards."""

    reached: bool
    wrong: list[str]


def disturb(script: Script, server: ForkServer, point: Point, folder: Path) -> Disturbed:
    """Run a script with one fault and say what is wrong afterwards, before and after it was opened again."""
    when = f"{point.nth}{'+' if point.onwards else ''}"
    inject = f"inject={point.call}:{point.fault}:when={when}"
    # Only the one call is traced: each of the others would be written down.
    ended = _run(server, folder, ["-e", f"trace={point.call}", "-e", inject])
    reached = ended.code == -9 or "(INJECTED)" in (folder / CALLS).read_text()
    journal = read_journal(folder / "journal")
    database = folder / "data" / "x.db"
    wrong = []
    if ended.code not in (0, -9):
        wrong.append(f"the script ended with {ended.code}: {ended.errors[-600:]}")
    if not database.exists():
        lost = any(line[0] == "ack" for line in journal)
        return Disturbed(reached, wrong + (["acknowledged, and no file"] if lost else []))
    wrong += reopens_in(script, database)
    return Disturbed(reached, wrong + script.verdict(database, journal))


def reopens_in(script: Script, database: Path) -> list[str]:
    """Open a script's database as the next process would; return what is wrong."""
    if not database.exists():
        return []
    return asyncio.run(reopens(database, script.migrations))


def run(server: ForkServer, folder: Path, options: Sequence[str]) -> str:
    """Run a script undisturbed to its end and return the calls on its files that it made, a line each."""
    ended = _run(server, folder, options)
    assert ended.code == 0, ended.errors
    said = read_journal(folder / "journal")
    assert said[-1:] == [["end"]], said
    assert not any(line[0] == "closed" for line in said), said
    return (folder / CALLS).read_text()


def _counts(server: ForkServer, folder: Path) -> Counter[str]:
    calls = run(server, folder, ["-e", "trace=%file,%desc"])
    per_thread: Counter[tuple[str, str]] = Counter(
        (found[1], found[2]) for line in calls.splitlines() if (found := _CALL.match(line))
    )
    # strace counts "when" for each thread by itself.
    counts: Counter[str] = Counter()
    for (_, call), count in per_thread.items():
        counts[call] = max(counts[call], count)
    return counts


def _run(server: ForkServer, folder: Path, options: Sequence[str]) -> Ended:
    data = folder / "data"
    data.mkdir(parents=True)
    watched = [data, *(data / f"x.db{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))]
    paths = [option for each in watched for option in ("-P", str(each))]
    options = [*paths, *options, "-o", str(folder / CALLS)]
    return server.run([str(data / "x.db"), str(folder / "journal")], folder, options)
