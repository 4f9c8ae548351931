"""Where a process spends its time: py-spy looks at its stacks from outside while a column is measured once more.

A column says which of its processes does the work (``profiled``); nothing happens there unless a profile is taken. What
is found are shares of the looks in which the process was not idle: ``own`` in the function itself, ``total`` in it or
in what it called.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path

import msgspec

from bench.environments import PROFILER, python_with

RATE = 250
"""Looks a second."""
SHOWN = 12
"""Functions of a profile that are kept."""
LEAST_LOOKS = 20
"""Looks below which a profile says nothing."""
LIMIT = 30.0
"""Seconds for the profiler to write down what it saw."""


class Function(msgspec.Struct, frozen=True):
    """A function and its shares of the looks, 0 to 1."""

    name: str
    own: float
    total: float


class Profile(msgspec.Struct, frozen=True):
    """What one process did.

    Attributes:
        process: which one.
        looks: at threads that were not idle.
        functions: those with the largest shares of their own, the largest first.
        callers: those with the largest shares in all, but for what nine looks of ten are in.
    """

    process: str
    looks: int
    functions: list[Function]
    callers: list[Function]


_wanted: ContextVar[list[Profile] | None] = ContextVar("profiles", default=None)
_PLACE = re.compile(r"(?P<name>.*) \((?P<path>[^()]*?)(:\d+)?\)")
_PACKAGE = re.compile(r".*/(?:site-packages|lib/python[\d.]+|src|bench|edge|core)/")


@contextmanager
def profiles() -> Iterator[list[Profile]]:
    """Take profiles in this block; yields the list to which they come."""
    found: list[Profile] = []
    token = _wanted.set(found)
    try:
        yield found
    finally:
        _wanted.reset(token)


@asynccontextmanager
async def profiled(process: str, pid: int | None) -> AsyncIterator[None]:
    """Look at a process in this block, where profiles are taken.

    Raises:
        RuntimeError: the profiler failed; the message ends with what it said.
    """
    found = _wanted.get()
    if found is None or pid is None:
        yield
        return
    program = Path(await python_with(PROFILER)).parent / "py-spy"
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        stacks = Path(folder) / "stacks.txt"
        command = [str(program), "record", "--pid", str(pid), "--rate", str(RATE), "--duration", "unlimited"]
        command += ["--format", "raw", "--nolineno", "--output", str(stacks)]
        looking = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                looking.send_signal(signal.SIGINT)
            async with asyncio.timeout(LIMIT):
                said, _ = await looking.communicate()
        if not stacks.is_file():
            raise RuntimeError(f"py-spy says nothing of {process}: {said.decode(errors='replace')[-500:]}")
        found.append(summary(process, stacks.read_text(errors="replace")))


def summary(process: str, stacks: str) -> Profile:
    """Add up the stacks of a profile: lines of ``outermost;...;innermost count``."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        functions = [_named(each) for each in stack.split(";")]
        own[functions[-1]] += int(count)
        for function in set(functions):
            total[function] += int(count)
    looks = own.total()

    def shares(counted: Counter[str]) -> list[Function]:
        return [Function(name, own[name] / looks, total[name] / looks) for name, _ in counted.most_common(SHOWN)]

    inner = Counter({name: count for name, count in total.items() if count < looks * 0.9})
    return Profile(process, looks, shares(own), shares(inner))


def _named(function: str) -> str:
    """Return ``function (package/module.py)`` of what the profiler calls it."""
    match = _PLACE.fullmatch(function)
    if match is None:
        return function
    path = _PACKAGE.sub("", match["path"])
    return f"{match['name']} ({path})"
