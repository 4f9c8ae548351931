"""Which department a product belongs to: a reference that comes with the release.

It is part of what the handlers make of an event: with another file the read model gets another version, and is rebuilt.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path

UNKNOWN = "unknown"
"""The department of a product that is not in the reference."""

_FILE = Path(__file__).with_name("departments.csv.gz")


@cache
def departments() -> Mapping[int, str]:
    """Return the departments by product; read once, about 10 MB in memory."""
    with gzip.open(_FILE, "rt", encoding="utf-8", newline="") as file:
        names: dict[str, str] = {}  # each name once, not once for each product
        return {
            int(row["product"]): names.setdefault(row["department"], row["department"]) for row in csv.DictReader(file)
        }


def department_of(product: int) -> str:
    """Return a product's department."""
    return departments().get(product, UNKNOWN)
