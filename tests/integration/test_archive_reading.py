"""What a consumer believes of an archive (rule C5), over a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from forebay.archive_reading import ArchiveReader
from forebay.errors import LinkError
from forebay.identity import Origin
from forebay.jetstream.connection import Connection, Incoming
from forebay.jetstream.streams import api_request, stream_state
from forebay.protocol.archive import SUBJECT, ArchiveAnswer, ArchivedMessage, ArchiveQuestion
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import apply, connected

ORIGIN, EPOCH = Origin("house-1", "door", "ledger"), "a" * 32


@asynccontextmanager
async def archive(connection: Connection, complete_to: int, has: int, page: int = 3) -> AsyncIterator[list[int]]:
    """Answer as an archive that has read to a stream sequence, and has so many events of an epoch.

    Yields the first place of each question that came.
    """
    created, asked = (await stream_state(connection, "EVENTS")).created, list[int]()

    def page_from(first: int, last: int) -> ArchiveAnswer:
        places = range(first, min(last, has) + 1)
        events = [ArchivedMessage(place, "evt.0.house-1.door.opened", {}, b"{}", 0) for place in places[:page]]
        return ArchiveAnswer(incarnation=created, complete_to=complete_to, events=events, more=len(places) > page)

    async with anyio.create_task_group() as tasks:

        def answer(request: Incoming) -> None:
            question = msgspec.json.decode(request.body, type=ArchiveQuestion)
            asked.append(question.first)
            body = msgspec.json.encode(page_from(question.first, question.last))
            tasks.start_soon(connection.publish, request.reply, body)

        subscription = await connection.subscribe(SUBJECT, answer)
        yield asked
        await subscription.unsubscribe()


async def read(reader: ArchiveReader, last: int, upto: int) -> list[int]:
    return [each.sequence async for page in reader.events(ORIGIN, EPOCH, 1, last, upto=upto) for each in page]


@asynccontextmanager
async def admin(server: NatsServer, *consumers: str) -> AsyncIterator[Connection]:
    async with connected(server.url, node="admin") as connection:
        await apply(connection, *consumers, services=("*",))
        yield connection


async def test_an_archive_that_is_behind_is_not_believed_about_what_it_lacks_c5(nats_server: NatsServer) -> None:
    async with admin(nats_server, "audit", "archive") as connection, archive(connection, complete_to=8, has=2):
        reader = ArchiveReader(connection, "audit")
        with pytest.raises(LinkError, match="the archive has read to 8, not to 9"):
            await read(reader, last=5, upto=9)
        assert await read(reader, last=5, upto=8) == [1, 2]
        assert await read(reader, last=5, upto=0) == [1, 2], "nothing is concluded from what it lacks"


async def test_a_long_range_is_read_page_by_page_c5(nats_server: NatsServer) -> None:
    async with admin(nats_server, "audit", "archive") as connection, archive(connection, 9, has=8) as asked:
        assert await read(ArchiveReader(connection, "audit"), last=7, upto=9) == [1, 2, 3, 4, 5, 6, 7]
        assert asked == [1, 4, 7]


async def test_an_archive_that_does_not_answer_is_waited_for_c5(nats_server: NatsServer) -> None:
    async with admin(nats_server, "audit", "archive") as connection:
        with pytest.raises(LinkError):
            await read(ArchiveReader(connection, "audit"), last=5, upto=9)


async def test_where_no_archive_is_listed_none_is_asked_c5(nats_server: NatsServer) -> None:
    async with admin(nats_server, "audit") as connection, archive(connection, 9, has=8) as asked:
        assert await read(ArchiveReader(connection, "audit"), last=5, upto=9) == []
        assert asked == []


async def test_without_a_list_nobody_knows_whether_there_is_an_archive_c5_s3(nats_server: NatsServer) -> None:
    async with admin(nats_server, "audit", "archive") as connection:
        config = (await stream_state(connection, "EVENTS")).config
        await api_request(connection, "STREAM.UPDATE.EVENTS", {**config, "metadata": {}})
        with pytest.raises(LinkError, match="no list of consumers"):
            await read(ArchiveReader(connection, "audit"), last=5, upto=9)
