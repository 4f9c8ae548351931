"""Commands as types, and as rows of the sender's outbox."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forebay import Command, Event, Lane, Service, UnitOfWork
from forebay.envelope import encode_headers, format_time
from forebay.errors import ConfigurationError
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.outbox import Outbox
from forebay.running import RunningService
from forebay.transaction import Transaction
from tests.outboxes import messages_after


class ReserveStock(Command, service="stock", kind="reserve-stock", lane="ledger", key="order"):
    order: str
    pieces: int = 1


class CountStock(Command, service="counting", kind="count-stock", lane="ledger"):
    shelf: int


class Reserved(Event, service="orders", kind="reserved"):
    order: str


def opened(folder: Path, *, node: str = "core") -> RunningService:
    connection = Connection(ConnectionConfig(servers=["nats://127.0.0.1:1"], name=node, inbox_prefix=f"_INBOX_{node}"))
    return RunningService(
        Service("orders", lanes=[Lane("ledger", budget=4096)]), node, folder / "orders.db", connection, {}
    )


def test_a_command_says_who_receives_it_and_is_frozen() -> None:
    command = ReserveStock(order="31")
    assert command.spec.type == "stock.reserve-stock.v1"
    with pytest.raises(AttributeError):
        command.order = "32"


def test_a_command_without_a_service_is_refused_when_it_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="command Lost does not say what it is"):

        class Lost(Command):
            pass


async def test_i1_each_destination_is_an_origin_of_its_own(tmp_path: Path) -> None:
    service = opened(tmp_path)
    await service.open(None, grace=60)
    try:

        def send(tx: UnitOfWork) -> list[str]:
            return [
                tx.send(ReserveStock(order="1"), to="store-1"),
                tx.send(ReserveStock(order="2"), to="store-2"),
                tx.send(CountStock(shelf=3), to="store-1"),
                tx.send(ReserveStock(order="4"), to="store-1"),
                tx.emit(Reserved(order="1")),
            ]

        ids = await service.store.write(send)
        assert [each.rpartition("-")[2] for each in ids] == ["1", "1", "1", "2", "1"]
        assert len({each.partition("-")[0] for each in ids}) == 4

        def first(tx: Transaction, outbox: Outbox, destination: str) -> list[tuple[str, str]]:
            messages = messages_after(tx, outbox, "ledger", None, limit=9, max_bytes=9999, destination=destination)
            return [(outbox.subject(message), message.key or "") for message in messages]

        read = service.store.read
        assert await read(first, service.outbox, "store-1/stock") == [
            ("cmd.store-1.stock.reserve-stock", "1"),
            ("cmd.store-1.stock.reserve-stock", "4"),
        ]
        assert await read(first, service.outbox, "store-1/counting") == [("cmd.store-1.counting.count-stock", "")]
        assert await read(first, service.outbox, "") == [("evt.core.orders.reserved", "")]
    finally:
        await service.close()


async def test_a_commands_headers_name_its_sender_and_its_expiry(tmp_path: Path) -> None:
    service = opened(tmp_path)
    await service.open(None, grace=60)
    expires = datetime.now(UTC) + timedelta(hours=1)
    try:
        await service.store.write(lambda tx: tx.send(ReserveStock(order="1"), to="store-1", expires=expires))

        def headers(tx: Transaction) -> dict[str, str]:
            (message,) = messages_after(
                tx, service.outbox, "ledger", None, limit=9, max_bytes=9999, destination="store-1/stock"
            )
            return encode_headers(message)

        found = await service.store.read(headers)
        assert found["ce-source"] == "/core/orders"
        assert found["ce-type"] == "stock.reserve-stock.v1"
        assert found["ce-expirytime"] == format_time(expires)
        assert found["ce-partitionkey"] == "1"
    finally:
        await service.close()


async def test_only_the_core_sends_and_only_in_lanes_of_its_own(tmp_path: Path) -> None:
    class InNoLane(Command, service="stock", kind="in-no-lane", lane="telemetry"):
        pass

    service = opened(tmp_path / "core")
    await service.open(None, grace=60)
    try:
        with pytest.raises(ConfigurationError, match="has no lane 'telemetry'"):
            await service.store.write(lambda tx: tx.send(InNoLane(), to="store-1"))
        with pytest.raises(ConfigurationError, match="not a name"):
            await service.store.write(lambda tx: tx.send(ReserveStock(order="1"), to="store.*"))
        with pytest.raises(ConfigurationError, match="other nodes"):
            await service.store.write(lambda tx: tx.send(ReserveStock(order="1"), to="core"))
        with pytest.raises(ValueError, match="no offset"):
            await service.store.write(
                lambda tx: tx.send(ReserveStock(order="1"), to="store-1", expires=datetime(2030, 1, 1))
            )
    finally:
        await service.close()
    edge = opened(tmp_path / "edge", node="store-330")
    await edge.open(None, grace=60)
    try:
        with pytest.raises(ConfigurationError, match="only services of the core"):
            await edge.store.write(lambda tx: tx.send(ReserveStock(order="1"), to="store-1"))
    finally:
        await edge.close()


def test_a_service_handles_only_its_own_commands_and_each_version_once() -> None:
    stock = Service("stock")

    @stock.on(ReserveStock)
    def reserve(tx: UnitOfWork, command: ReserveStock) -> None: ...

    assert stock.handlers.takes_commands
    assert not stock.handlers  # it reads no events
    with pytest.raises(ConfigurationError, match="has a handler already"):
        stock.on(ReserveStock)(reserve)
    with pytest.raises(ConfigurationError, match="for service 'counting'"):
        stock.on(CountStock)(reserve)
    with pytest.raises(ConfigurationError, match="no handler of batches"):
        stock.on(ReserveStock, batch=True)
