"""A project with a read model on the node: the door of ``own_project``, and a service that counts its openings."""

from __future__ import annotations

from pathlib import Path

from tests.services.own_project import write_project

FILES = {
    "edge/days/app.py": """
from datetime import date

import msgspec
from litestar.params import FromQuery

from doors import DoorOpened
from forebay import Message, Service, Transaction, UnitOfWork, UnitStore

days = Service("days")


class Day(msgspec.Struct):
    day: date
    openings: int


@days.follow(DoorOpened, batch=True)
def add_up(tx: UnitOfWork, openings: list[DoorOpened], messages: list[Message]) -> None:
    tx.executemany(
        "insert into opening (door, day) values (:door, :day)",
        [
            {"door": opened.door, "day": message.time.date().isoformat()}
            for opened, message in zip(openings, messages, strict=True)
        ],
    )


def total(tx: Transaction, day: date) -> Day:
    (row,) = tx.execute("select count(*) as openings from opening where day = :day", day=day.isoformat())
    return Day(day, row["openings"])


def seen(tx: Transaction) -> list[str]:
    return [row["door"] for row in tx.execute("select door from opening order by id")]


@days.get("/totals")
async def totals(day: FromQuery[date], store: UnitStore) -> Day:
    return await store.read(total, day)


@days.get("/doors")
async def doors(store: UnitStore) -> list[str]:
    return await store.read(seen)
""",
    "edge/days/migrations/0001_days.sqlite.sql": """
create table opening (id integer primary key autoincrement, door text not null, day text not null) strict;
""",
}


def write_following_project(folder: Path) -> Path:
    """Write the project into a folder, which is created, and return it."""
    write_project(folder)
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip())
    return folder
