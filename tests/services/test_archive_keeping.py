"""Exporting the archive, and its retention: never what somebody needs, and always on record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
from pyarrow import parquet

from core.archive.event import now
from core.archive.export import DAY, MANIFEST, export_part, read_manifest
from core.archive.retention import Limits, candidates
from core.archive.scans import note_scan
from core.archive.upkeep import Settings, export_days, look_after, trim
from forebay import Service, UnitOfWork
from forebay.closing import DELETED
from forebay.errors import ConfigurationError, LinkError
from forebay.gaps import recorded
from forebay.intents import RebuildProjection
from forebay.needs import ask_all, needs
from forebay.outbox import Outbox
from forebay.protocol.needs import EpochNeed
from forebay.testing.nats_server import NatsServer
from forebay.worker import AtWork
from tests.integration.arrivals import NEW, OLD, SALE, Core, Stream
from tests.integration.rig import eventually, rows
from tests.integration.test_rebuilding import audit, core, event
from tests.services.command_line import called
from tests.services.core_app import ARCHIVE, open_core
from tests.stores import on_postgres

ROOT = Path(__file__).parents[2]


ALL = 1 << 60
"""A position behind all others."""


def at_work(known: Core, done: int | None = None) -> AtWork:
    """What the archive's upkeep gets, with consumers that are done up to a place; all of it for None."""

    async def unneeded(epochs: list[EpochNeed]) -> list[int]:
        return [each.last if done is None else min(done, each.last) for each in epochs]

    return AtWork(known.store, Settings(), not on_postgres(), unneeded)


@asynccontextmanager
async def archive_with(folder: Path, days_ago: dict[int, int], *, epoch: str = OLD) -> AsyncIterator[Core]:
    """Open an archive that has so many events of each day, by how long ago that was."""
    stream, sequence = Stream(), 0
    async with open_core(folder, ARCHIVE) as known:
        await known.store.write(Outbox("core", "archive", ()).bind, "a" * 32)
        for days, count in sorted(days_ago.items(), reverse=True):
            events = [stream.event(sequence + at, SALE, epoch=epoch) for at in range(1, count + 1)]
            await known.take(events)
            await known.store.write(came, now() - days * DAY, sequence)
            sequence += count
        yield known


def came(tx: UnitOfWork, when: int, after: int) -> None:
    """Let the events above a place have come at another time."""
    tx.execute("update archived set archived_at = :when where sequence > :after", when=when, after=after)


async def places(known: Core) -> list[int]:
    return [row["sequence"] for row in await known.rows("select sequence from archived order by id")]


async def test_each_day_is_a_file_with_every_column_and_the_manifest_tells_them_all(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    async with archive_with(tmp_path, {3: 4, 1: 2, 0: 3}) as known:
        assert await export_days(at_work(known), Limits(export=folder)) == 2, "today is not over"
        assert await export_days(at_work(known), Limits(export=folder)) == 0, "nothing is exported twice"
        manifest = read_manifest(folder)
        assert manifest is not None
        assert [(part.part, part.events) for part in manifest.parts] == [(1, 4), (1, 2)]
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [MANIFEST, *(f"{part.day}.0001.parquet" for part in manifest.parts)]
        )
        first = parquet.read_table(folder / manifest.parts[0].file).to_pylist()
        archived = await known.rows("select * from archived order by id limit 4")
        for exported, row in zip(first, archived, strict=True):
            exported["archived_at"] = int(exported["archived_at"].timestamp() * 1000)
            assert exported == {**row, "is_json": True}

        for events in (3, 2):  # of today: what there is, and what came later is another part
            part = await known.store.read(export_part, folder, now() + DAY, ALL)
            assert part is not None
            assert part.events == events
            await known.take([Stream().event(place, epoch=NEW) for place in (1, 2)])
        assert await known.store.read(export_part, folder, now() + DAY, ALL) is None


async def test_an_export_that_was_cut_off_before_its_manifest_makes_the_same_file_again(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    async with archive_with(tmp_path, {2: 50}) as known:
        await export_days(at_work(known), Limits(export=folder))
        manifest = (folder / MANIFEST).read_bytes()
        (folder / MANIFEST).unlink()
        await export_days(at_work(known), Limits(export=folder))
        assert (folder / MANIFEST).read_bytes() == manifest, "the checksum included"


async def test_the_export_of_another_archive_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    async with archive_with(tmp_path / "one", {1: 1}) as known:
        await export_days(at_work(known), Limits(export=folder))
        await known.store.write(lambda tx: tx.execute("update forebay_store set id = 'another'"))
        with pytest.raises(ConfigurationError, match="another archive"):
            await export_days(at_work(known), Limits(export=folder))


async def test_what_is_old_enough_is_deleted_from_the_oldest_on_and_stays_on_record_c5(tmp_path: Path) -> None:
    async with archive_with(tmp_path, {10: 5, 5: 5, 1: 5}) as known:
        assert await trim(at_work(known), Limits(keep=7 * 86400.0)) == 5
        assert await trim(at_work(known), Limits(keep=3 * 86400.0)) == 5
        assert await places(known) == [11, 12, 13, 14, 15]
        assert await known.rows("select epoch, first, last from deleted") == [{"epoch": OLD, "first": 1, "last": 10}]


async def test_nothing_goes_that_a_consumer_needs_that_is_not_exported_or_that_is_read_in_order_c5(
    tmp_path: Path,
) -> None:
    limits = Limits(keep=86400.0)
    async with archive_with(tmp_path, {10: 8, 5: 5}) as known:
        await known.store.write(note_scan)
        assert await trim(at_work(known), limits) == 0, "a rebuild may be under way"
        await known.store.write(lambda tx: tx.execute("update scanned set at = :at", at=now() - DAY))
        assert await trim(at_work(known, done=0), limits) == 0
        assert await trim(at_work(known, done=6), limits) == 6
        exporting = msgspec.structs.replace(limits, export=tmp_path / "export")
        assert await trim(at_work(known), exporting) == 0, "nothing is exported"
        assert await known.store.read(export_part, tmp_path / "export", now() - 7 * DAY, ALL) is not None
        assert await trim(at_work(known), exporting) == 2
        assert await places(known) == [9, 10, 11, 12, 13]


async def test_i7_a_foreign_event_stays_for_a_week_whatever_the_limits(tmp_path: Path) -> None:
    def made_foreign(tx: UnitOfWork, days: float) -> None:
        tx.execute(
            "update archived set epoch = null, sequence = null, foreign_id = 'theirs', archived_at = :at where id = 2",
            at=now() - int(days * DAY),
        )

    async with archive_with(tmp_path, {10: 3}) as known:
        await known.store.write(made_foreign, 6.9)
        assert [each.id for each in await known.store.read(candidates, Limits(keep=86400.0))] == [1]
        await known.store.write(made_foreign, 7.1)
        assert [each.id for each in await known.store.read(candidates, Limits(keep=86400.0))] == [1, 2, 3]


async def test_b7_a_place_that_wants_its_body_is_needed_of_the_archive(tmp_path: Path) -> None:
    def wanting(tx: UnitOfWork) -> None:
        tx.execute("update forebay_store set archive_taken_at = 1")
        tx.execute("update forebay_inbox set wanted = '[[2,2]]'")

    async with archive_with(tmp_path, {1: 3}) as known:
        ((node, service),) = {
            (row["node"], row["service"]) for row in await known.rows("select node, service from archived")
        }
        asked = [EpochNeed(node, service, OLD, 3)]
        assert (await known.store.read(needs, [service], asked)).everything, "it has not begun"
        await known.store.write(wanting)
        assert (await known.store.read(needs, [service], asked)).done == [1]
        assert (await known.store.read(needs, ["another"], asked)).done == [3]


async def test_a_database_that_is_too_large_loses_its_oldest_and_gives_the_room_back(tmp_path: Path) -> None:
    stream = Stream()
    async with archive_with(tmp_path, {}) as known:
        if on_postgres():  # its files stay as large as they were: the setting is refused
            with pytest.raises(ConfigurationError, match="keep_bytes"):
                look_after(at_work(known)._replace(settings=Settings(keep_bytes="1GiB")))
            return
        body = b'{"text": "%s"}' % (b"x" * 60_000)
        for at in range(1, 401, 50):
            await known.take([stream.event(place, body) for place in range(at, at + 50)])
        path = tmp_path / "archive.db"
        before = path.stat().st_size
        await trim(at_work(known), Limits(keep_bytes=6 << 20))
        left = await places(known)
        assert left == list(range(401 - len(left), 401)), "the newest stay"
        assert 60 <= len(left) <= 100, "no more goes than is needed"

        async def shorter() -> bool:
            await known.store.write(lambda tx: tx.execute("update forebay_store set id = id"))
            return path.stat().st_size < before - 4 * 2**20

        await eventually(shorter)


async def test_an_event_of_which_a_second_body_is_kept_aside_stays(tmp_path: Path) -> None:
    async with archive_with(tmp_path, {10: 3}) as known:
        await known.take([Stream().event(2, SALE.replace(b"50", b"51"))])
        assert await trim(at_work(known), Limits(keep=86400.0)) == 2
        assert await places(known) == [2]
        assert await known.rows("select first, last from deleted") == [{"first": 1, "last": 1}, {"first": 3, "last": 3}]


async def test_consumers_are_asked_and_told_what_was_deleted_c5(nats_server: NatsServer, tmp_path: Path) -> None:
    async with core(nats_server, tmp_path, audit(1)) as known:
        await known.publish(*(event(f"{1:032x}", n, n) for n in range(1, 6)))
        await known.archived(5)
        epoch = EpochNeed("house-1", "door", f"{1:032x}", 5)
        asked = AtWork(known.archive.store, Settings(), True, partial(ask_all, known.connection))

        async def begun() -> bool:
            return await asked.unneeded([epoch]) == [5]

        await eventually(begun, 20)
        broken = EpochNeed("house-1", "door", f"{9:032x}", 5)
        assert await asked.unneeded([broken, epoch]) == [0, 5], "an epoch that it has not met"
        await known.audit.store.write(lambda tx: tx.execute("update forebay_inbox set watermark = 3"))
        await known.archive.store.write(lambda tx: tx.execute("update archived set archived_at = 0"))
        assert await trim(asked, Limits(keep=86400.0)) == 3
        assert await rows(known.archive.store, "select sequence from archived") == [(4,), (5,)]

        await known.audit.store.write(lambda tx: tx.execute("update forebay_inbox set watermark = 5"))
        await known.ask(RebuildProjection())
        state, said = await known.stands()
        assert (state, said.startswith("3 events that had an effect")) == ("lacking", True)
        assert await asked.unneeded([epoch]) == [0], "a rebuild that stands needs all that is left"
        assert await rows(known.audit.store, "select first, last from forebay_rebuild_lacking") == [(1, 3)]


async def test_what_was_deleted_is_a_gap_with_that_reason_for_whoever_waits_for_it_c5(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with core(nats_server, tmp_path, audit(1)) as known:
        epoch = f"{1:032x}"
        deleted = "insert into deleted (node, service, epoch, first, last) values ('house-1', 'door', :epoch, 1, 3)"
        await known.archive.store.write(lambda tx: tx.execute(deleted, epoch=epoch))
        await known.publish(*(event(epoch, n, n) for n in (4, 5)))

        async def noted() -> bool:
            return await known.notes() == [4, 5]

        await eventually(noted, 30)
        gaps = await known.audit.store.read(recorded)
        assert [(gap.first, gap.last, gap.kind, gap.reason) for gap in gaps] == [(1, 3, "gap", DELETED)]


async def test_a_consumer_that_does_not_answer_needs_everything_c5(nats_server: NatsServer, tmp_path: Path) -> None:
    async with core(nats_server, tmp_path, audit(1)) as known:
        assert known.audit.consumer is not None
        known.audit.consumer.problem = "it is away"
        with pytest.raises(LinkError):
            await ask_all(known.connection, [EpochNeed("house-1", "door", "0" * 32, 1)])


def test_the_command_exports_what_a_data_folder_has(tmp_path: Path) -> None:
    answer = called(ROOT, "archive", "export", "--to", str(tmp_path / "export"), "--data", str(tmp_path))
    assert (answer.returncode, "no archive is in" in answer.stderr) == (78, True)


@pytest.mark.parametrize("settings", [{"keep": "soon"}, {"keep_bytes": "much"}])
def test_a_limit_that_cannot_be_read_is_a_wrong_setting(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"\[archive\]"):
        msgspec.convert(settings, Settings).limits()


def test_the_archives_table_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="unknown field"):
        ARCHIVE.configured({"kept": "1d"})
    assert isinstance(ARCHIVE, Service)
