"""Power cuts: a script's system calls are recorded once, and replayed to every point with unsynced writes dropped.

What was written and not synced may be on disk or not, in any combination and, within one write, by sectors. The same
holds for the names in a folder. A policy says which: ``none``, ``all``, a ``random`` subset, or that with ``torn``
writes. Nothing that a script said before the point may be missing.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from tests.faults.fork_server import RUN_TIMEOUT
from tests.faults.strace import Strace
from tests.faults.syscalls import Script
from tests.faults.system import ROOT

POLICIES = ("none", "all", "random", "torn")
SECTOR = 512
"""Bytes that a disk writes as a whole."""

_LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+=\s+(-?\d+)")
_FILE = re.compile(r"^-?\d+<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)$")
_UNFINISHED = re.compile(r"^(\d+)\s+(.*) <unfinished \.\.\.>$")


class Step(msgspec.Struct, frozen=True):
    """One thing that a script did: to a file of its database's folder, to the folder, or a line that it said."""

    kind: Literal["create", "write", "cut", "sync", "unlink", "sync-folder", "say"]
    name: str = ""
    offset: int = 0
    data: bytes = b""


def record(script: Script, folder: Path, size: int) -> list[Step]:
    """Run a script undisturbed, with so many units or events, and return what it did."""
    data, journal, log = folder / "data", folder / "journal", folder / "calls"
    data.mkdir(parents=True)
    calls = "trace=openat,pwrite64,write,fsync,fdatasync,ftruncate,unlink"
    command = [Strace.find(), "-f", "-qq", "-xx", "-y", "-s", "1000000", "--seccomp-bpf", "-e", calls, "-o", str(log)]
    for path in (data, journal, *(data / f"x.db{suffix}" for suffix in ("", "-wal", "-journal"))):
        command += ["-P", str(path)]
    command += [sys.executable, "-m", script.module, str(data / "x.db"), str(journal), str(size)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = list(_steps(log, data, journal))
    assert steps[-1] == Step("say", data=b"end\n") or any(step.data == b"end\n" for step in steps), steps[-1]
    return steps


class Cut(msgspec.Struct, frozen=True):
    """What is left after a power cut: the files that the disk has, and what had been said before."""

    at: int
    policy: str
    files: dict[str, bytes]
    said: list[list[str]]

    def __str__(self) -> str:
        return f"cut after step {self.at} ({self.policy})"


def judge(script: Script, cut: Cut, folder: Path) -> list[str]:
    """Put the files of a cut into a folder and return what is wrong with the database."""
    for old in folder.iterdir():
        old.unlink()
    for name, content in cut.files.items():
        (folder / name).write_bytes(content)
    if not (folder / "x.db").exists():
        return ["acknowledged, and no file"] if any(line[0] == "ack" for line in cut.said) else []
    return script.verdict(folder / "x.db", cut.said)


def cuts(steps: list[Step], dice: random.Random, share: float = 1.0) -> Iterator[Cut]:
    """Yield a power cut for each point and policy.

    Args:
        steps: what the script did.
        dice: draws the subsets, and the points where only a share is wanted.
        share: of all points and policies that are yielded.
    """
    disk = _Disk()
    said: list[list[str]] = []
    for at, step in enumerate(steps):
        if step.kind == "say":
            said.append(step.data.decode().split())
        else:
            disk.take(step)
        for policy in POLICIES:
            if dice.random() < share:
                yield Cut(at, policy, disk.after_cut(policy, dice), said)


class _Disk:
    """A folder's files: what is durable, and what waits for a sync, per file and for the folder's names."""

    def __init__(self) -> None:
        self._durable: dict[str, bytearray] = {}
        self._pending: dict[str, list[Step]] = {}
        self._names: set[str] = set()
        self._renamed: list[Step] = []

    def take(self, step: Step) -> None:
        if step.kind in ("create", "unlink"):
            self._renamed.append(step)
            if step.kind == "create":
                self._durable.setdefault(step.name, bytearray())
        elif step.kind == "sync-folder":
            for each in self._renamed:
                _rename(self._names, each)
            self._forget()
            self._renamed.clear()
        elif step.kind == "sync":
            content = self._durable.setdefault(step.name, bytearray())
            for each in self._pending.pop(step.name, []):
                _write(content, each)
        else:
            self._pending.setdefault(step.name, []).append(step)

    def _forget(self) -> None:
        """Forget the content of files whose names are durably gone."""
        for name in {each.name for each in self._renamed} - self._names:
            self._durable.pop(name, None)
            self._pending.pop(name, None)

    def after_cut(self, policy: str, dice: random.Random) -> dict[str, bytes]:
        names = set(self._names)
        for each in self._renamed:
            if _kept(policy, dice):
                _rename(names, each)
        files = {}
        for name in sorted(names):
            content = bytearray(self._durable.get(name, b""))
            for each in self._pending.get(name, ()):
                if _kept(policy, dice):
                    _write(content, each, dice if policy == "torn" else None)
            files[name] = bytes(content)
        return files


def _kept(policy: str, dice: random.Random) -> bool:
    return policy == "all" or (policy in ("random", "torn") and dice.random() < 0.5)


def _rename(names: set[str], step: Step) -> None:
    if step.kind == "create":
        names.add(step.name)
    else:
        names.discard(step.name)


def _write(content: bytearray, step: Step, torn: random.Random | None = None) -> None:
    if step.kind == "cut":
        del content[step.offset :]
        content.extend(bytes(step.offset - len(content)))
        return
    for at in range(0, len(step.data), SECTOR if torn else max(1, len(step.data))):
        if torn and torn.random() < 0.5:
            continue
        part = step.data[at : at + SECTOR] if torn else step.data
        begin = step.offset + at
        content.extend(bytes(max(0, begin + len(part) - len(content))))
        content[begin : begin + len(part)] = part


def _steps(log: Path, data: Path, journal: Path) -> Iterator[Step]:
    known: set[str] = set()
    for call, arguments, result in _calls(log):
        if call == "openat":
            path = Path(_texts(arguments)[0].decode())
            if path.parent == data and "O_CREAT" in arguments and path.name not in known and _kind_kept(path):
                known.add(path.name)
                yield Step("create", path.name)
            continue
        if call == "unlink":
            path = Path(_texts(arguments)[0].decode())
            if path.parent == data and _kind_kept(path):
                known.discard(path.name)
                yield Step("unlink", path.name)
            continue
        found = _FILE.match(arguments)
        path = Path(bytes.fromhex(found[1].replace("\\x", "")).decode()) if found else Path()
        if path == journal and call == "write":
            yield Step("say", data=_texts(arguments)[0][:result])
        elif path == data and call in ("fsync", "fdatasync"):
            yield Step("sync-folder")
        elif path.parent == data and _kind_kept(path):
            if call == "pwrite64":
                yield Step("write", path.name, int(arguments.rsplit(",", 1)[1]), _texts(arguments)[0][:result])
            elif call == "ftruncate":
                yield Step("cut", path.name, int(arguments.rsplit(",", 1)[1]))
            elif call in ("fsync", "fdatasync"):
                yield Step("sync", path.name)


def _calls(log: Path) -> Iterator[tuple[str, str, int]]:
    """Yield the calls that succeeded; one that another thread interrupted in the log is joined again."""
    halves: dict[str, str] = {}
    for line in log.read_text().splitlines():
        if unfinished := _UNFINISHED.match(line):
            halves[unfinished[1]] = unfinished[2]
            continue
        if resumed := _RESUMED.match(line):
            line = f"{resumed[1]} {halves.pop(resumed[1])}{resumed[3]}"
        found = _LINE.match(line)
        if found and int(found[3]) >= 0:
            yield found[1], found[2], int(found[3])


def _texts(arguments: str) -> list[bytes]:
    return [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]


def _kind_kept(path: Path) -> bool:
    return path.name.startswith("x.db") and not path.name.endswith(("-shm", ".lock"))
