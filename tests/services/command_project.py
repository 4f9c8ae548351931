"""A project whose core tells a store what to reserve, and hears what became of it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

NODE = "store-330"

FILES = {
    "forebay.toml": '[services]\nedge = ["edge.stock"]\ncore = ["core.orders"]\n',
    "contracts/__init__.py": "",
    "contracts/stock.py": '''
        from forebay import Command, Event


        class Reserve(Command, service="stock", kind="reserve", key="order"):
            number: int
            order: str


        class Reserved(Event, service="stock", kind="reserved", key="order"):
            number: int
            order: str
        ''',
    "edge/__init__.py": "",
    "edge/stock/__init__.py": "",
    "edge/stock/app.py": '''
        from contracts.stock import Reserve, Reserved
        from forebay import Lane, Service, UnitOfWork, UnitStore

        stock = Service("stock", lanes=[Lane("ledger", budget="8MiB")])


        @stock.on(Reserve)
        def reserve(tx: UnitOfWork, command: Reserve) -> None:
            tx.execute("insert into reservation (number) values (:number)", number=command.number)
            tx.emit(Reserved(number=command.number, order=command.order))


        @stock.get("/reservations")
        async def reservations(store: UnitStore) -> list[int]:
            rows = await store.read(lambda tx: tx.execute("select number from reservation order by id"))
            return [row["number"] for row in rows]
        ''',
    "edge/stock/migrations/0001_stock.sqlite.sql": (
        "create table reservation (id integer primary key, number integer not null);\n"
    ),
    "core/__init__.py": "",
    "core/orders/__init__.py": "",
    "core/orders/app.py": '''
        from contracts.stock import Reserve, Reserved
        from forebay import Lane, Service, UnitOfWork, UnitStore

        orders = Service("orders", lanes=[Lane("ledger", budget="8MiB")])


        def place(tx: UnitOfWork, number: int) -> str:
            known = tx.execute("select message_id from placed where number = :number", number=number)
            if known:
                return str(known[0]["message_id"])
            message_id = tx.send(Reserve(number=number, order=f"order-{number % 3}"), to="store-330")
            tx.execute(
                "insert into placed (number, message_id) values (:number, :id)", number=number, id=message_id
            )
            return message_id


        @orders.post("/orders/{number:int}")
        async def order(number: int, store: UnitStore) -> str:
            return await store.write(place, number)


        @orders.on(Reserved)
        def reserved(tx: UnitOfWork, event: Reserved) -> None:
            tx.execute("insert into reply (number) values (:number)", number=event.number)


        @orders.get("/replies")
        async def replies(store: UnitStore) -> list[int]:
            rows = await store.read(lambda tx: tx.execute("select number from reply order by id"))
            return [row["number"] for row in rows]
        ''',
    "core/orders/migrations/0001_orders.sqlite.sql": (
        "create table placed (number integer primary key, message_id text not null);\n"
        "create table reply (id integer primary key, number integer not null);\n"
    ),
}  # fmt: skip


def write_command_project(folder: Path) -> Path:
    """Write the project; return its folder."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
    return folder
