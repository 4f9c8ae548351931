"""Many events that one delivery brings and that all fail: what is parked untried, and what is not (rules F1, F2)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from forebay import UnitOfWork
from forebay.handlers import Handlers
from forebay.taken import FAILURES_IN_A_ROW
from tests.integration.arrivals import OLD, Core, Stream
from tests.integration.test_intake import FAILING, Rung, effects, event, opened_at, watermark
from tests.integration.test_intake_frames import Committed, wake

MANY = 5 * FAILURES_IN_A_ROW


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with opened_at(tmp_path) as core:
        yield core


@pytest.fixture
def stream() -> Stream:
    return Stream()


def counted(tries: list[int]) -> Handlers:
    def tried(_: UnitOfWork, event: Rung) -> None:
        tries.append(event.n)
        if event.n == FAILING:
            raise ZeroDivisionError

    known = Handlers()
    known.add(Rung, tried, batch=False)
    return known


async def checked_at_commit(core: Core, *known: int) -> Handlers:
    """Return handlers of which only a COMMIT says that an event is at fault: each but those of these numbers is."""

    def prepare(work: UnitOfWork) -> None:
        work.execute("create table known (n bigint primary key)")
        work.execute("create table checked (n bigint references known (n) deferrable initially deferred)")
        for n in known:
            work.execute("insert into known (n) values (:n)", n=n)

    def check(tx: UnitOfWork, event: Rung) -> None:
        tx.execute("insert into checked (n) values (:n)", n=event.n)

    await core.store.write(prepare)
    checking = Handlers()
    checking.add(Rung, check, batch=False)
    return checking


@pytest.mark.parametrize("keys", [None, 2], ids=["without keys", "two events of each key"])
@pytest.mark.parametrize("framed", [False, True], ids=["held", "a frame"])
async def test_of_many_events_that_fail_only_the_first_ten_are_tried_whatever_waits_between_them_f2(
    core: Core, stream: Stream, framed: bool, keys: int | None
) -> None:
    """Each try undoes and repeats all that came with it: ten thousand held events took most of an hour."""
    tries: list[int] = []
    reader = Committed(core, counted(tries))
    bad = [
        event(stream, at, FAILING, **({} if keys is None else {"key": f"k{at // keys}"})) for at in range(2, MANY + 2)
    ]

    if framed:
        await reader.take([event(stream, 1)])
        await reader.take([stream.frame(bad)])
    else:
        await reader.take(bad)
        await reader.take([event(stream, 1)])

    assert tries.count(FAILING) == FAILURES_IN_A_ROW
    assert reader.committing.suspended is not None
    assert [message_id for _, message_id in await core.parked()] == [f"{OLD}-{at}" for at in range(2, MANY + 2)]
    assert await watermark(core) == MANY + 1


async def test_a_frame_that_overlaps_what_is_known_is_not_tried_as_a_whole_for_each_failure_f2(
    core: Core, stream: Stream
) -> None:
    tries: list[int] = []
    reader = Committed(core, counted(tries))

    await reader.take([event(stream, 1)])
    await reader.take([stream.frame([event(stream, 1), *(event(stream, at, FAILING) for at in range(2, MANY + 2))])])

    assert tries.count(FAILING) == FAILURES_IN_A_ROW
    assert len(await core.parked()) == MANY
    assert await watermark(core) == MANY + 1
    assert reader.committing.suspended is not None


async def test_a_frame_that_overlaps_and_that_the_commit_finds_at_fault_is_parked_f1(
    core: Core, stream: Stream
) -> None:
    """The reader stood still for ever."""
    reader = Committed(core, await checked_at_commit(core, 1, 3))

    await reader.take([event(stream, 1)])
    assert await reader.take([stream.frame([event(stream, at) for at in (1, 2, 3)])]) == 1

    assert await core.parked() == [("handler", f"{OLD}-2"), ("handler", f"{OLD}-3")]
    assert await watermark(core) == 3


async def test_the_event_behind_which_all_fail_has_its_effect_f1(core: Core, stream: Stream) -> None:
    """It was parked with them, under the error of another."""
    reader = Committed(core)
    await reader.take([event(stream, at, FAILING) for at in range(2, MANY)])
    await reader.take([event(stream, 1)])

    assert await effects(core) == [1]


async def test_where_some_succeed_between_them_each_event_is_tried(core: Core, stream: Stream) -> None:
    reader = Committed(core)
    fine = range(FAILURES_IN_A_ROW, MANY, FAILURES_IN_A_ROW)
    held = [event(stream, at, at + 100 if at in fine else FAILING) for at in range(2, MANY)]
    await reader.take(held)
    await reader.take([event(stream, 1)])

    assert await effects(core) == [1, *(at + 100 for at in fine)]


async def test_a_held_event_that_the_commit_finds_at_fault_is_parked_f1(core: Core, stream: Stream) -> None:
    """Which of those that went on together it is a COMMIT does not say: the reader stood still for ever."""
    reader = Committed(core, await checked_at_commit(core, 1, 2, 4))

    await reader.take([event(stream, at) for at in (2, 3, 4)])
    assert await reader.take([event(stream, 1)]) == 1

    assert await watermark(core) == 4
    await core.store.write(wake, "1 = 1")
    await reader.committing.retries.begin()
    await reader.committing.retry_due()
    assert await core.parked() == [("handler", f"{OLD}-3")]
    assert sorted(row["n"] for row in await core.rows("select n from checked")) == [1, 2, 4]


@pytest.mark.parametrize("first", [False, True])
async def test_an_event_that_fails_has_no_event_of_another_node_parked_that_has_its_id_b1(
    core: Core, stream: Stream, first: bool
) -> None:
    """Epochs are public: a hostile node can use another's."""
    reader = Committed(core)
    fine = [event(stream, at, node="store-1") for at in (1, 2)]
    hostile = [event(stream, 1, 3, node="store-9"), event(stream, 2, FAILING, node="store-9")]

    assert await reader.take([*hostile, *fine] if first else [*fine, *hostile]) == 4

    assert await effects(core) == ([3, 1, 2] if first else [1, 2, 3])
    assert await core.rows("select node, sequence from forebay_parked") == [{"node": "store-9", "sequence": 2}]
