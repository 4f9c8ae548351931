"""A service's migrations: numbered ``.sql`` files, one per dialect where they differ.

``0001_sales.sql`` serves every dialect; ``0002_totals.sqlite.sql`` and ``0002_totals.postgres.sql`` one each, and go
before a plain file of the same name.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from forebay.errors import ConfigurationError
from forebay.sqlite.transaction import refused_word

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


@dataclass(frozen=True, slots=True)
class Script:
    """One migration: its file's name without the endings, and its statements in order."""

    name: str
    statements: tuple[str, ...]


def read_scripts(migrations: MigrationSet, dialect: str) -> list[Script]:
    """Return the scripts of one dialect (``sqlite`` or ``postgres``), in order.

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
        if match["dialect"] == dialect or (match["dialect"] is None and match["name"] not in files):
            files[match["name"]] = file
    problems += _misnumbered(named, files, dialect)
    if problems:
        raise ConfigurationError(
            f"{where} cannot be used: {', '.join(problems)}",
            hint="number the files 0001, 0002, ... without gaps; one for a dialect that needs nothing is a comment",
        )
    return [Script(name, tuple(_statements(files[name]))) for name in sorted(files)]


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


def _statements(file: Traversable | Path) -> Iterator[str]:
    statement = ""
    *pieces, rest = file.read_text(encoding="utf-8").split(";")
    for piece in pieces:
        # Only SQLite's own tokenizer knows whether a semicolon ends a statement or stands in a string or a trigger.
        statement += piece + ";"
        if not sqlite3.complete_statement(statement):
            continue
        if word := refused_word(statement):
            raise ConfigurationError(f"{file} runs {word}: a migration has one transaction, which the store controls")
        if not _NOTHING.fullmatch(statement):
            yield statement.strip()
        statement = ""
    if not _NOTHING.fullmatch(statement + rest):
        raise ConfigurationError(f"the last statement of {file} has no semicolon", hint="end each statement with one")
