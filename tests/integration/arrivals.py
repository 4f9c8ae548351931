"""What the tests of the core share: events as a stream delivers them, and a store of a core service to take them in."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import forebay
from forebay.delivery import Delivery
from forebay.envelope import Message, decode_message, encode_headers, identify
from forebay.handlers import Handlers
from forebay.headers import Headers
from forebay.identity import Place, partition_of
from forebay.intake import take_all
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.sqlite import MigrationSet
from forebay.taken import Taken
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitStore
from tests.framed import encode_frame
from tests.stores import AnyStore, open_store

ENGINE = MigrationSet("forebay", Path(forebay.__file__).parent / "migrations")
OLD, NEW = f"{1:032x}", f"{2:032x}"
"""Two epochs of one origin."""
SALE = b'{"basket":"31198570044","household":900,"lines":[{"product":1095275,"quantity":1,"cents":50}],"cents":50}'
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)


def as_it_came(delivery: Delivery) -> Delivery:
    """Return a delivery with its headers in the bytes of the wire."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in delivery.headers.items())
    return delivery._replace(headers=Headers(f"NATS/1.0\r\n{lines}\r\n".encode()))


class Stream:
    """Makes deliveries, each at the next stream sequence; their headers are in the bytes of the wire if ``raw``."""

    def __init__(self, *, raw: bool = False) -> None:
        self.last = 0
        self._raw = raw

    def deliver(self, subject: str, headers: dict[str, str], body: bytes) -> Delivery:
        self.last += 1
        node = subject.split(".")[1]
        partition = partition_of(node)
        subject = subject.replace("evt.", f"evt.{partition}.", 1)
        delivery = Delivery(partition, self.last, 1_483_272_000_000_000_000 + self.last, subject, headers, body)
        return as_it_came(delivery) if self._raw else delivery

    def event(
        self,
        sequence: int,
        body: bytes = SALE,
        *,
        epoch: str = OLD,
        prev: Place | None = None,
        headers: dict[str, str | None] | None = None,
        **fields: Any,
    ) -> Delivery:
        """Deliver one of our own events; ``headers`` replaces headers, or takes them away with None."""
        return self._encoded(own(Place(epoch, sequence), body, prev=prev, **fields), headers)

    def frame(self, events: Sequence[Delivery], *, packed: bool = False, suffix: str = "") -> Delivery:
        """Deliver consecutive events, made by ``event``, in one message."""
        messages = [decode_message(identify(each.subject, each.headers), each.body, each.time) for each in events]
        headers, body = encode_frame(messages, packed=packed)
        headers["Nats-Msg-Id"] += suffix
        first = messages[0]
        return self.deliver(f"evt.{first.node}.{first.service}.{first.kind}", headers, body)

    def foreign(self, message_id: str, body: bytes = SALE, **fields: Any) -> Delivery:
        """Deliver an event of a producer without an outbox."""
        defaults: dict[str, Any] = {"lane": "", "place": None, "message_id": message_id, "id": message_id}
        return self._encoded(own(Place(OLD, 1), body, **{**defaults, **fields}), None)

    def _encoded(self, message: Message, headers: dict[str, str | None] | None) -> Delivery:
        encoded: dict[str, str | None] = {**encode_headers(message), **(headers or {})}
        kept = {name: value for name, value in encoded.items() if value is not None}
        return self.deliver(f"evt.{message.node}.{message.service}.{message.kind}", kept, message.body)


def own(place: Place, body: bytes = SALE, /, **fields: Any) -> Message:
    """Return an event of the till's, at a place; ``fields`` are the message's."""
    node, service = fields.setdefault("node", "store-330"), fields.setdefault("service", "till")
    kind = fields.setdefault("kind", "sale-recorded")
    defaults: dict[str, Any] = {
        "message_id": str(place),
        "id": str(place),
        "source": f"/{node}/{service}",
        "type": f"{service}.{kind}.v1",
        "time": NOON,
        "lane": "ledger",
        "place": place,
        "hlc": 1_483_272_000_000 << 16,
    }
    return Message(body=body, **{**defaults, **fields})


class Core:
    """A core service's store, with what goes into it taken in as the consumer does it."""

    def __init__(
        self, store: AnyStore, name: str, handlers: Handlers, lanes: Sequence[Lane] = (), settings: Any = None
    ) -> None:
        self.sqlite = store
        self.outbox = Outbox("core", name, lanes, sends=True)
        self.store = UnitStore(store, self.outbox, settings)
        self._handlers = handlers

    async def take(self, deliveries: Sequence[Delivery], *, one_by_one: bool = False) -> Taken:
        return await self.store.write(take_all, self._handlers, "EVENTS", "2017", deliveries, one_by_one)

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        def query(tx: Transaction) -> list[Row]:
            return tx.execute(sql)

        return [{name: row[name] for name in row.keys()} for row in await self.store.read(query)]  # noqa: SIM118

    async def parked(self) -> list[tuple[str, str | None]]:
        """Return reason and message id of what is parked, in order."""
        rows = await self.rows("select reason, message_id from forebay_parked order by id")
        return [(row["reason"], row["message_id"]) for row in rows]


@asynccontextmanager
async def opened(
    path: Path,
    name: str,
    handlers: Handlers,
    migrations: Iterable[MigrationSet] = (),
    *,
    lanes: Sequence[Lane] = (),
    settings: Any = None,
) -> AsyncIterator[Core]:
    """Open the store of a core service; one with lanes emits as node ``core``."""
    store = await open_store(path, [ENGINE, *migrations])
    try:
        core = Core(store, name, handlers, lanes, settings)
        if lanes:
            await store.write(core.outbox.bind, "store")
        yield core
    finally:
        await store.close()
