"""An emitter that was restored from a backup emits again: each effect once, none overtaken (rule B5)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from forebay import Event, UnitOfWork
from forebay.closing import Closed, Statement, close
from forebay.handlers import Handlers
from forebay.identity import Place
from forebay.protocol.confirmation import ChainLink, OriginQuestion
from forebay.sqlite import MigrationSet
from tests.integration.arrivals import NEW, OLD, Core, Stream, opened
from tests.stores import written_for

SCHEMA = "create table effect (id integer primary key autoincrement, n integer not null);"
OLDER = f"{0:032x}"


class Rung(Event, service="till", kind="rung", key="till"):
    n: int
    till: str = "a"


def rung(tx: UnitOfWork, event: Rung) -> None:
    tx.execute("insert into effect (n) values (:n)", n=event.n)


HANDLERS = Handlers()
HANDLERS.add(Rung, rung, batch=False)


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    for ending, text in written_for(SCHEMA).items():
        (migrations / f"0001_effect.{ending}").write_text(text)
    async with opened(tmp_path / "sales.db", "sales", HANDLERS, [MigrationSet("sales", migrations)]) as core:
        yield core


def caused(stream: Stream, sequence: int, n: int, *, epoch: str = OLD, prev: Place | None = None) -> Any:
    """An event that its emitter made because of the n-th event of another."""
    cause = f"{'c' * 32}-{n}/till/0"
    return stream.event(sequence, b'{"n":%d}' % n, kind="rung", epoch=epoch, prev=prev, cause=cause, key="a")


def says(floor: Place, *chain: tuple[str, Place | None]) -> Statement:
    links = [ChainLink(epoch, str(prev or "none")) for epoch, prev in chain]
    return Statement("store-330", OriginQuestion("till", "ledger", links, floor=str(floor)), "2017", 100)


async def closed(core: Core, statement: Statement) -> Closed:
    return await core.store.write(close, HANDLERS, statement, 0)


async def effects(core: Core) -> list[int]:
    return [row["n"] for row in await core.rows("select n from effect order by id")]


async def test_what_a_restored_emitter_emits_again_takes_effect_once_and_in_order_b5(core: Core) -> None:
    """It emitted 1 to 5; the broker lost 4; it was restored to a backup from after 2, and emits 3 to 6 again."""
    stream, restored = Stream(), Place(OLD, 2)
    await core.take([caused(stream, n, n) for n in (1, 2, 3, 5)])
    assert await effects(core) == [1, 2, 3]

    done = await closed(core, says(Place(NEW, 1), (OLD, None), (NEW, restored)))

    assert (done.taken.missing, await core.parked()) == (2, [("abandoned", f"{OLD}-5")])
    await core.take([caused(stream, at, n, epoch=NEW, prev=restored) for at, n in [(2, 4), (3, 5), (4, 6)]])
    assert await effects(core) == [1, 2, 3, 4, 5, 6]


async def test_an_epoch_that_descends_from_an_abandoned_place_is_abandoned_too_b5(core: Core) -> None:
    stream, late = Stream(), f"{3:032x}"
    await core.take([caused(stream, n, n) for n in (1, 2, 4)])
    await core.take([caused(stream, 1, 5, epoch=NEW, prev=Place(OLD, 4))])

    await closed(core, says(Place(late, 1), (OLD, None), (late, Place(OLD, 2))))

    assert await effects(core) == [1, 2]
    assert await core.parked() == [("abandoned", f"{OLD}-4"), ("abandoned", f"{NEW}-1")]


async def test_what_waits_in_the_parking_of_an_abandoned_branch_no_longer_blocks_its_key_b5(core: Core) -> None:
    stream, restored = Stream(), Place(OLD, 1)
    await core.take([caused(stream, 1, 1)])
    await core.store.write(
        lambda tx: tx.execute(
            "insert into forebay_parked (digest, reason, detail, subject, headers, body, node, service, lane, epoch,"
            " sequence, message_id, key, stream_sequence, parked_at, alone, attempts, retry_at) values ('d', 'handler',"
            " '', '', '{\"forebay-cause\":\"x\"}', :body,"
            " 'store-330', 'till', 'ledger', :epoch, 3, 'm', 'a', 1, 1, 0, 1, 1)",
            epoch=OLD,
            body=b"",
        )
    )
    await core.take([caused(stream, n, n) for n in (3,)])

    await closed(core, says(Place(NEW, 1), (OLD, None), (NEW, restored)))

    live = await core.rows("select alone, reason from forebay_parked order by id")
    assert {(row["alone"], row["reason"]) for row in live} == {(1, "abandoned")}
    await core.take([caused(stream, 2, 2, epoch=NEW, prev=restored)])
    assert await effects(core) == [1, 2]


async def test_a_floor_leaves_a_clones_later_epoch_alone_o2(core: Core) -> None:
    stream = Stream()
    await core.take([caused(stream, n, n) for n in (1, 2)])
    await core.take([caused(stream, 2, 9, epoch=NEW, prev=Place(OLD, 2))])

    done = await closed(core, says(Place(OLD, 2), (OLD, None)))

    assert done.taken.missing == 0
    assert await effects(core) == [1, 2]


async def test_a_wall_clock_that_was_set_back_does_not_make_a_new_epoch_older_o2(core: Core) -> None:
    """The epoch after the floor's has a lower id, and descends from it."""
    stream = Stream()
    await core.take([caused(stream, n, n) for n in (1, 2)])
    await core.take([caused(stream, 2, 9, epoch=OLDER, prev=Place(OLD, 2))])

    done = await closed(core, says(Place(OLD, 2), (OLD, None), (OLDER, Place(OLD, 2))))

    assert done.taken.missing == 0
    await core.take([caused(stream, 1, 8, epoch=OLDER, prev=Place(OLD, 2))])
    assert await effects(core) == [1, 2, 8, 9]


async def test_an_abandoned_event_never_waits_behind_its_key_and_is_never_acted_on_b5(core: Core) -> None:
    """Its key is parked already, for another reason."""
    stream, restored = Stream(), Place(OLD, 1)
    await core.take([caused(stream, 1, 1)])
    await closed(core, says(Place(NEW, 1), (OLD, None), (NEW, restored)))  # nothing of the branch is known yet
    await core.take([caused(stream, 4, 4)])
    await closed(core, says(Place(NEW, 1), (OLD, None), (NEW, restored)))
    await core.take([stream.event(2, b"{}", kind="rung", epoch=NEW, prev=restored, key="a")])  # cannot be read
    await core.take([caused(stream, 5, 5)])

    assert await core.parked() == [
        ("abandoned", f"{OLD}-4"),
        ("undecodable-body", f"{NEW}-2"),
        ("abandoned", f"{OLD}-5"),
    ]
