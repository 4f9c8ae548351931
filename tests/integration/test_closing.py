"""What nobody will send any more: floors, drops, withheld places, the archive and gaps (rules O2 to O4, B2 to B7)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from core.archive.app import archive
from forebay import Message, Service, UnitOfWork
from forebay.errors import LinkError, StoreError
from forebay.gaps import holes, recorded
from forebay.identity import Place, parse_message_id, partition_of
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import api_request
from forebay.protocol.confirmation import (
    Answer,
    ChainLink,
    DroppedRange,
    EpochAnswer,
    OriginQuestion,
    Question,
    WithheldPlace,
)
from forebay.running import RunningService
from forebay.taken import FAILURES_IN_A_ROW
from forebay.testing.nats_server import NatsServer
from tests import stores
from tests.integration.rig import (
    NODE,
    NOTES,
    DoorOpened,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    open_doors,
    rows,
    serving,
    until,
)

PARTITION = partition_of(NODE)
ARCHIVE_MIGRATIONS = Path(__file__).parents[2] / "core/archive/migrations"


def listener() -> Service:
    service = Service("audit")

    @service.on(DoorOpened)
    def write_down(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
        note(tx, message.node, event.number)

    return service


@asynccontextmanager
async def reading(server: NatsServer, folder: Path) -> AsyncIterator[RunningService]:
    async with (
        connected(server.url, node="core") as connection,
        serving(listener(), connection, folder, node="core", schema=NOTES) as service,
    ):
        await until(lambda: service.consumer is not None and service.consumer.reading)
        yield service


@asynccontextmanager
async def archiving(server: NatsServer, folder: Path) -> AsyncIterator[RunningService]:
    async with (
        connected(server.url, node="core") as connection,
        serving(archive, connection, folder, node="core", schema=ARCHIVE_MIGRATIONS) as service,
    ):
        await until(lambda: service.consumer is not None and service.consumer.reading)
        yield service


@asynccontextmanager
async def emitting(server: NatsServer, folder: Path, *, grace: float = 3600.0) -> AsyncIterator[RunningService]:
    async with (
        connected(server.url, node=NODE) as connection,
        serving(door(), connection, folder, grace=grace) as service,
    ):
        yield service


async def replace_stream(connection: Connection, *consumers: str) -> None:
    await api_request(connection, "STREAM.DELETE.EVENTS")
    await apply(connection, *consumers)


async def kept(service: RunningService) -> int:
    return int((await rows(service.store, "select count(*) from forebay_outbox"))[0][0])


async def freed(service: RunningService) -> None:
    async def empty() -> bool:
        assert service.confirming is not None
        with suppress(LinkError):
            await service.confirming.ask()
            await service.confirming.free()
        return await kept(service) == 0

    await eventually(empty, 30)


async def noted(service: RunningService, expected: list[int]) -> bool:
    return await numbers(service.store) == expected


async def written_and_freed(server: NatsServer, folder: Path) -> list[str]:
    """Write five events that every consumer confirms and the node frees; return their ids."""
    async with emitting(server, folder, grace=0.1) as node:
        ids = await node.store.write(open_doors, 1, 5)
        await freed(node)
    return ids


async def forget(folder: Path, service: str) -> None:
    """Lose the database of a core service."""
    stores.forget(folder / "core", service)
    for path in (folder / "core").glob(f"{service}.db*"):
        path.unlink()


async def ask(connection: Connection, said: OriginQuestion, *, consumer: str = "audit") -> Answer:
    body = msgspec.json.encode(Question(1, [said]))
    reply = await connection.request(f"confirm.event.{consumer}.{NODE}", body, timeout=5)
    return msgspec.json.decode(reply.body, type=Answer)


async def answers(connection: Connection, said: OriginQuestion, epoch: str, expected: EpochAnswer) -> None:
    """Ask until this is the answer."""

    async def so() -> bool:
        try:
            return (await ask(connection, said)).epochs.get(epoch) == expected
        except LinkError:
            return False

    await eventually(so, every=0.05)


def place_of(message_id: str) -> Place:
    identity = parse_message_id(message_id)
    assert identity is not None
    return identity.place


async def test_what_nobody_has_any_more_is_a_gap_on_record_and_the_rest_goes_on_b4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The node freed it, the core's database is lost, the stream is gone, and there is no archive."""
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with reading(nats_server, tmp_path):
            ids = await written_and_freed(nats_server, tmp_path)
        await forget(tmp_path, "audit")
        await replace_stream(admin, "audit")
        async with reading(nats_server, tmp_path) as audit, emitting(nats_server, tmp_path) as node:
            later = await node.store.write(open_doors, 6, 8)
            await eventually(partial(noted, audit, [6, 7, 8]), 30)
            (gap,) = await audit.store.read(recorded)
            epoch = place_of(ids[0]).epoch
            assert (gap.kind, gap.node, gap.service, gap.lane) == ("gap", NODE, "door", "ledger")
            assert (gap.epoch, gap.first, gap.last) == (epoch, 1, 5)
            assert gap.reason == "the node no longer has it"
            assert await audit.store.read(holes) == []
            await eventually(partial(_confirmed, node, later[-1]))


async def _confirmed(node: RunningService, message_id: str) -> bool:
    found = await node.find(message_id)
    return found is not None and found.state == "confirmed"


async def test_what_the_archive_has_is_filled_from_there_in_order_c5(nats_server: NatsServer, tmp_path: Path) -> None:
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        await apply(admin, "archive", services=("*",))
        async with archiving(nats_server, tmp_path):
            async with reading(nats_server, tmp_path):
                await written_and_freed(nats_server, tmp_path)
            await forget(tmp_path, "audit")
            await replace_stream(admin, "audit")
            await apply(admin, "archive", services=("*",))
            async with reading(nats_server, tmp_path) as audit, emitting(nats_server, tmp_path) as node:
                await node.store.write(open_doors, 6, 8)
                await eventually(partial(noted, audit, [1, 2, 3, 4, 5, 6, 7, 8]), 30)
                assert await audit.store.read(recorded) == []


async def test_a_floor_waits_until_the_reader_has_read_to_the_streams_end_b4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The core lost its database; the stream still has everything: nothing is a gap."""
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with reading(nats_server, tmp_path):
            await written_and_freed(nats_server, tmp_path)
        await forget(tmp_path, "audit")
        for partition in range(8):
            await api_request(admin, f"CONSUMER.DELETE.EVENTS.audit-{partition}")
        await apply(admin, "audit")
        async with reading(nats_server, tmp_path) as audit, emitting(nats_server, tmp_path) as node:
            await node.store.write(open_doors, 6, 8)
            await eventually(partial(noted, audit, [1, 2, 3, 4, 5, 6, 7, 8]), 30)
            assert await audit.store.read(recorded) == []


async def held_above(node: RunningService, audit: RunningService, hole: range, last: int) -> str:
    """Let a node write, but keep some of its events from being sent; return the epoch."""
    assert node.relay is not None
    publisher = node._publisher
    assert publisher is not None
    publish = publisher.publish

    async def stolen(messages: Any, *, atomic: bool = True, **_: object) -> list[Any]:
        from forebay.jetstream.outcomes import Stored

        passed = [each for each in messages if place_of(each.headers["Nats-Msg-Id"]).sequence not in hole]
        outcomes = iter(await publish(passed, atomic=atomic))
        return [next(outcomes) if each in passed else Stored(1, duplicate=False) for each in messages]

    publisher.publish = stolen  # type: ignore[method-assign]
    ids = await node.store.write(open_doors, 1, last)

    async def seen() -> bool:
        return bool(await audit.store.read(holes))

    await eventually(seen)
    return place_of(ids[0]).epoch


class Holed(NamedTuple):
    """A consumer with a hole, what its node says of the origin, and a connection to say it as the node does."""

    admin: Connection
    audit: RunningService
    epoch: str
    said: OriginQuestion


@asynccontextmanager
async def with_a_hole(server: NatsServer, folder: Path, hole: range, last: int) -> AsyncIterator[Holed]:
    """Let a node write, lose some of it on the way, and stop."""
    async with connected(server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with reading(server, folder) as audit:
            async with emitting(server, folder) as node:
                epoch = await held_above(node, audit, hole, last)
                consumer = audit.consumer
                assert consumer is not None
                await until(lambda: consumer.committed[PARTITION] == last - len(hole))
            yield Holed(admin, audit, epoch, OriginQuestion("door", "ledger", [ChainLink(epoch, "none")]))


async def test_a_dropped_range_is_passed_as_missing_and_a_held_event_takes_effect_o3(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with with_a_hole(nats_server, tmp_path, range(3, 6), 8) as (admin, audit, epoch, said):
        said = msgspec.structs.replace(said, drops=[DroppedRange(epoch, 2, 6)])
        await answers(admin, said, epoch, EpochAnswer(watermark=8, missing=[(3, 5)]))
        assert await numbers(audit.store) == [1, 2, 6, 7, 8]
        (drop,) = await audit.store.read(recorded)
        assert (drop.kind, drop.first, drop.last) == ("drop", 3, 5)


async def test_a_withheld_place_is_parked_without_its_body_and_its_key_waits_for_it_o4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with with_a_hole(nats_server, tmp_path, range(3, 4), 5) as (admin, audit, epoch, said):
        listed = msgspec.structs.replace(said, withheld=[WithheldPlace(epoch, 3, "front")])
        await answers(admin, listed, epoch, EpochAnswer(watermark=5, wanted=[(3, 3)]))
        assert await numbers(audit.store) == [1, 2], "4 and 5 are of its key"
        async with emitting(nats_server, tmp_path):  # it sends again what it has, the body among it
            await eventually(partial(noted, audit, [1, 2, 3, 4, 5]))
        assert await rows(audit.store, "select count(*) from forebay_parked") == [(0,)]
        await answers(admin, said, epoch, EpochAnswer(watermark=5))


async def test_a_withheld_place_below_a_floor_that_lists_it_no_longer_is_a_gap_b7(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with with_a_hole(nats_server, tmp_path, range(3, 4), 5) as (admin, audit, epoch, said):
        listed = msgspec.structs.replace(said, withheld=[WithheldPlace(epoch, 3, "front")])
        await answers(admin, listed, epoch, EpochAnswer(watermark=5, wanted=[(3, 3)]))
        gone = msgspec.structs.replace(said, floor=f"{epoch}-5")
        await answers(admin, gone, epoch, EpochAnswer(watermark=5))  # what lies below the floor is not listed
        await eventually(partial(noted, audit, [1, 2, 4, 5]))
        assert [(each.kind, each.first) for each in await audit.store.read(recorded)] == [("gap", 3)]


async def test_an_event_that_arrives_inside_a_gap_is_kept_apart_and_blocks_nothing_b4(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with with_a_hole(nats_server, tmp_path, range(3, 4), 5) as (admin, audit, epoch, said):
        floor = msgspec.structs.replace(said, floor=f"{epoch}-4")  # a lie of a clone, say: the node has them all
        await answers(admin, floor, epoch, EpochAnswer(watermark=5))
        await answers(admin, said, epoch, EpochAnswer(watermark=5, missing=[(3, 3)]))
        async with emitting(nats_server, tmp_path) as node:
            await answers(admin, said, epoch, EpochAnswer(watermark=5))
            assert await numbers(audit.store) == [1, 2, 4, 5]
            found = await rows(audit.store, "select reason, sequence, retry_at from forebay_parked")
            assert found == [("late", 3, None)]
            await node.store.write(open_doors, 6, 6)
            await eventually(partial(noted, audit, [1, 2, 4, 5, 6]))


async def test_what_was_given_up_for_lack_of_room_is_read_again_before_a_floor_counts_b3_b4(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.protocol.inbox.OriginInbox.__init__.__defaults__", (3,))
    async with with_a_hole(nats_server, tmp_path, range(1, 3), 20) as (admin, audit, epoch, said):
        assert len(await rows(audit.store, "select * from forebay_held")) == 3
        gone = msgspec.structs.replace(said, floor=f"{epoch}-20")
        await answers(admin, gone, epoch, EpochAnswer(watermark=20))
        assert await numbers(audit.store) == list(range(3, 21))
        assert [(each.first, each.last) for each in await audit.store.read(recorded)] == [(1, 2)]


async def test_a_consumer_that_is_added_later_begins_with_the_archive_c5(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The stream has forgotten, and the node that wrote it is away."""
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "archive", services=("*",))
        async with archiving(nats_server, tmp_path) as kept_there:
            async with emitting(nats_server, tmp_path) as node:
                ids = await node.store.write(open_doors, 1, 1200)
                await eventually(partial(_confirmed, node, ids[-1]))
            await replace_stream(admin, "audit")
            await apply(admin, "archive", services=("*",))
            await until(lambda: kept_there.consumer is not None and kept_there.consumer.reading, 30)
            async with reading(nats_server, tmp_path) as audit:
                await eventually(partial(noted, audit, list(range(1, 1201))), 30)
                assert await audit.store.read(holes) == []
                assert audit.filling is not None
                await audit.filling.begin()  # done by now, or done with this
                ((taken_at,),) = await rows(audit.store, "select archive_taken_at from forebay_store")
                assert taken_at is not None
        async with reading(nats_server, tmp_path) as again:
            assert again.filling is not None
            await again.filling.begin()  # once in the store's life: no archive answers any more


async def test_a_consumer_that_begins_with_the_archive_stands_still_while_every_event_fails_f2(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """It parked all that the archive had, a page at a time, for what no event was to blame."""
    broken = [True]
    service = Service("audit")

    @service.on(DoorOpened)
    def write_down(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
        if broken[0]:
            raise ConnectionError("what every event needs is away")
        note(tx, message.node, event.number)

    def open_each(tx: UnitOfWork) -> str:
        return [tx.emit(DoorOpened(number=number, door=f"d{number}")) for number in range(1, 601)][-1]

    async def parked(audit: RunningService) -> int:
        return int((await rows(audit.store, "select count(*) from forebay_parked"))[0][0])

    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "archive", services=("*",))
        async with archiving(nats_server, tmp_path) as kept_there:
            async with emitting(nats_server, tmp_path) as node:
                last = await node.store.write(open_each)
                await eventually(partial(_confirmed, node, last))
            await replace_stream(admin, "audit")
            await apply(admin, "archive", services=("*",))
            await until(lambda: kept_there.consumer is not None and kept_there.consumer.reading, 30)
            async with (
                connected(nats_server.url, node="core") as connection,
                serving(service, connection, tmp_path, node="core", schema=NOTES) as audit,
            ):
                await until(lambda: audit.consumer is not None and audit.consumer.suspended is not None, 30)
                assert audit.filling is not None
                with pytest.raises(StoreError, match="takes nothing in: 10 events in a row failed"):
                    await audit.filling.begin()
                assert await parked(audit) == FAILURES_IN_A_ROW

                broken[0] = False

                async def noted_all() -> bool:
                    return sorted(await numbers(audit.store)) == list(range(1, 601))

                await eventually(noted_all, 60)
                assert await parked(audit) == 0


async def test_a_consumer_that_begins_anew_learns_of_all_epochs_and_has_all_gaps_on_record_o2(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The core lost its database, the stream is gone, and what the node wrote in three lives is freed."""
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with reading(nats_server, tmp_path):
            epochs = [place_of((await written_and_freed(nats_server, tmp_path))[0]).epoch for _ in range(3)]
        await forget(tmp_path, "audit")
        await replace_stream(admin, "audit")
        async with reading(nats_server, tmp_path) as audit, emitting(nats_server, tmp_path) as node:
            await node.store.write(open_doors, 6, 8)
            await eventually(partial(noted, audit, [6, 7, 8]), 30)
            gaps = {(gap.epoch, gap.first, gap.last) for gap in await audit.store.read(recorded)}
            assert gaps == {(epoch, 1, 5) for epoch in epochs}
