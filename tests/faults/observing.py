"""What a process says of itself while a fault lasts: its log, and its metrics."""

from __future__ import annotations

import re

import httpx

from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until

WITHIN = 90.0
"""Seconds for a process to notice; generous, because nobody waits for them where it does."""

_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


class Heard:
    """The lines that a process logs from now on."""

    def __init__(self, process: ServiceProcess) -> None:
        self._process = process
        self._begin = process.log.stat().st_size if process.log.exists() else 0

    def lines(self, *words: str) -> list[str]:
        """Return the lines that have all of these words."""
        with self._process.log.open("rb") as file:
            file.seek(self._begin)
            said = file.read().decode(errors="replace").splitlines()
        return [line for line in said if all(word in line for word in words)]

    async def until(self, *words: str) -> None:
        """Wait for such a line.

        Raises:
            AssertionError: there was none within ``WITHIN``; the message ends with the log.
        """
        what = f"{self._process.node} says {' '.join(words)}"
        await until(lambda: bool(self.lines(*words)), limit=WITHIN, what=lambda: f"{what}; {self.lines()[-6:]}")


async def metric(process: ServiceProcess, name: str) -> float:
    """Return the sum of a metric over its labels; 0 where it is not there."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
        text = (await http.get(f"{process.url}/metrics")).text
    return sum(float(value) for found, _, value in _SAMPLE.findall(text) if found == name)
