"""A service's migrations: numbered ``.sql`` files, one per dialect where they differ.

``0001_sales.sql`` serves every dialect; ``0002_totals.sqlite.sql`` and ``0002_totals.postgres.sql`` one each, and go
before a plain file of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from forebay.errors import ConfigurationError

_FILE = re.compile(r"(?P<name>(?P<number>\d{4})_[a-z0-9_-]+)(?:\.(?P<dialect>sqlite|postgres))?\.sql")
_NOTHING = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MigrationSet:
    """The migrations of one owner of tables: the engine's own (``forebay``) or a service's.

    Attributes:
        name: under which the applied ones are recorded; never change it.
        folder: where the ``.sql`` files are; other files in it are ignored.
    """

    name: str
    folder: Traversable | Path


class Dialect(NamedTuple):
    """What an adapter knows of its SQL.

    Attributes:
        name: in the files' names: ``sqlite`` or ``postgres``.
        complete: whether a text that ends with a semicolon is a whole statement; else that one stands in a string, say.
        refused: the word of a statement that only the store itself may run, or None.
    """

    name: str
    complete: Callable[[str], bool]
    refused: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Script:
    """One migration: its file's name without the endings, and its statements in order."""

    name: str
    statements: tuple[str, ...]


def read_scripts(migrations: MigrationSet, dialect: Dialect) -> list[Script]:
    """Return the scripts of one dialect, in order.

    Raises:
        ConfigurationError: the folder is missing, a file is misnamed, a number is missing or given twice, a statement
            is not ended by a semicolon or controls the transaction. All misnumbered files are told together.
    """
    where = f"the migrations {migrations.name!r} in {migrations.folder}"
    if not migrations.folder.is_dir():
        raise ConfigurationError(f"{where} cannot be read: there is no such folder", hint="correct the folder's path")
    files: dict[str, Traversable | Path] = {}
    named: dict[int, set[str]] = {}
    problems: list[str] = []
    for file in sorted(migrations.folder.iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        match = _FILE.fullmatch(file.name)
        if match is None:
            problems.append(f"{file.name} is not named like 0001_name.sql or 0001_name.sqlite.sql")
            continue
        named.setdefault(int(match["number"]), set()).add(match["name"])
        if match["dialect"] == dialect.name or (match["dialect"] is None and match["name"] not in files):
            files[match["name"]] = file
    problems += _misnumbered(named, files, dialect.name)
    if problems:
        raise ConfigurationError(
            f"{where} cannot be used: {', '.join(problems)}",
            hint="number the files 0001, 0002, ... without gaps; one for a dialect that needs nothing is a comment",
        )
    return [Script(name, tuple(_statements(files[name], dialect))) for name in sorted(files)]


def _misnumbered(named: dict[int, set[str]], files: dict[str, Traversable | Path], dialect: str) -> Iterator[str]:
    for number in range(1, max(named, default=0) + 1):
        names = named.get(number, set())
        if not names:
            yield f"number {number:04} is missing"
        elif len(names) > 1:
            yield f"number {number:04} is given twice ({' and '.join(sorted(names))})"
        elif not names & files.keys():
            yield f"{next(iter(names))} has no file for {dialect}"
    if 0 in named:
        yield "numbers begin with 0001"


def _statements(file: Traversable | Path, dialect: Dialect) -> Iterator[str]:
    statement = ""
    *pieces, rest = file.read_text(encoding="utf-8").split(";")
    for piece in pieces:
        statement += piece + ";"
        if not dialect.complete(statement):
            continue
        if word := dialect.refused(statement):
            raise ConfigurationError(f"{file} runs {word}: a migration has one transaction, which the store controls")
        if not _NOTHING.fullmatch(statement):
            yield statement.strip()
        statement = ""
    if not _NOTHING.fullmatch(statement + rest):
        raise ConfigurationError(f"the last statement of {file} has no semicolon", hint="end each statement with one")
