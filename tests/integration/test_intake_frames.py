"""Frames in the intake: what becomes of one is what would become of its events one by one (F1, I4)."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forebay import Message, UnitOfWork, packing
from forebay import frame as framing
from forebay.calls import BATCH_BYTES, BATCH_EVENTS
from forebay.committing import Committing
from forebay.delivery import Delivery
from forebay.drafts import MAX_EVENT_BYTES
from forebay.errors import HeaderError
from forebay.handlers import Handlers
from forebay.identity import Place
from forebay.intake import take_all
from forebay.redrive import discard, due
from forebay.retries import retry_one
from forebay.taken import FAILURES_IN_A_ROW
from tests.integration.arrivals import NEW, OLD, Core, Stream, opened
from tests.integration.test_intake import FAILING, Rung, effects, event, handlers, opened_at, watermark


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with opened_at(tmp_path) as core:
        yield core


@pytest.fixture
def stream() -> Stream:
    return Stream()


def several(stream: Stream, first: int, last: int, **fields: Any) -> list[Delivery]:
    return [event(stream, at, **fields) for at in range(first, last + 1)]


def wake(work: UnitOfWork, condition: str) -> None:
    work.execute(f"update forebay_parked set retry_at = 1 where {condition}")


def broken(delivery: Delivery, at: int, **members: Any) -> Delivery:
    """Return a frame with some members of one of its events changed, and those that are None taken out."""
    events = msgspec.json.decode(delivery.body)
    events[at] = {name: value for name, value in {**events[at], **members}.items() if value is not None}
    return delivery._replace(body=msgspec.json.encode(events))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["rung", "rung-together"])
async def test_a_frame_takes_effect_once_in_one_row_of_the_inbox(
    core: Core, stream: Stream, kind: str, packed: bool
) -> None:
    frame = stream.frame(several(stream, 1, 12, kind=kind), packed=packed)

    taken = await core.take([frame])
    again = await core.take([stream.frame(several(stream, 1, 12, kind=kind), suffix="~ab")])

    assert (taken.applied, again.applied, again.duplicates) == (12, 0, 12)
    assert await effects(core) == list(range(1, 13))
    assert await core.rows("select watermark, held from forebay_inbox") == [{"watermark": 12, "held": "[]"}]


async def test_borders_of_frames_matter_to_nobody(core: Core, stream: Stream) -> None:
    await core.take([event(stream, 1), stream.frame(several(stream, 2, 5))])
    taken = await core.take(
        [stream.frame(several(stream, 1, 3)), stream.frame(several(stream, 4, 8)), event(stream, 9)]
    )

    assert (taken.applied, taken.duplicates) == (4, 5)
    assert await effects(core) == list(range(1, 10))


async def test_a_frame_above_a_hole_is_held_event_by_event_and_released_in_order(core: Core, stream: Stream) -> None:
    held = await core.take(
        [stream.frame(several(stream, 3, 6)), stream.frame(several(stream, 1, 2, epoch=NEW, prev=Place(OLD, 6)))]
    )

    assert (held.applied, held.held) == (0, 6)
    await core.take([stream.frame(several(stream, 1, 2))])

    assert await effects(core) == [1, 2, 3, 4, 5, 6, 1, 2]
    assert await core.rows("select * from forebay_held") == []


async def test_one_bad_event_is_parked_with_its_key_and_the_rest_goes_on(core: Core, stream: Stream) -> None:
    keyed = [event(stream, at, key=key) for at, key in enumerate(["a", "b", "a", "b"], 1)]
    frame = broken(stream.frame(keyed), 0, data={"n": "one"})

    taken = await core.take([frame, event(stream, 5, key="a"), event(stream, 6, key="b")])

    assert (taken.applied, taken.parked) == (3, 3)
    assert await core.parked() == [("undecodable-body", f"{OLD}-1"), ("behind", f"{OLD}-3"), ("behind", f"{OLD}-5")]
    assert await effects(core) == [2, 4, 6]
    assert await watermark(core) == 6


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"time": "yesterday"}, "malformed-header"),
        ({"time": None}, "malformed-header"),
        ({"specversion": "0.3"}, "malformed-header"),
        ({"source": "/store-1/till"}, "forged-source"),
        ({"type": "till.other.v1"}, "malformed-header"),
        ({"type": "till.rung.v7"}, "unknown-version"),
        ({"data": None}, "undecodable-body"),
        ({"forebayhlc": "1"}, "malformed-header"),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [1, 2])
async def test_what_is_wrong_with_one_event_is_that_events_alone_also_when_it_was_held(
    core: Core, stream: Stream, members: dict[str, Any], reason: str, first: int
) -> None:
    await core.take([broken(stream.frame(several(stream, first, first + 2, key="k")), 1, **members)])
    if first == 2:
        assert await core.parked() == []
        await core.take([event(stream, 1)])

    last = first + 2
    assert await core.parked() == [(reason, f"{OLD}-{first + 1}"), ("behind", f"{OLD}-{last}")]
    assert await effects(core) == list(range(1, first + 1))
    assert await watermark(core) == last


async def test_a_parked_event_of_a_frame_is_retried_in_order_by_a_release_that_reads_it(
    core: Core, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = framing._Reading.event

    def refuse(self: Any, sequence: int, *args: Any) -> Any:
        if sequence == 2:
            raise HeaderError("a form that this release does not read")
        return refused(self, sequence, *args)

    with monkeypatch.context() as earlier:
        earlier.setattr(framing._Reading, "alike", lambda *_: None)
        earlier.setattr(framing._Reading, "event", refuse)
        earlier.setattr(
            framing._Reading,
            "text",
            lambda self, sequence, text: (
                framing.Unreadable(Place(OLD, 2), HeaderError("not read"), "k", text)
                if sequence == 2
                else refused(self, sequence, framing._event(text), None, text)
            ),
        )
        await core.take([stream.frame(several(stream, 1, 3, key="k"))])
    assert await core.parked() == [("malformed-header", f"{OLD}-2"), ("behind", f"{OLD}-3")]

    for _ in range(2):
        await core.store.write(wake, "id = (select min(id) from forebay_parked)")
        (parked,) = await core.store.read(due, 1)
        await core.store.write(retry_one, handlers(), parked)

    assert await effects(core) == [1, 2, 3]
    assert await core.parked() == []


async def test_a_frame_that_cannot_be_read_keeps_its_origin_waiting_until_it_can(
    core: Core, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = stream.frame(several(stream, 1, 3), packed=True)
    with monkeypatch.context() as without:
        without.setattr(packing, "_zstd", lambda: None)
        taken = await core.take([frame, event(stream, 4), event(stream, 1, 7, node="store-1", epoch=NEW)])
        again = stream.frame(several(stream, 1, 3), suffix="~abc")._replace(
            headers={**frame.headers, "Nats-Msg-Id": f"{OLD}-1-3~abc"}, body=frame.body
        )
        await core.take([again])  # the node sends again what was not passed

    assert (taken.parked, taken.held, taken.applied) == (1, 1, 1)
    ((reason, _),) = await core.parked()
    assert reason == "malformed-header"
    assert await effects(core) == [7]

    await core.store.write(wake, "1 = 1")
    (parked,) = await core.store.read(due, 1)
    await core.store.write(retry_one, handlers(), parked)

    assert await effects(core) == [7, 1, 2, 3, 4]
    assert await core.parked() == []


async def test_an_event_of_frames_that_cannot_be_read_is_parked_once_however_they_are_cut(
    core: Core, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed(first: int, last: int, suffix: str = "", **fields: Any) -> Delivery:
        return stream.frame(several(stream, first, last, **fields), packed=True, suffix=suffix)

    frames = [packed(1, 3), packed(4, 5), packed(6, 9), packed(1, 3, epoch=NEW)]
    cut_elsewhere = [packed(1, 3, "~a"), packed(2, 4), packed(1, 8)]
    more, whole = [packed(5, 12, "~b"), packed(9, 12)], packed(1, 12)
    with monkeypatch.context() as without:
        without.setattr(packing, "_zstd", lambda: None)
        assert (await core.take(frames)).parked == 4
        assert (await core.take([*cut_elsewhere, *frames])).parked == 0
        assert (await core.take(more)).parked == 1
        assert [each for _, each in await core.parked()] == [
            f"{OLD}-1-3",
            f"{OLD}-4-5",
            f"{NEW}-1-3",
            f"{OLD}-5-12",
        ]
        await core.store.write(discard, 2, "of no use")
        assert (await core.take([frames[1]])).parked == 0

    await core.take([whole])
    assert await effects(core) == list(range(1, 13))


@pytest.mark.parametrize("failing", [{2}, {1, 4, 13}, set(range(1, FAILURES_IN_A_ROW + 1))], ids=str)
async def test_of_a_frame_that_is_read_at_last_only_the_failing_events_stay_parked_f1(
    core: Core, stream: Stream, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    last = FAILURES_IN_A_ROW + 2
    events = [event(stream, at, FAILING if at in failing else at) for at in range(1, max(last, *failing) + 1)]
    frame = stream.frame(events[:last], packed=True)
    with monkeypatch.context() as without:
        without.setattr(packing, "_zstd", lambda: None)
        await core.take([frame, *events[last:]])

    await core.store.write(wake, "1 = 1")
    reader = Committed(core)
    await reader.committing.retries.begin()
    await reader.committing.retry_due()

    # What comes after as many as that in a row waits untried, with them.
    fine = [at for at in range(1, last + 1) if at not in failing and len(failing) < FAILURES_IN_A_ROW]
    assert await effects(core) == fine
    assert await core.parked() == [("handler", f"{OLD}-{at}") for at in range(1, len(events) + 1) if at not in fine]
    assert await watermark(core) == len(events)
    assert reader.committing.totals.applied == len(fine)


@pytest.mark.parametrize("wrong", [b"{}", b"[", b"[1,2]", b"", b"[{}]"])
async def test_a_frame_that_says_nothing_for_certain_is_parked_and_its_places_stay_open(
    core: Core, stream: Stream, wrong: bytes
) -> None:
    taken = await core.take([stream.frame(several(stream, 1, 3))._replace(body=wrong), event(stream, 4)])

    if wrong == b"[1,2]":
        assert taken.held == 1
    assert taken.parked == 1
    assert await effects(core) == []
    assert await watermark(core) == 0


class Committed:
    """A reader's commits over the test's store."""

    def __init__(self, core: Core, with_handlers: Handlers | None = None) -> None:
        self.committing = Committing("sales", with_handlers or handlers(), core.store)

    async def take(self, deliveries: Sequence[Delivery]) -> int:
        return await self.committing.commit("EVENTS", "2017", deliveries, lambda _first, _end: None)


@pytest.mark.parametrize("kind", ["rung", "rung-together"])
async def test_an_event_whose_handler_fails_is_parked_and_its_frame_goes_on(
    core: Core, stream: Stream, kind: str
) -> None:
    events = [event(stream, at, FAILING if at in (3, 5) else at, key=f"k{at}", kind=kind) for at in range(1, 8)]

    assert await Committed(core).take([event(stream, 1, 99, epoch=NEW), stream.frame(events), event(stream, 8)]) == 3

    assert await core.parked() == [("handler", f"{OLD}-3"), ("handler", f"{OLD}-5")]
    assert await effects(core) == [99, 1, 2, 4, 6, 7, 8]


async def test_failures_in_a_row_within_a_frame_suspend_the_reader_f2(core: Core, stream: Stream) -> None:
    failing = [event(stream, at, FAILING, key=f"k{at}") for at in range(1, FAILURES_IN_A_ROW + 5)]

    reader = Committed(core)
    assert await reader.take([stream.frame(failing), event(stream, len(failing) + 1)]) == 1

    assert reader.committing.suspended is not None
    assert {reason for reason, _ in await core.parked()} == {"handler"}
    assert await watermark(core) == len(failing)  # they are retried from the parking, and nothing new is taken in


async def test_what_a_restored_emitter_emits_again_in_a_frame_has_no_second_effect_b5(
    core: Core, stream: Stream
) -> None:
    def caused(epoch: str) -> Delivery:
        return stream.frame([event(stream, at, epoch=epoch, cause=f"{NEW}-{at}/till/0") for at in (1, 2, 3)])

    first = await core.take([caused(OLD)])
    again = await core.take([caused(f"{3:032x}")])

    assert (first.applied, again.applied, again.duplicates) == (3, 0, 3)
    assert await effects(core) == [1, 2, 3]


@pytest.mark.parametrize("framed", [False, True])
async def test_what_descends_from_an_abandoned_place_over_another_epoch_is_parked_alone_b5(
    core: Core, stream: Stream, framed: bool
) -> None:
    later = f"{3:032x}"
    await core.take([*several(stream, 1, 5), event(stream, 1, 6, epoch=NEW, prev=Place(OLD, 5))])

    def abandon(work: UnitOfWork) -> None:
        work.execute("update forebay_inbox set abandoned_after = 2 where epoch = :epoch", epoch=OLD)

    await core.store.write(abandon)
    caused = [event(stream, at, epoch=later, prev=Place(NEW, 1), cause=f"{OLD}-{at}/till/0") for at in (1, 2)]

    taken = await core.take([stream.frame(caused)] if framed else caused)

    assert (taken.applied, taken.parked) == (0, 2)
    assert await core.parked() == [("abandoned", f"{later}-1"), ("abandoned", f"{later}-2")]


@pytest.mark.parametrize("early", [(), (3,)])
async def test_what_comes_before_the_failures_in_a_row_takes_effect_and_what_is_untried_waits(
    core: Core, stream: Stream, early: tuple[int, ...]
) -> None:
    bad = {*early, *range(11, 11 + FAILURES_IN_A_ROW)}
    last = max(bad) + 5
    events = [event(stream, at, FAILING if at in bad else at) for at in range(1, last + 1)]

    reader = Committed(core)
    assert await reader.take([stream.frame(events), event(stream, last + 1)]) == 1

    assert reader.committing.suspended is not None
    assert await effects(core) == [at for at in range(1, 11) if at not in bad]  # before anything later, without a key
    assert await core.parked() == [("handler", f"{OLD}-{at}") for at in [*early, *range(11, last + 1)]]


async def test_a_batch_handler_gets_no_more_bytes_at_once_than_fit_into_memory(tmp_path: Path, stream: Stream) -> None:
    """A few packed bytes can stand for any number."""
    got: list[int] = []

    def keep(_: UnitOfWork, messages: list[Message]) -> None:
        got.append(sum(len(message.body) for message in messages))

    everything = Handlers()
    everything.add_everything(keep)
    large = b'{"n":1,"text":"%b"}' % (b"x" * 256 * 1024)
    frames = [
        stream.frame([stream.event(at, large, kind="rung") for at in range(first, first + 16)], packed=True)
        for first in (1, 17, 33, 49, 65, 81)
    ]
    async with opened(tmp_path / "all.db", "all", everything, []) as core:
        await core.take(frames)

    assert sum(got) == 6 * 16 * len(large)
    assert max(got) < BATCH_BYTES + MAX_EVENT_BYTES


async def test_a_batch_handler_gets_about_a_thousand_events_at_a_time(tmp_path: Path, stream: Stream) -> None:
    """What it reaches is still near in memory then; it is not what arrived together that counts."""
    got: list[int] = []

    def keep(_: UnitOfWork, messages: list[Message]) -> None:
        got.append(len(messages))

    everything = Handlers()
    everything.add_everything(keep)
    frame = BATCH_EVENTS * 2 // 5
    frames = [stream.frame(several(stream, first, first + frame - 1)) for first in range(1, 6 * frame, frame)]
    async with opened(tmp_path / "all.db", "all", everything, []) as core:
        await core.take(frames)

    assert got == [3 * frame, 3 * frame]


async def test_a_frame_that_the_commit_finds_at_fault_is_tried_event_by_event(core: Core, stream: Stream) -> None:
    def prepare(work: UnitOfWork) -> None:
        work.execute("create table known (n bigint primary key)")
        work.execute("create table checked (n bigint references known (n) deferrable initially deferred)")
        for n in (1, 3, 9):
            work.execute("insert into known (n) values (:n)", n=n)

    def check(tx: UnitOfWork, event: Rung) -> None:
        tx.execute("insert into checked (n) values (:n)", n=event.n)

    checking = Handlers()
    checking.add(Rung, check, batch=False)
    await core.store.write(prepare)
    reader = Committed(core, checking)

    assert await reader.take([stream.frame(several(stream, 1, 3)), event(stream, 4, 9)]) == 2

    assert [reason for reason, _ in await core.parked()] == ["handler"] * 3
    assert await core.rows("select n from checked") == [{"n": 9}]
    await core.store.write(wake, "1 = 1")
    await reader.committing.retries.begin()
    await reader.committing.retry_due()
    assert await core.rows("select n from checked order by n") == [{"n": 1}, {"n": 3}, {"n": 9}]
    ((_, left),) = await core.parked()
    assert left == f"{OLD}-2"


@pytest.mark.parametrize("failures", [1, FAILURES_IN_A_ROW])
async def test_a_frame_with_failing_events_that_the_commit_finds_at_fault_too_is_parked(
    core: Core, stream: Stream, failures: int
) -> None:
    def prepare(work: UnitOfWork) -> None:
        work.execute("create table known (n bigint primary key)")
        work.execute("create table checked (n bigint references known (n) deferrable initially deferred)")

    def check(tx: UnitOfWork, event: Rung) -> None:
        if event.n == FAILING:
            raise ZeroDivisionError
        tx.execute("insert into checked (n) values (:n)", n=event.n)

    checking = Handlers()
    checking.add(Rung, check, batch=False)
    await core.store.write(prepare)
    bad = range(3, 3 + failures)

    events = [event(stream, at, FAILING if at in bad else at) for at in range(1, 20)]
    assert await Committed(core, checking).take([stream.frame(events)]) == 1

    assert await core.parked() == [("handler", f"{OLD}-{at}") for at in range(1, 20)]
    assert await watermark(core) == 19


async def test_what_was_discarded_of_a_frame_stays_out_when_the_frame_comes_again(core: Core, stream: Stream) -> None:
    frame = broken(stream.frame(several(stream, 1, 3, key="k")), 0, data={"n": "one"})
    await core.take([frame])
    (row,) = await core.rows("select min(id) as id from forebay_parked")
    await core.store.write(discard, row["id"], "of no use")

    taken = await core.take([frame])

    assert (taken.duplicates, taken.parked) == (3, 0)


async def test_a_frame_of_an_epoch_under_a_second_lane_is_parked_and_changes_nothing_i1(
    core: Core, stream: Stream
) -> None:
    await core.take([event(stream, 1)])
    taken = await core.take([stream.frame(several(stream, 2, 3, lane="telemetry"))])

    assert (taken.applied, taken.parked) == (0, 2)
    assert await core.parked() == [("foreign-lane", f"{OLD}-2"), ("foreign-lane", f"{OLD}-3")]
    assert (await effects(core), await watermark(core)) == ([1], 1)


async def test_the_position_is_the_frames_message(core: Core, stream: Stream) -> None:
    frame = stream.frame(several(stream, 1, 3), suffix="~ab")
    await core.store.write(take_all, handlers(), "EVENTS", "2017", [frame], False)

    assert await core.rows("select sequence, message_id from forebay_position") == [
        {"sequence": frame.stream_sequence, "message_id": f"{OLD}-1-3~ab"}
    ]
