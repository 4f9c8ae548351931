"""The relay with frames, against a broker that loses, forgets and refuses as it likes; cut and sent again anywhere."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay import Event, Lane, UnitOfWork
from forebay.envelope import Message, decode_message, identify
from forebay.frame import decode_frame, identify_frame
from forebay.identity import parse_message_id
from forebay.jetstream.outcomes import NotSent, Outcome, Refused, Stored, Uncertain
from forebay.jetstream.publishing import Outgoing, encode_head
from forebay.lanes import Frames
from forebay.outbox import Outbox
from forebay.relay import Relay
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.unit_of_work import UnitStore
from tests.framed import is_frame

ENGINE = MigrationSet("forebay", files("forebay") / "migrations")
AT = datetime(2026, 3, 1, tzinfo=UTC)
LIMIT = 4_000
"""Bytes that the broker's stream takes of one message."""


class Read(Event, service="fridges", kind="read", lane="telemetry", key="fridge"):
    fridge: str
    number: int
    pad: str = ""


class Opened(Event, service="fridges", kind="opened", lane="telemetry"):
    number: int
    pad: str = ""


class Broker:
    """A publisher that stores what it is given, until it loses a message or the answer to it."""

    timeout = 1.0

    def __init__(self) -> None:
        self.fates: list[str] = []
        self.max_payload = 20_000
        self.stored: list[Outgoing] = []
        self.known: dict[str, int] = {}

    def wire_bytes(self, message: Outgoing) -> int:
        assert message.head == encode_head(message.headers)
        return len(message.head) + 42 + len(message.body)

    def prepare(self, messages: Sequence[Outgoing]) -> None:
        """Leave it all to ``publish``."""

    async def publish(
        self,
        messages: Sequence[Outgoing],
        *,
        atomic: bool,  # noqa: ARG002
        prepared: object,  # noqa: ARG002
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        wall = ""
        for message in messages:
            assert self.wire_bytes(message) <= self.max_payload
            fate = self.fates.pop() if self.fates else "stored"
            message_id = message.headers["Nats-Msg-Id"]
            if wall:
                outcomes.append(NotSent(wall))
            elif len(message.body) > LIMIT:
                outcomes.append(Refused(10054, "message size exceeds maximum allowed"))
                wall = "it comes in parts" if message.divisible else ""
            elif fate == "lost":
                outcomes.append(Uncertain("no answer"))
                wall = "an earlier message was not stored"
            else:
                known = message_id in self.known
                if not known:
                    self.stored.append(message)
                    self.known[message_id] = len(self.stored)
                if fate == "unanswered":
                    outcomes.append(Uncertain("no answer"))
                    wall = "an earlier message was not stored"
                else:
                    outcomes.append(Stored(self.known[message_id], duplicate=known))
        return outcomes

    def events(self) -> list[Message]:
        """Read everything, as a consumer does."""
        found: list[Message] = []
        for message in self.stored:
            subject = f"evt.1.{message.subject.removeprefix('evt.')}"
            if is_frame(message.headers):
                events = decode_frame(identify_frame(subject, message.headers), message.body, AT)
                assert all(isinstance(each, Message) for each in events)
                found += cast("list[Message]", events)
            else:
                found.append(decode_message(identify(subject, message.headers), message.body, AT))
        return found


class System:
    def __init__(self, store: SqliteStore, outbox: Outbox) -> None:
        self.now = 0.0
        self.broker = Broker()
        self.store = UnitStore(store, outbox)
        connection = cast("Any", SimpleNamespace(connected=True, generation=1))
        self.relay = Relay(outbox, self.store, connection, cast("Any", self.broker))
        self.relay._clock = lambda: self.now
        self.relay._check_stream = self._look  # type: ignore[method-assign]
        self.written: dict[str, str] = {}
        self.too_large: set[str] = set()
        self.dropped: set[str] = set()

    async def _look(self) -> None:
        """The stream is as it should be."""

    async def write(self, kinds: Sequence[str]) -> None:
        def unit(tx: UnitOfWork) -> list[str]:
            made: list[str] = []
            for kind in kinds:
                number, pad = len(self.written) + len(made), "x" * (LIMIT if kind == "large" else 40)
                event = Opened(number=number, pad=pad) if kind == "opened" else Read(fridge="a", number=number, pad=pad)
                made.append(tx.emit(event))
            return made

        ids = await self.store.write(unit)
        for message_id, kind in zip(ids, kinds, strict=True):
            self.written[message_id] = kind
            if kind == "large":
                self.too_large.add(message_id)

    async def drop(self, share: float) -> None:
        """Push something out from the middle of what is there."""

        def unit(tx: UnitOfWork) -> list[str]:
            rows = tx.execute(
                "select e.epoch, r.sequence from forebay_outbox r join forebay_epoch e on e.id = r.epoch"
                " order by r.sequence"
            )
            gone = [f"{row['epoch']}-{row['sequence']}" for row in rows[int(len(rows) * share) :][:3]]
            for each in gone:
                sequence = int(each.partition("-")[2])
                tx.execute("delete from forebay_outbox where sequence = :sequence", sequence=sequence)
            return gone

        self.dropped |= set(await self.store.write(unit))

    def send_again(self, first: int, count: int) -> None:
        if self.written:
            epoch = next(iter(self.written)).partition("-")[0]
            self.relay.send_again("telemetry", epoch, [(first, first + count)])

    async def drain(self) -> None:
        for _ in range(400):
            self.now += 3600.0
            if not await self.relay._send_next():
                return
        raise AssertionError("it sends for ever")

    def check(self) -> None:
        """Whoever takes every event once meets them in order, however often and in what pieces they came."""
        first_copies = dict.fromkeys(event.message_id for event in self.broker.events())
        sequences = [int(each.partition("-")[2]) for each in first_copies]
        assert sequences == sorted(sequences)
        alone = {each.headers["Nats-Msg-Id"].partition("~")[0] for each in self.broker.stored}
        assert set(first_copies) <= set(self.written)
        assert not self.too_large & alone  # among others one may be packed to a size that the broker takes


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.lists(st.sampled_from(["read"] * 12 + ["opened", "large"]), min_size=1, max_size=120),
        ),
        st.tuples(st.just("fates"), st.lists(st.sampled_from(["stored", "lost", "unanswered"]), max_size=8)),
        st.tuples(st.just("drop"), st.floats(0, 1)),
        st.tuples(st.just("again"), st.tuples(st.integers(1, 200), st.integers(0, 60))),
        st.tuples(st.just("payload"), st.sampled_from([LIMIT + 1200, 20_000])),
        st.tuples(st.just("drain"), st.none()),
    ),
    max_size=12,
)
framings = st.builds(Frames, events=st.sampled_from([2, 7, 50, 1000]), zstd=st.booleans())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(framings, steps)
def test_events_of_frames_arrive_in_order_whole_and_nothing_is_left_out(
    frames: Frames, steps: list[tuple[str, Any]]
) -> None:
    asyncio.run(_run(frames, steps))


async def _run(frames: Frames, steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox("house-1", "fridges", [Lane("telemetry", frames=frames)])
        store = await SqliteStore.open(Path(folder) / "fridges.db", migrations=[ENGINE])
        try:
            await store.write(outbox.bind, "s1")
            system = System(store, outbox)
            repaired = False
            for what, value in steps:
                match what:
                    case "write":
                        await system.write(value)
                    case "fates":
                        system.broker.fates = list(value)
                    case "drop":
                        await system.drop(value)
                    case "again":
                        system.send_again(*value)
                        repaired = True
                    case "payload":
                        system.broker.max_payload = value
                    case _:
                        await system.drain()
                if not repaired:
                    system.check()
            system.broker.fates = []
            await system.drain()
            arrived = {event.message_id: event for event in system.broker.events()}
            missing = set(system.written) - set(arrived)
            assert missing <= system.dropped | {each for each in system.too_large if each not in arrived}
            numbers = dict(zip(system.written, range(len(system.written)), strict=True))
            for message_id, event in arrived.items():
                assert f'"number":{numbers[message_id]},'.encode() in event.body
                place = parse_message_id(message_id)
                assert place is not None
                if message_id not in system.dropped:
                    assert system.relay.forwarded("telemetry", place.place) is not None or (
                        system.relay.lanes["telemetry"].sent is not None
                    )
        finally:
            await store.close()
