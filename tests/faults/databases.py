"""What the databases of a run say, read beside the processes that have them open, or after these have ended."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.faults.history import Books, ConsumerState, Effect, Epoch, OutboxState

DOMAIN = {
    "meter": "select number, event from reading",
    "audit": "select number, event from notice",
    "till": "select cast(basket as integer), event from sale",
}
"""Where each emitting service of the harness keeps what it wrote beside its events."""


ELSEWHERE = Path("/proc")
"""Where a disk is seen that another mount namespace has: SQLite follows the link in such a path into its own."""

COPIES, PAUSE = 20, 0.02
"""Attempts to copy a database that is written to meanwhile, and seconds between them."""


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database to be read; a process may have it open."""
    with TemporaryDirectory() as folder:
        if path.is_relative_to(ELSEWHERE):
            path = _steady_copy(path, Path(folder))
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            yield connection
        finally:
            connection.close()


def change(path: Path, statement: str) -> None:
    """Run a statement on a database whose process is away."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name if path.is_relative_to(ELSEWHERE) else path
        if copy is not path:
            copy_database(path, copy)
        with sqlite3.connect(copy) as connection:
            connection.execute(statement)
        connection.close()
        if copy is not path:
            copy_database(copy, path)


def _steady_copy(path: Path, folder: Path) -> Path:
    """Copy a database with its log, of one moment: the log is the same before and after.

    Raises:
        sqlite3.OperationalError: it never was.
    """
    log, copy = path.with_name(f"{path.name}-wal"), folder / path.name
    for _ in range(COPIES):
        try:
            before = log.read_bytes() if log.exists() else b""
            copy.write_bytes(path.read_bytes())
            copy.with_name(log.name).write_bytes(before)
            if before == (log.read_bytes() if log.exists() else b""):
                return copy
        except OSError:
            break
        time.sleep(PAUSE)
    raise sqlite3.OperationalError(f"{path} cannot be copied at one moment")


def copy_database(path: Path, to: Path) -> None:
    """Copy a database whose process is away, with its log, as a backup of the files would."""
    to.parent.mkdir(parents=True, exist_ok=True)
    remove_database(to)
    for suffix in ("", "-wal"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            to.with_name(to.name + suffix).write_bytes(file.read_bytes())


def remove_database(path: Path) -> None:
    """Take a database away with all its files; its lock stays."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def forget_memory(folder: Path) -> None:
    """Take away what processes share about databases through memory; a power cut leaves none of it."""
    for file in folder.glob("*-shm"):
        file.unlink()


class Follower:
    """Follows the effects of one consumer while it runs."""

    def __init__(self, consumer: str, path: Path) -> None:
        self.consumer = consumer
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Read from the beginning: the database was replaced."""
        self._position = 0
        self.ids: set[str] = set()
        self.numbers: set[int] = set()
        self.notices: set[int] = set()

    def refresh(self) -> bool:
        """Read what is new; False where the database cannot be read at this moment."""
        try:
            with reading(self.path) as connection:
                rows = connection.execute(
                    "select position, message_id, service, number from effect where position > ? order by position",
                    (self._position,),
                ).fetchall()
        except sqlite3.OperationalError:
            return False
        for self._position, message_id, service, number in rows:
            self.ids.add(message_id)
            (self.numbers if service == "meter" else self.notices).add(number)
        return True


def outbox_rows(path: Path) -> list[str]:
    """Return the message ids of the events that an outbox has, the withheld ones included."""
    with reading(path) as connection:
        return _rows(connection)


def written(path: Path) -> set[str]:
    """Return the message ids of all that a node's file says to have written; none where it has no tables."""
    with reading(path) as connection:
        return (
            {row[0] for row in connection.execute(DOMAIN["meter"].replace("number, ", ""))}
            if _has_table(connection, "reading")
            else set()
        )


def lost_places(path: Path) -> set[str]:
    """Return the message ids of what a node says that a damaged disk took."""
    with reading(path) as connection:
        ranges = connection.execute("select epoch, first, last from forebay_lost").fetchall()
    return {f"{epoch}-{sequence}" for epoch, first, last in ranges for sequence in range(first, last + 1)}


def known_epochs(path: Path) -> set[str]:
    """Return the epochs that an outbox knows."""
    with reading(path) as connection:
        return {row[0] for row in connection.execute("select epoch from forebay_epoch")}


def outbox_state(path: Path, node: str, service: str) -> OutboxState:
    """Read all that the checker wants to know of a store with an outbox."""
    with reading(path) as connection:
        counted = dict(
            connection.execute(
                "select o.lane, count(*) from forebay_outbox r join forebay_epoch e on e.id = r.epoch"
                " join forebay_origin o on o.id = e.origin group by o.lane"
            ).fetchall()
        )
        withheld = {}
        if _has_table(connection, "forebay_withheld"):
            withheld = dict(
                connection.execute(
                    "select o.lane, count(*) from forebay_withheld r join forebay_epoch e on e.id = r.epoch"
                    " join forebay_origin o on o.id = e.origin group by o.lane"
                ).fetchall()
            )
        connection.row_factory = sqlite3.Row
        origins = connection.execute("select * from forebay_origin where destination = ''").fetchall()
        books = [
            Books(
                lane=origin["lane"],
                written=origin["written"],
                confirmed=origin["confirmed"],
                pending=counted.get(origin["lane"], 0),
                dropped=origin["dropped"] if "dropped" in origin.keys() else 0,  # noqa: SIM118 - a Row's `in` asks values
                withheld=withheld.get(origin["lane"], 0),
            )
            for origin in origins
        ]
        epochs = connection.execute(
            "select e.epoch, o.lane, e.prev, e.last from forebay_epoch e join forebay_origin o on o.id = e.origin"
            " where o.destination = '' order by e.id"
        ).fetchall()
        return OutboxState(
            node=node,
            service=service,
            domain=[(number, event) for number, event in connection.execute(DOMAIN[service])],
            rows=_rows(connection),
            epochs=[Epoch(**dict(epoch)) for epoch in epochs],
            books=books,
            integrity=integrity(connection),
        )


def consumer_state(path: Path, consumer: str) -> ConsumerState:
    """Read all that the checker wants to know of a consumer."""
    with reading(path) as connection:
        connection.row_factory = sqlite3.Row
        effects = connection.execute(
            "select message_id, node, service, lane, meter, number, cause from effect order by position"
        )
        totals = connection.execute("select node, service, meter, effects, sum from total")
        return ConsumerState(
            consumer=consumer,
            effects=[Effect(**dict(row)) for row in effects],
            totals={f"{row['node']}/{row['service']}/{row['meter']}": (row["effects"], row["sum"]) for row in totals},
            parked=[
                f"{row['message_id']}: {row['reason']} {row['detail']}"
                for row in connection.execute("select message_id, reason, detail from forebay_parked")
            ],
            integrity=integrity(connection),
        )


def integrity(connection: sqlite3.Connection) -> str:
    """Return SQLite's verdict on the whole file, ``ok`` or what is wrong."""
    return "; ".join(str(row[0]) for row in connection.execute("pragma integrity_check"))


def _rows(connection: sqlite3.Connection) -> list[str]:
    tables = ["forebay_outbox", *(["forebay_withheld"] if _has_table(connection, "forebay_withheld") else [])]
    rows: list[Any] = []
    for table in tables:
        rows += connection.execute(
            f"select e.epoch || '-' || r.sequence from {table} r join forebay_epoch e on e.id = r.epoch"
            " order by e.id, r.sequence"
        )
    return [row[0] for row in rows]


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    return bool(connection.execute("select 1 from sqlite_master where name = ?", (name,)).fetchone())
