"""A project of a user's own: one edge service, one core service, and the event that they share."""

from __future__ import annotations

from pathlib import Path

NODE = "house-1"

FILES = {
    "forebay.toml": """
[services]
edge = ["edge.door"]
core = ["core.audit"]
""",
    "doors.py": """
from forebay import Event


class DoorOpened(Event, service="door", kind="door-opened", key="door"):
    door: str
""",
    "edge/door/app.py": """
import msgspec

from doors import DoorOpened
from forebay import Lane, Service, UnitOfWork, UnitStore

door = Service("door", lanes=[Lane("ledger", budget="8MiB")])


class Opened(msgspec.Struct):
    door: str


class Answer(msgspec.Struct):
    event: str


def open_door(tx: UnitOfWork, opened: Opened) -> str:
    tx.execute("insert into opened (door) values (:door)", door=opened.door)
    return tx.emit(DoorOpened(door=opened.door))


@door.post("/openings")
async def openings(data: Opened, store: UnitStore) -> Answer:
    return Answer(await store.write(open_door, data))
""",
    "edge/door/migrations/0001_door.sqlite.sql": """
create table opened (id integer primary key autoincrement, door text not null) strict;
""",
    "core/audit/app.py": """
from doors import DoorOpened
from forebay import Service, Transaction, UnitOfWork, UnitStore

audit = Service("audit")


@audit.on(DoorOpened)
def note(tx: UnitOfWork, opened: DoorOpened) -> None:
    tx.execute(
        "insert into opened (door, times) values (:door, 1) on conflict (door) do update set times = times + 1",
        door=opened.door,
    )


def counts(tx: Transaction) -> dict[str, int]:
    return {row["door"]: row["times"] for row in tx.execute("select door, times from opened")}


@audit.get("/doors")
async def doors(store: UnitStore) -> dict[str, int]:
    return await store.read(counts)
""",
    "core/audit/migrations/0001_audit.sqlite.sql": """
create table opened (door text primary key, times integer not null) strict;
""",
}


def write_project(folder: Path) -> Path:
    """Write the project into a folder, which is created, and return it."""
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip())
    return folder
