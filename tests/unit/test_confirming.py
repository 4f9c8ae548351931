from __future__ import annotations

import json
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from forebay import freeing
from forebay.confirming import Confirming
from forebay.errors import LinkError
from forebay.event import Event
from forebay.forwarding import LaneState
from forebay.identity import parse_message_id
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.protocol.confirmation import Answer, ConfirmedBy, EpochAnswer
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.tail import GRACE, SHED_GRACE
from forebay.unit_of_work import UnitStore
from tests.outboxes import messages_after


class Sold(Event, service="till", kind="sold"):
    text: str = ""


class Core:
    """Answers in the consumers' place; it stands where the connection to the broker does."""

    def __init__(self) -> None:
        self.listed: ConfirmedBy | None = ConfirmedBy(3, {"sales": ["till"], "archive": ["*"], "stock": ["delivery"]})
        self.says: dict[str, dict[str, EpochAnswer] | None] = {"sales": {}, "archive": {}}
        self.asked: list[str] = []
        self.questions: list[Any] = []

    async def request(self, subject: str, body: bytes, *, timeout: float) -> Any:  # noqa: ARG002, ASYNC109
        self.asked.append(subject)
        if subject.startswith("confirm.list."):
            return SimpleNamespace(body=msgspec.json.encode(self.listed))
        self.questions.append(json.loads(body))
        consumer = subject.split(".")[2]
        epochs = self.says[consumer]
        if epochs is None:
            raise LinkError("no answer")
        answer = Answer(
            v=1, consumer=consumer, store="s", clock="2026-03-01T12:00:00Z", incarnation="i", stream_end=0, position=0,
            epochs=epochs, confirmed_by=self.listed,
        )  # fmt: skip
        return SimpleNamespace(body=msgspec.json.encode(answer))


class Node:
    """A node with one lane, a clock that is set by hand, and the core as it wants to be asked."""

    def __init__(self, store: SqliteStore, outbox: Outbox) -> None:
        self.now = 1000.0
        self.core = Core()
        self.outbox = outbox
        self.store = UnitStore(store, outbox)
        lanes = {"ledger": LaneState()}
        relay = SimpleNamespace(lanes=lanes, states=lambda _: lanes, incarnation="i", doubt_stream=lambda: None)
        self.confirming = Confirming(
            outbox, self.store, cast("Any", self.core), cast("Any", relay), clock=lambda: self.now
        )

    async def emit(self, count: int, text: str = "") -> str:
        ids = await self.store.write(lambda tx: [tx.emit(Sold(text=text)) for _ in range(count)])
        parsed = parse_message_id(ids[-1])
        assert parsed is not None
        return parsed.epoch

    async def rows(self) -> list[int]:
        found = await self.store.read(messages_after, self.outbox, "ledger", None, limit=10_000, max_bytes=1 << 30)
        return [message.place.sequence for message in found if message.place]

    async def ask(self, after: float = 0.0) -> int:
        self.now += after
        await self.confirming.ask()
        return await self.confirming.free()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    store = await SqliteStore.open(tmp_path / "s.db", migrations=[MigrationSet("forebay", files("forebay.migrations"))])
    outbox = Outbox("store-330", "till", [Lane("ledger", budget="64KiB")])
    await store.write(outbox.bind, "s1")
    yield Node(store, outbox)
    await store.close()


async def test_a_node_that_knows_no_consumer_asks_for_the_list_first_s3(node: Node) -> None:
    await node.ask()
    assert node.core.asked == [
        "confirm.list.store-330", "confirm.event.archive.store-330", "confirm.event.sales.store-330"
    ]  # fmt: skip
    assert await node.store.read(node.outbox.confirmed_by) == node.core.listed


@pytest.mark.parametrize("listed", [None, ConfirmedBy(9, {})])
async def test_an_empty_or_missing_list_frees_nothing_s3(node: Node, listed: ConfirmedBy | None) -> None:
    node.core.listed = listed
    await node.emit(3)
    assert await node.ask() == await node.ask(after=2 * GRACE) == 0
    assert await node.rows() == [1, 2, 3]


async def test_an_older_list_does_not_replace_the_one_that_is_known_s3(node: Node) -> None:
    await node.ask()
    node.core.listed = ConfirmedBy(2, {"archive": ["*"]})
    await node.ask()
    assert node.confirming.needed == ["archive", "sales"]


async def test_rows_go_once_every_needed_consumer_has_said_it_twice_a_grace_apart_o1(node: Node) -> None:
    epoch = await node.emit(3)
    node.core.says = {"sales": {epoch: EpochAnswer(2)}, "archive": {epoch: EpochAnswer(3)}}
    assert await node.ask() == 0
    assert await node.ask(after=GRACE - 1) == 0
    assert await node.ask(after=1) == 2
    assert await node.rows() == [3]
    assert await node.store.read(freeing.floor, "ledger") == f"{epoch}-2"


async def test_one_consumer_that_never_answered_keeps_everything_o1(node: Node) -> None:
    epoch = await node.emit(3)
    node.core.says = {"sales": {epoch: EpochAnswer(3)}, "archive": None}
    for _ in range(3):
        with pytest.raises(LinkError):
            await node.ask(after=GRACE)
        assert await node.confirming.free() == 0
    assert await node.rows() == [1, 2, 3]


async def test_the_list_is_the_newest_before_anything_is_freed_s3(node: Node) -> None:
    """A consumer that joined needs the rows too: it has not answered yet."""
    epoch = await node.emit(3)
    node.core.says = {"sales": {epoch: EpochAnswer(3)}, "archive": {epoch: EpochAnswer(3)}, "loyalty": {}}
    await node.ask()
    node.core.listed = ConfirmedBy(4, {"sales": ["till"], "archive": ["*"], "loyalty": ["till"]})
    assert await node.ask(after=GRACE) == 0
    assert await node.rows() == [1, 2, 3]


async def test_a_restored_consumer_holds_back_what_it_no_longer_has_o1(node: Node) -> None:
    epoch = await node.emit(3)
    node.core.says = {"sales": {epoch: EpochAnswer(3)}, "archive": {epoch: EpochAnswer(3)}}
    await node.ask()
    node.core.says["sales"] = {}
    assert await node.ask(after=GRACE) == 0
    node.core.says["sales"] = {epoch: EpochAnswer(3)}
    assert await node.ask(after=60) == 0
    assert await node.ask(after=GRACE) == 3


async def test_what_was_passed_without_its_event_stays_and_so_does_what_follows_o1_b2(node: Node) -> None:
    epoch = await node.emit(4)
    said = {epoch: EpochAnswer(4, missing=[(3, 3)])}
    node.core.says = {"sales": said, "archive": said}
    await node.ask()
    assert await node.ask(after=GRACE) == 2
    assert await node.rows() == [3, 4]


async def test_a_tail_beyond_its_share_of_the_budget_goes_earlier_and_keeps_its_share(node: Node) -> None:
    epoch = await node.emit(100, text="x" * 200)  # about 60 % of the budget; the tail may keep 20 %
    node.core.says = {"sales": {epoch: EpochAnswer(100)}, "archive": {epoch: EpochAnswer(100)}}
    assert await node.ask() == 0
    freed = await node.ask(after=SHED_GRACE)
    kept = await node.rows()
    assert kept == list(range(freed + 1, 101))
    size = await node.store.read(lambda tx: tx.execute("select bytes from forebay_origin")[0]["bytes"])
    assert 0.15 * 64 * 1024 < size <= 0.2 * 64 * 1024


async def test_a_question_names_floor_and_chain_o2_c1(node: Node) -> None:
    epoch = await node.emit(2)
    node.core.says = {"sales": {epoch: EpochAnswer(1)}, "archive": {epoch: EpochAnswer(1)}}
    await node.ask()
    await node.ask(after=GRACE)
    await node.ask()
    (first, last) = node.core.questions[0], node.core.questions[-1]
    assert first == {
        "v": 1, "origins": [{"service": "till", "lane": "ledger", "chain": [{"epoch": epoch, "prev": "none"}]}]
    }  # fmt: skip
    assert last["origins"][0]["floor"] == f"{epoch}-1"
