"""Readers of one database that never meet do not wait for one another: the inbox is read before the transaction."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from forebay import Event, Message, UnitOfWork
from forebay.committing import Committing
from forebay.delivery import Delivery
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS, partition_of
from forebay.inbox import look_ahead
from forebay.intake import take_all
from forebay.postgres import PostgresStore
from tests import stores
from tests.integration.arrivals import Core, Stream, opened

LIMIT = 10.0
"""Seconds that one reader is kept in the middle of its transaction, at most."""


class Rung(Event, service="till", kind="rung"):
    n: int


@pytest.fixture(autouse=True)
def on_postgres(store_kind: str) -> Iterator[None]:
    stores.choose("postgres")
    yield
    stores.choose(store_kind)


def halves() -> tuple[list[int], list[int]]:
    """Return numbers of eight nodes for each reader: of the lower partitions, and of the upper ones."""
    lower = [number for number in range(1, 100) if partition_of(f"store-{number}") < PARTITIONS // 2]
    upper = [number for number in range(1, 100) if partition_of(f"store-{number}") >= PARTITIONS // 2]
    return lower[:8], upper[:8]


def batch(stream: Stream, nodes: Iterable[int], sequence: int) -> list[Delivery]:
    """Return the next event of each node, of which each has an epoch of its own."""
    return [
        stream.event(sequence, b'{"n":1}', kind="rung", node=f"store-{node}", epoch=f"{node:032x}") for node in nodes
    ]


def nothing(first: int, end: int) -> None:
    """Acknowledge nothing."""


@pytest.mark.parametrize("shared", [True, False])
async def test_two_readers_whose_epochs_share_a_page_collide_only_where_they_read_it_in_their_transactions(
    tmp_path: Path, shared: bool
) -> None:
    mine, others = halves()
    amid, go_on = threading.Event(), threading.Event()

    def wait(_: UnitOfWork, __: Rung, message: Message) -> None:
        if message.node == f"store-{mine[0]}" and message.place is not None and message.place.sequence == 2:
            amid.set()
            assert go_on.wait(LIMIT)

    def pass_by(_: UnitOfWork, __: Rung, ___: Message) -> None:
        """Do nothing."""

    async with AsyncExitStack() as stack:
        cores: list[Core] = []
        readers: list[Committing] = []
        for function in (wait, pass_by):
            handlers = Handlers()
            handlers.add(Rung, function, batch=False)
            core = await stack.enter_async_context(opened(tmp_path / "sales.db", "sales", handlers))
            cores.append(core)
            readers.append(Committing("sales", handlers, core.store, shared=shared))
        stream = Stream()
        for nodes in (mine, others):
            await cores[1].take(batch(stream, nodes, 1))

        async with anyio.create_task_group() as tasks:
            commit = partial(readers[0].commit, "EVENTS", "2017")
            tasks.start_soon(commit, batch(stream, mine, 2), nothing)
            try:
                assert await run_sync(amid.wait, LIMIT)
                assert await readers[1].commit("EVENTS", "2017", batch(stream, others, 2), nothing) == 8
            finally:
                go_on.set()
        rows = await cores[0].rows("select distinct watermark from forebay_inbox")
        assert rows == [{"watermark": 2}]
        assert [reader.totals.applied for reader in readers] == [8, 8]
        collisions = []
        for core in cores:
            assert isinstance(core.sqlite, PostgresStore)
            collisions.append(core.sqlite.collisions)
        assert (sum(collisions) == 0) == shared


async def test_a_unit_that_runs_again_begins_with_what_was_read_ahead_not_with_what_it_made_of_it(
    tmp_path: Path,
) -> None:
    handlers = Handlers()
    async with opened(tmp_path / "sales.db", "sales", handlers) as core:
        stream = Stream()
        await core.take(batch(stream, range(1, 9), 1))
        following = batch(stream, range(1, 9), 2)
        ahead = await core.store.read(look_ahead, following)

        def run(work: UnitOfWork) -> None:
            assert take_all(work, handlers, "EVENTS", "2017", following, False, None, ahead).skipped == 8
            raise ValueError("undone")

        for _ in range(2):
            with pytest.raises(ValueError, match="undone"):
                await core.store.write(run)
        assert (await core.take(following)).skipped == 8
        assert await core.rows("select distinct watermark from forebay_inbox") == [{"watermark": 2}]
