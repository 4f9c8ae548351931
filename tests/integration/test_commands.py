"""Commands from the core to nodes, through a real broker: once, in order, whatever was away meanwhile."""

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from forebay import Command, Event, Lane, Message, Service, UnitOfWork
from forebay.command import Destination
from forebay.dispatching import CommandRelay
from forebay.errors import BudgetSpentError
from forebay.intents import RemoveNode, Retry
from forebay.jetstream.connection import Connection
from forebay.jetstream.publishing import Publisher
from forebay.jetstream.streams import api_request, consumer_info, stream_state
from forebay.jetstream.topology.registering import register
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.unit_of_work import UnitStore
from tests import stores
from tests.integration.rig import apply, connected, eventually, rows, serving, started
from tests.stores import takes_the_file

NODE = "store-330"


class Reserve(Command, service="stock", kind="reserve", key="order"):
    number: int
    order: str = "a"


class Recount(Command, service="shelves", kind="recount"):
    number: int


class Reserved(Event, service="stock", kind="reserved", key="order"):
    number: int
    order: str = "a"


class TooLate(Event, service="stock", kind="too-late", key="order"):
    number: int
    order: str = "a"


DONE = "create table done (id integer primary key, number integer not null);"
REPLIES = "create table reply (id integer primary key, number integer not null, kind text not null, cause text);"


def stock() -> Service:
    declared = Service("stock", lanes=[Lane("ledger", budget="8MiB")])

    @declared.on(Reserve)
    def reserve(tx: UnitOfWork, command: Reserve) -> None:
        tx.execute("insert into done (number) values (:number)", number=command.number)
        tx.emit(Reserved(number=command.number, order=command.order))

    @declared.expired(Reserve)
    def expired(tx: UnitOfWork, command: Reserve) -> None:
        tx.emit(TooLate(number=command.number, order=command.order))

    return declared


def shelves() -> Service:
    declared = Service("shelves")

    @declared.on(Recount)
    def recount(tx: UnitOfWork, command: Recount) -> None:
        tx.execute("insert into done (number) values (:number)", number=command.number)

    return declared


def orders(*, budget: str | int = "8MiB") -> Service:
    declared = Service("orders", lanes=[Lane("ledger", budget=budget)])

    @declared.on(Reserved)
    def reserved(tx: UnitOfWork, event: Reserved, message: Message) -> None:
        _reply(tx, event.number, "reserved", message)

    @declared.on(TooLate)
    def too_late(tx: UnitOfWork, event: TooLate, message: Message) -> None:
        _reply(tx, event.number, "too-late", message)

    return declared


def _reply(tx: UnitOfWork, number: int, kind: str, message: Message) -> None:
    tx.execute(
        "insert into reply (number, kind, cause) values (:number, :kind, :cause)",
        number=number,
        kind=kind,
        cause=message.cause,
    )


def send(tx: UnitOfWork, first: int, last: int, to: str = NODE, expires: datetime | None = None) -> list[str]:
    return [tx.send(Reserve(number=each), to=to, expires=expires) for each in range(first, last + 1)]


async def enlist(connection: Connection, node: str = NODE, service: str = "stock") -> None:
    async def request(subject: str, body: bytes) -> bytes:
        return (await connection.request(subject, body, timeout=5)).body

    await register(request, Destination(node, service))


async def done(store: UnitStore) -> list[int]:
    return [row[0] for row in await rows(store, "select number from done order by id")]


async def left(store: UnitStore) -> int:
    """Return how many commands are still in the sender's outbox."""
    sql = (
        "select count(*) from forebay_outbox r join forebay_epoch e on e.id = r.epoch"
        " join forebay_origin o on o.id = e.origin where o.destination <> ''"
    )
    return int((await rows(store, sql))[0][0])


class System:
    """The core's service and the node's, each on a connection of its own."""

    def __init__(self, server: NatsServer, folder: Path) -> None:
        self.server = server
        self.folder = folder

    @asynccontextmanager
    async def core(self, *, grace: float = 3600.0) -> AsyncIterator[RunningService]:
        async with (
            connected(self.server.url, node="core") as connection,
            serving(orders(), connection, self.folder, node="core", schema=REPLIES, grace=grace) as service,
        ):
            yield service

    @asynccontextmanager
    async def node(self, name: str = NODE, declared: Service | None = None) -> AsyncIterator[RunningService]:
        async with (
            connected(self.server.url, node=name) as connection,
            serving(declared or stock(), connection, self.folder, node=name, schema=DONE) as service,
        ):
            yield service


@pytest.fixture
async def system(nats_server: NatsServer, tmp_path: Path) -> System:
    async with connected(nats_server.url, node="admin") as connection:
        await apply(connection, "orders", services=["stock"])
        await enlist(connection)
    return System(nats_server, tmp_path)


async def test_a_command_takes_effect_once_and_its_reply_names_it_as_the_cause(system: System) -> None:
    async with system.core() as core, system.node() as node:
        ids = await core.store.write(send, 1, 3)
        await eventually(lambda: _is(done(node.store), [1, 2, 3]))

        async def replied() -> list[tuple[int, str, str]]:
            return [tuple(row) for row in await rows(core.store, "select number, kind, cause from reply order by id")]

        expected = [(at + 1, "reserved", f"{ids[at]}/stock/0") for at in range(3)]
        await eventually(lambda: _is(replied(), expected))


async def test_c1_what_the_node_confirmed_leaves_the_outbox_after_the_grace(system: System) -> None:
    async with system.core(grace=0.5) as core, system.node() as node:
        await core.store.write(send, 1, 20)
        await eventually(lambda: _is(done(node.store), list(range(1, 21))))
        await eventually(lambda: _is(left(core.store), 0))
        assert core.destinations is not None
        asking = core.destinations.asking
        await eventually(lambda: _true(not asking))
        await core.store.write(send, 21, 25)
        await eventually(lambda: _is(done(node.store), list(range(1, 26))))
        await eventually(lambda: _is(left(core.store), 0))


async def test_an_offline_node_gets_once_and_in_order_what_is_still_valid(system: System) -> None:
    async with system.core() as core:
        gone = datetime.now(UTC) - timedelta(seconds=1)
        await core.store.write(send, 1, 2)
        await core.store.write(send, 3, 3, NODE, gone)
        await core.store.write(send, 4, 4)
        await eventually(lambda: _true(core.command_relay is not None and core.command_relay.published == 4))
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2, 4]))
            assert node.commands is not None
            totals = node.commands.totals
            await eventually(lambda: _true(totals.expired == 1))

            async def replied() -> list[tuple[int, str]]:
                return [
                    (row[0], row[1]) for row in await rows(core.store, "select number, kind from reply order by id")
                ]

            expected = [(1, "reserved"), (2, "reserved"), (3, "too-late"), (4, "reserved")]
            await eventually(lambda: _is(replied(), expected))
            shown = await rows(node.store, "select type, key from forebay_expired")
            assert shown == [("stock.reserve.v1", "a")]


async def test_i1_two_services_of_one_node_do_not_wait_for_each_others_commands(system: System) -> None:
    async with connected(system.server.url, node="admin") as connection:
        await enlist(connection, NODE, "shelves")

    def mixed(tx: UnitOfWork) -> None:
        for each in range(1, 6):
            tx.send(Reserve(number=each), to=NODE)
            tx.send(Recount(number=each * 10), to=NODE)

    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(system.core())
        first = await stack.enter_async_context(system.node())
        second = await stack.enter_async_context(system.node(declared=shelves()))
        await core.store.write(mixed)
        await eventually(lambda: _is(done(first.store), [1, 2, 3, 4, 5]))
        await eventually(lambda: _is(done(second.store), [10, 20, 30, 40, 50]))


async def test_s5_a_restarted_node_goes_on_from_its_position_and_does_nothing_twice(system: System) -> None:
    async with system.core() as core:
        await core.store.write(send, 1, 5)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5]))
        await core.store.write(send, 6, 8)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), list(range(1, 9))))
            assert node.commands is not None
            assert node.commands.totals.duplicates == 0


async def test_s5_a_node_whose_position_is_another_commands_reads_from_the_beginning_and_does_nothing_twice(
    system: System,
) -> None:
    def another_stands_there(tx: UnitOfWork) -> None:
        tx.execute("update forebay_position set message_id = :other where stream = 'COMMANDS'", other=f"{7:032x}-3")

    async with system.core() as core:
        async with system.node() as node:
            await core.store.write(send, 1, 3)
            await eventually(lambda: _is(done(node.store), [1, 2, 3]))
            await node.store.write(another_stands_there)
        async with system.node() as node:
            await core.store.write(send, 4, 4)
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4]))
            assert node.commands is not None
            totals = node.commands.committing.totals
            await eventually(lambda: _true(totals.duplicates == 3))  # counted once the commit has returned


async def test_c2_a_stream_that_was_lost_is_filled_again_from_the_cores_outbox(system: System) -> None:
    async with system.core() as core:
        async with system.node() as node:
            await core.store.write(send, 1, 5)
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5]))
        await core.store.write(send, 6, 9)
        await eventually(lambda: _true(core.command_relay is not None and core.command_relay.published == 9))
        async with connected(system.server.url, node="admin") as connection:
            await api_request(connection, "STREAM.DELETE.COMMANDS")
            await apply(connection, "orders", services=["stock"])
            await enlist(connection)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), list(range(1, 10))), limit=40)
            await core.store.write(send, 10, 10)
            await eventually(lambda: _is(done(node.store), list(range(1, 11))))


async def test_s4_a_lost_streams_durables_are_made_again_by_the_core_that_knows_its_nodes(system: System) -> None:
    async with system.core() as core, system.node() as node:
        await core.store.write(send, 1, 3)
        await eventually(lambda: _is(done(node.store), [1, 2, 3]))
        registered = "select node from forebay_destination where registered_at is not null"
        await eventually(lambda: _is(rows(core.store, registered), [(NODE,)]))
        async with connected(system.server.url, node="admin") as connection:
            await api_request(connection, "STREAM.DELETE.COMMANDS")
            await apply(connection, "orders", services=["stock"])
        await core.store.write(send, 4, 5)
        await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5]), limit=60)
        async with connected(system.server.url, node="admin") as connection:

            async def claimed() -> bool:
                durable = await consumer_info(connection, "COMMANDS", f"{NODE}-stock")
                return "forebay.store" in durable.metadata

            await eventually(claimed)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are files, whose copies are backups."""
    monkeypatch.setattr(stores, "_chosen", "sqlite")


@pytest.mark.usefixtures("files")
async def test_b1_a_restored_node_does_again_what_its_backup_did_not_know_and_the_core_acts_once(
    system: System,
) -> None:
    database = system.folder / NODE / "stock.db"
    async with system.core() as core:
        await core.store.write(send, 1, 3)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2, 3]))
            await eventually(lambda: _is(_count(core.store, "reply"), 3))
        backup = database.read_bytes()
        await core.store.write(send, 4, 6)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5, 6]))
            await eventually(lambda: _is(_count(core.store, "reply"), 6))
        _restore(database, backup)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5, 6]))
            await core.store.write(send, 7, 7)
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5, 6, 7]))
            numbers = "select number from reply order by id"
            await eventually(lambda: _is(rows(core.store, numbers), [(each,) for each in range(1, 8)]))


@pytest.mark.usefixtures("files")
async def test_o2_a_restored_core_sends_on_in_a_new_epoch_and_the_node_does_not_wait_for_ever(system: System) -> None:
    database = system.folder / "core" / "orders.db"
    async with system.node() as node:
        async with system.core() as core:
            await core.store.write(send, 1, 3)
            await eventually(lambda: _is(done(node.store), [1, 2, 3]))
        backup = database.read_bytes()
        async with system.core() as core:
            await core.store.write(send, 4, 6)
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5, 6]))
        _restore(database, backup)
        async with system.core(grace=0.5) as core:
            await core.store.write(send, 7, 8)
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5, 6, 7, 8]))
            await eventually(lambda: _is(left(core.store), 0))


@takes_the_file
async def test_b4_a_restored_core_closes_the_holes_of_what_it_no_longer_knows_with_its_next_command(
    system: System,
) -> None:
    database = system.folder / "core" / "orders.db"
    async with connected(system.server.url, node="core") as connection:
        async with system.node() as node, system.core(grace=0.5) as core:
            await core.store.write(send, 1, 2)
            await eventually(lambda: _is(done(node.store), [1, 2]))
        backup = database.read_bytes()
        async with system.core() as core:
            await core.store.write(send, 3, 4)
            await eventually(lambda: _is(_last(connection), 4))
        # The broker loses the third command, and the core all that it knew of it and of the fourth.
        fourth = (await api_request(connection, "STREAM.MSG.GET.COMMANDS", {"seq": 4}))["message"]
        lines = base64.b64decode(fourth["hdrs"]).decode().split("\r\n")[1:]
        headers = dict(line.split(": ", 1) for line in lines if line)
        await api_request(connection, "STREAM.DELETE.COMMANDS")
        await apply(connection, "orders", services=["stock"])
        await enlist(connection)
        await connection.publish(f"cmd.{NODE}.stock.reserve", base64.b64decode(fourth["data"]), headers=headers)
        _restore(database, backup)
        async with system.node() as node, system.core(grace=0.5) as core:
            await eventually(lambda: _is(_count(node.store, "forebay_held"), 1))
            await core.store.write(send, 5, 5)
            await eventually(lambda: _is(done(node.store), [1, 2, 5, 4]), limit=30)
            gaps = "select node, service, first, last, kind from forebay_gap"
            assert await rows(node.store, gaps) == [("core", "orders", 1, 1, "gap")]  # a new process, a new epoch
            # Then nobody is asked any more.
            await eventually(lambda: _true(core.destinations is not None and not core.destinations.asking))


async def test_s4_another_database_of_the_same_node_does_not_read_its_durable(system: System, tmp_path: Path) -> None:
    async with system.core() as core:
        async with system.node() as node:
            await core.store.write(send, 1, 2)
            await eventually(lambda: _is(done(node.store), [1, 2]))
            await eventually(lambda: _is(_count(core.store, "forebay_destination"), 1))
        impostor = System(system.server, tmp_path / "other")
        async with impostor.node() as other:
            assert other.commands is not None
            await eventually(lambda: _true("is read by the store" in (other.commands.problem or "")))  # type: ignore[union-attr]
            assert other.problems() == []  # it still accepts writes
            assert await done(other.store) == []


async def test_only_the_core_is_obeyed(system: System) -> None:
    async with (
        connected(system.server.url, node="store-331") as connection,
        serving(orders(), connection, system.folder, node="store-331", schema=REPLIES) as forger,
        system.node() as node,
    ):
        forger.outbox.sends = True
        await forger.store.write(send, 1, 1)
        relay = CommandRelay(forger.outbox, forger.store, connection, Publisher(connection, "COMMANDS"))
        async with anyio.create_task_group() as tasks:
            await relay._publisher.start()
            await tasks.start(relay.run)
            parked = "select reason from forebay_parked"
            await eventually(lambda: _is(rows(node.store, parked), [("forged-source",)]))
            tasks.cancel_scope.cancel()
        await relay._publisher.stop()
        assert await done(node.store) == []


async def test_s2_a_command_that_nothing_handles_is_parked_and_never_passed_over(system: System) -> None:
    class Polish(Command, service="stock", kind="polish", key="shelf"):
        shelf: str

    async with system.core() as core, system.node() as node:
        await core.store.write(lambda tx: tx.send(Polish(shelf="b"), to=NODE))
        await core.store.write(send, 1, 1)
        await eventually(lambda: _is(done(node.store), [1]))
        assert await rows(node.store, "select reason, node, service from forebay_parked") == [
            ("unknown-version", "core", "orders")
        ]


async def test_o3_a_node_that_is_away_fills_its_own_budget_alone(system: System) -> None:
    async with (
        connected(system.server.url, node="core") as connection,
        serving(orders(budget=4096), connection, system.folder, node="core", schema=REPLIES) as core,
    ):
        with pytest.raises(BudgetSpentError):
            await core.store.write(send, 1, 100, "store-900")
        assert await left(core.store) == 0  # the unit as a whole
        await core.store.write(send, 1, 10, "store-900")
        with pytest.raises(BudgetSpentError):
            await core.store.write(send, 11, 30, "store-900")
        async with system.node() as node:
            await core.store.write(send, 1, 10)
            await eventually(lambda: _is(done(node.store), list(range(1, 11))))


async def test_a_thousand_destinations_cost_little(system: System) -> None:
    async with system.core() as core:
        relay, destinations = core.command_relay, core.destinations
        assert relay is not None
        assert destinations is not None

        def spread(tx: UnitOfWork) -> None:
            for each in range(1000):
                tx.send(Reserve(number=each), to=f"shop-{each}")

        await core.store.write(spread)
        await eventually(lambda: _true(relay.published == 1000), limit=60)
        await eventually(lambda: _true(all(each.away for each in destinations.asking.values())), limit=60)
        async with system.node() as node:  # none of them is in its way
            await core.store.write(send, 1, 3)
            await eventually(lambda: _is(done(node.store), [1, 2, 3]))
        before = relay.published
        await core.store.write(send, 4, 4, "shop-1")
        await eventually(lambda: _true(relay.published == before + 1))


async def test_a_removed_nodes_commands_are_dropped_and_its_holes_are_gaps(system: System) -> None:
    async with system.core() as core:
        await core.store.write(send, 1, 4)
        assert core.intents is not None
        said = await core.intents.execute(RemoveNode(NODE, "closed for good"))
        assert said == f"{NODE} is removed: 0 events are gaps now, 4 commands are dropped"
        assert await left(core.store) == 0
        books = "select written, dropped, bytes from forebay_origin where destination <> ''"
        assert await rows(core.store, books) == [(4, 4, 0)]
        assert await rows(core.store, "select first, last from forebay_dropped") == [(1, 4)]
        why = "select node, service, removed_why from forebay_destination"
        assert await rows(core.store, why) == [(NODE, "stock", "closed for good")]


@pytest.mark.usefixtures("files")
async def test_b4_what_neither_core_nor_stream_has_any_more_is_a_gap_on_the_node_and_the_rest_goes_on(
    system: System,
) -> None:
    database = system.folder / NODE / "stock.db"
    async with system.core(grace=0.5) as core:
        await core.store.write(send, 1, 2)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2]))
        backup = database.read_bytes()
        await core.store.write(send, 3, 5)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5]))
            await eventually(lambda: _is(left(core.store), 0), limit=40)
        _restore(database, backup)
        async with connected(system.server.url, node="admin") as connection:
            await api_request(connection, "STREAM.DELETE.COMMANDS")
            await apply(connection, "orders", services=["stock"])
            await enlist(connection)
        await core.store.write(send, 6, 6)
        async with system.node() as node:
            await eventually(lambda: _is(done(node.store), [1, 2, 6]), limit=60)
            gaps = "select node, service, first, last, kind from forebay_gap"
            assert await rows(node.store, gaps) == [("core", "orders", 3, 5, "gap")]


async def test_s1_a_parked_command_that_expires_meanwhile_is_not_done_when_it_is_tried_again(system: System) -> None:
    failing = True
    declared = Service("stock", lanes=[Lane("ledger", budget="8MiB")])

    @declared.on(Reserve)
    def reserve(tx: UnitOfWork, command: Reserve) -> None:
        if failing and command.number == 1:
            raise RuntimeError("the shelf is stuck")
        tx.execute("insert into done (number) values (:number)", number=command.number)

    async with system.core() as core, system.node(declared=declared) as node:
        soon = datetime.now(UTC) + timedelta(hours=1)
        await core.store.write(send, 1, 1, NODE, soon)
        await core.store.write(send, 2, 2)
        await eventually(lambda: _is(_count(node.store, "forebay_parked"), 2))  # the second waits behind its key
        declared.handlers.now = lambda: soon + timedelta(seconds=1)
        failing = False
        assert node.intents is not None
        (first,) = await rows(node.store, "select min(id) from forebay_parked")
        await node.intents.execute(Retry(first[0]))
        await eventually(lambda: _is(done(node.store), [2]))
        assert await _count(node.store, "forebay_expired") == 1
        assert await _count(node.store, "forebay_parked") == 0


def _restore(database: Path, backup: bytes) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    database.write_bytes(backup)


async def _count(store: UnitStore, table: str) -> int:
    return int((await rows(store, f"select count(*) from {table}"))[0][0])


async def _is(found: object, expected: object) -> bool:
    return await found == expected  # type: ignore[misc, no-any-return]


async def _last(connection: Connection) -> int:
    return (await stream_state(connection, "COMMANDS")).last


async def _true(value: bool) -> bool:
    return value


async def test_a_node_needs_no_more_than_the_permissions_of_the_packaged_hub(tmp_path: Path) -> None:
    hub = (Path(__file__).parents[2] / "jetstream-config/servers/hub.conf").read_text()
    users = hub[hub.index("authorization {") :]
    for name in ("CORE", "STORE_330"):
        users = users.replace(f"$FOREBAY_{name}_PASSWORD", "secret")
    server = NatsServer(tmp_path / "nats", extra=users)
    async with started(server):
        as_core = server.url.replace("nats://", "nats://core:secret@")
        as_node = server.url.replace("nats://", "nats://store-330:secret@")
        async with connected(as_core, node="core") as center, connected(as_node, node=NODE) as edge:
            await apply(center, "orders", services=["stock"])
            await enlist(center)
            async with serving(orders(), center, tmp_path, node="core", schema=REPLIES, grace=0.5) as core:
                async with serving(stock(), edge, tmp_path, node=NODE, schema=DONE) as node:
                    await core.store.write(send, 1, 5)
                    await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5]))
                    await eventually(lambda: _is(left(core.store), 0))
                    await eventually(lambda: _is(_count(core.store, "reply"), 5))
                    durable = (await consumer_info(center, "COMMANDS", "store-330-stock")).metadata
                    assert durable["forebay.store"]
                async with serving(stock(), edge, tmp_path, node=NODE, schema=DONE) as node:
                    await core.store.write(send, 6, 6)
                    await eventually(lambda: _is(done(node.store), [1, 2, 3, 4, 5, 6]))
