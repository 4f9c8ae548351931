"""Whether a database keeps the promise after a script on it was killed, failed, or cut off from its disk.

``write_verdict`` and ``consume_verdict`` return what is wrong, nothing where all is well. They read the file as it
is, with SQLite alone; ``reopens`` lets the engine open it as the next process would.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from forebay.errors import ForebayError
from forebay.sqlite import MigrationSet, SqliteStore
from tests.faults.scripts import consume_path, write_path

Lines = Sequence[Sequence[str]]
Verdict = Callable[[Path, Lines], list[str]]


def write_verdict(path: Path, journal: Lines) -> list[str]:
    """Judge the database of the write path: acknowledged is there, refused is not, no unit is there in part."""
    try:
        return _write_verdict(path, journal)
    except sqlite3.DatabaseError as error:
        return [f"integrity: {error}"]


def consume_verdict(path: Path, journal: Lines) -> list[str]:
    """Judge the database of the consume path: effects, inbox and position tell of the same events."""
    try:
        return _consume_verdict(path, journal)
    except sqlite3.DatabaseError as error:
        return [f"integrity: {error}"]


def _write_verdict(path: Path, journal: Lines) -> list[str]:
    said = {word: {int(line[1]) for line in journal if line[0] == word} for word in ("ack", "refused", "unknown")}
    ids = {line[1]: line[2:] for line in journal if line[0] == "ack"}
    wrong = []
    connection = sqlite3.connect(path)
    try:
        wrong += _integrity(connection)
        if not _has(connection, "reading"):
            return wrong + ([f"no tables, and {sorted(said['ack'])} were acknowledged"] if said["ack"] else [])
        domain = dict(connection.execute("select number, event from reading").fetchall())
        events = [
            row[0]
            for row in connection.execute(
                "select e.epoch || '-' || o.sequence from forebay_outbox o join forebay_epoch e on e.id = o.epoch"
            )
        ]
        epochs = connection.execute("select epoch, last, id from forebay_epoch").fetchall()
        floors = dict(connection.execute("select floor_epoch, floor_sequence from forebay_origin").fetchall())
        written, confirmed = connection.execute(
            "select coalesce(sum(written), 0), coalesce(sum(confirmed), 0) from forebay_origin"
        ).fetchone()
    finally:
        connection.close()
    freed = {f"{epoch}-{number}" for epoch, floor in floors.items() if epoch for number in range(1, floor + 1)}
    known = set(events) | freed
    units = {(number - 1) // write_path.EVENTS for number in domain} | set().union(*said.values())
    for unit in sorted(units):
        numbers = range(unit * write_path.EVENTS + 1, (unit + 1) * write_path.EVENTS + 1)
        there = [number for number in numbers if number in domain]
        if there and len(there) < write_path.EVENTS:
            wrong.append(f"unit {unit} is there in part: {there}")
        if unit in said["ack"] and [domain.get(number) for number in numbers] != list(ids[str(unit)]):
            wrong.append(f"unit {unit} was acknowledged as {ids[str(unit)]} and is {there}")
        if unit in said["refused"] and there:
            wrong.append(f"unit {unit} was refused and is there")
    if set(domain.values()) != known:
        wrong.append(f"rows and events differ: {sorted(set(domain.values()) ^ known)}")
    for epoch, last, _ in epochs:
        places = {int(each.partition("-")[2]) for each in known if each.startswith(epoch)}
        if places != set(range(1, last + 1)):
            wrong.append(f"epoch {epoch} ends at {last} and has {sorted(places)}")
    if written - confirmed != len(events) or confirmed != len(freed):
        wrong.append(f"the books say {written} written, {confirmed} freed; there are {len(events)} and {len(freed)}")
    for line in journal:
        if line[0] == "read" and int(line[2]) != write_path.EVENTS:
            wrong.append(f"unit {line[1]} was acknowledged and then read back as {line[2]} rows")
    return wrong


def _consume_verdict(path: Path, journal: Lines) -> list[str]:
    acknowledged = max((int(line[1]) for line in journal if line[0] == "ack"), default=0)
    wrong = []
    connection = sqlite3.connect(path)
    try:
        wrong += _integrity(connection)
        if not _has(connection, "effect"):
            return wrong + ([f"no tables, and {acknowledged} were acknowledged"] if acknowledged else [])
        effects = [row[0] for row in connection.execute("select number from effect order by position")]
        total = connection.execute("select coalesce(sum(effects), 0), coalesce(sum(sum), 0) from total").fetchone()
        held = {row[0] for row in connection.execute("select sequence from forebay_held")}
        watermark = connection.execute("select coalesce(max(watermark), 0) from forebay_inbox").fetchone()[0]
        position = connection.execute("select coalesce(max(sequence), 0) from forebay_position").fetchone()[0]
        parked = connection.execute("select count(*) from forebay_parked").fetchone()[0]
    finally:
        connection.close()
    seen = set(consume_path.sequences(max(position, consume_path.EVENTS))[:position])
    if effects != list(range(1, len(effects) + 1)):
        wrong.append(f"the effects are {effects}")
    if watermark != len(effects) or set(effects) | held != seen or set(effects) & held:
        wrong.append(f"position {position}, watermark {watermark}, {len(effects)} effects, held {sorted(held)}")
    if total != (len(effects), sum(effects)):
        wrong.append(f"the totals say {total}, the effects are {effects}")
    if position < acknowledged:
        wrong.append(f"acknowledged up to {acknowledged}, the database is at {position}")
    if parked:
        wrong.append(f"{parked} events are parked")
    return wrong


async def reopens(path: Path, migrations: Sequence[MigrationSet]) -> list[str]:
    """Open the database as the next process would, write into it, and close it."""
    try:
        store = await SqliteStore.open(path, migrations=migrations)
        try:
            await store.write(lambda tx: tx.execute("create table if not exists again (one integer)"))
            await store.write(lambda tx: tx.execute("drop table again"))
        finally:
            await store.close()
    except ForebayError as error:
        return [f"it does not open again: {error}"]
    return []


def _integrity(connection: sqlite3.Connection) -> list[str]:
    said = [str(row[0]) for row in connection.execute("pragma integrity_check")]
    return [] if said == ["ok"] else [f"integrity: {each}" for each in said[:3]]


def _has(connection: sqlite3.Connection, table: str) -> bool:
    return bool(connection.execute("select 1 from sqlite_master where name = ?", (table,)).fetchone())
