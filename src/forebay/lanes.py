"""Lanes: classes of events with a byte budget on the node's disk and a priority on its link."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from forebay.errors import ConfigurationError
from forebay.identity import checked_name

DEFAULT_BUDGET = 128 * 1024 * 1024
"""Bytes; about 260,000 events of 400 bytes."""

_SIZE = re.compile(r"([0-9]{1,12})\s*(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


def parse_size(value: str | int, what: str) -> int:
    """Read a size in bytes: a number, or ``"64MiB"``.

    Raises:
        ConfigurationError: it is neither.
    """
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ConfigurationError(f"{what}: {value!r} is not a size", hint='write bytes, or for example "64MiB"')
    return int(match[1]) * _UNITS[match[2]]


class Lane(msgspec.Struct, frozen=True):
    """One lane of a service. Lanes drain in the order in which the service lists them.

    Attributes:
        name: as the events name it.
        budget: bytes on disk, as a number or as ``"128MiB"``.
        when_full: ``block`` refuses writes (503) and keeps everything.
    """

    name: str
    budget: str | int = DEFAULT_BUDGET
    when_full: Literal["block"] = "block"

    def __post_init__(self) -> None:
        checked_name(self.name, "lane")
        if self.budget_bytes < 1:
            raise ConfigurationError(f"lane {self.name}: budget is below one byte")
        if self.when_full != "block":
            raise ConfigurationError(f"lane {self.name}: when_full {self.when_full!r} is not known", hint="use 'block'")

    @property
    def budget_bytes(self) -> int:
        """The budget in bytes."""
        return parse_size(self.budget, f"lane {self.name}: budget")
