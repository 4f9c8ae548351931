"""What windows do with single readings: sessions that join, side output, skewed clocks, silent nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, Protocol

import msgspec
import pytest

from forebay import Event, Lane, Service, UnitOfWork
from forebay.errors import ConfigurationError
from forebay.protocol.windows import Kind, Session, Sliding, Span, Tumbling
from forebay.window import Result
from tests.property.window_rig import BASE, Numbers, Read, Reading, Rig

YEARS = 10 * 365 * 24 * 3600


class MakeRig(Protocol):
    def __call__(self, kind: Kind, **options: Any) -> Rig: ...


@pytest.fixture
def rig() -> Iterator[MakeRig]:
    with ExitStack() as stack:

        def make(kind: Kind, **options: Any) -> Rig:
            made = Rig(kind, **{"lateness": 0, **options})
            stack.enter_context(closing(made.connection))
            return made

        yield make


def read(second: int, number: int = 0, *, node: str = "store-1", probe: str = "a") -> Reading:
    return Reading(node, probe, second, number)


def standing(rig: Rig) -> dict[tuple[int, int], list[int]]:
    """The results, by the seconds after noon of their windows."""
    return {
        ((at.opens - BASE) // 1000, (at.closes - BASE) // 1000): numbers
        for (_, _, at), numbers in rig.results().items()
    }


def test_a_window_closes_when_the_watermark_reaches_its_end(rig: MakeRig) -> None:
    windows = rig(Tumbling(10))
    windows.read(read(3, 1), read(9, 2))
    assert standing(windows) == {}
    windows.read(read(10, 3))
    assert standing(windows) == {(0, 10): [1, 2]}


def test_an_event_of_any_key_moves_the_watermark_and_so_does_one_without_a_window(rig: MakeRig) -> None:
    windows = rig(Tumbling(10))
    windows.read(read(3, 1), read(12, 2, probe="b"))
    assert standing(windows) == {(0, 10): [1]}


def test_a_late_event_tells_the_result_again_with_the_next_revision(rig: MakeRig) -> None:
    windows = rig(Tumbling(10), lateness=10)
    windows.read(read(3, 1), read(10, 2))
    windows.read(read(4, 3))
    windows.read(read(5, 4), read(6, 5))
    assert windows.rows("select numbers, revision from result") == [("[1,3,4,5]", 2)]


def test_late_events_of_one_transaction_are_told_together(rig: MakeRig) -> None:
    windows = rig(Tumbling(10), lateness=10)
    windows.read(read(3, 1), read(10, 2), read(4, 3), read(5, 4))
    assert windows.rows("select numbers, revision from result") == [("[1,3,4]", 1)]


def test_what_is_later_than_the_lateness_goes_to_the_side_output_and_makes_no_window(rig: MakeRig) -> None:
    windows = rig(Tumbling(10), lateness=10)
    windows.read(read(3, 1), read(20, 2), read(9, 3))
    assert standing(windows) == {(0, 10): [1]}
    assert list(windows.late().values()) == [[3]]
    assert windows.rows("select opens from forebay_window") == [(BASE + 20_000,)]


def test_a_sliding_window_that_is_final_misses_what_the_others_still_take(rig: MakeRig) -> None:
    windows = rig(Sliding(20, every=10), lateness=0)
    windows.read(read(5, 1), read(10, 2), read(20, 3), read(15, 4))
    assert standing(windows) == {(-10, 10): [1], (0, 20): [1, 2]}
    assert [(at.opens - BASE) // 1000 for _, _, at in windows.late()] == [0]
    windows.read(read(30, 5))
    assert standing(windows)[10, 30] == [2, 3, 4]


def test_a_late_event_joins_two_sessions_that_were_told_and_its_result_replaces_both(rig: MakeRig) -> None:
    windows = rig(Session(10), lateness=60)
    windows.read(read(0, 1), read(15, 2), read(40, 3))
    assert standing(windows) == {(0, 10): [1], (15, 25): [2]}
    windows.read(read(8, 4))
    assert standing(windows) == {(0, 25): [1, 2, 4]}
    assert windows.rows("select revision from result") == [(1,)]


def test_a_late_event_reopens_a_session_that_is_told_again_when_it_closes(rig: MakeRig) -> None:
    windows = rig(Session(10), lateness=60)
    windows.read(read(0, 1), read(11, 9, probe="b"))
    windows.read(read(9, 2))
    assert standing(windows) == {(0, 10): [1]}
    windows.read(read(19, 9, probe="c"))
    assert standing(windows)[0, 19] == [1, 2]
    assert windows.rows("select revision from result where closes = (select min(closes) from result)") == [(1,)]


def test_what_might_have_joined_a_session_that_is_final_is_too_late(rig: MakeRig) -> None:
    """Its own session would close after the watermark; but with all known, it would be one with the final one."""
    windows = rig(Session(10), lateness=0)
    windows.read(read(0, 1), read(12, 9, probe="b"), read(8, 2))
    assert standing(windows) == {(0, 10): [1]}
    assert list(windows.late().values()) == [[2]]


def test_the_next_node_holds_back_windows_of_all_nodes_until_it_is_silent_too_long(rig: MakeRig) -> None:
    windows = rig(Tumbling(10), nodes="together", idle=300)
    windows.read(read(3, 1), read(5, 2, node="store-2"), read(30, 3))
    assert standing(windows) == {}
    ((owner, instance, due_at),) = windows.rows("select owner, instance, due_at from forebay_timer")
    assert (owner, instance, due_at) == ("window", "numbers", windows.now + 300_000)
    windows.now += 100_000
    windows.read(read(31, 4))
    windows.pass_silent(due_at)
    assert standing(windows) == {(0, 10): [1, 2]}


def test_a_node_ten_years_ahead_ends_no_window_and_its_events_are_told_i8(rig: MakeRig) -> None:
    windows = rig(Tumbling(10), nodes="together")
    windows.read(read(3, 1), read(YEARS, 2, node="store-2"), read(4, 3))
    assert standing(windows) == {}
    assert windows.rows("select number from ahead") == [(2,)]
    windows.read(read(11, 4))
    assert standing(windows) == {(0, 10): [1, 3]}


@pytest.mark.parametrize(("off", "time"), [(-YEARS, "event"), (YEARS, "event"), (-7200, "event")])
def test_the_time_of_a_skewed_node_is_corrected_by_the_offset_that_it_measured(
    rig: MakeRig, off: int, time: str
) -> None:
    windows = rig(Tumbling(10), nodes="together", time=time)
    windows.connection.execute("insert into forebay_clock_offset values ('store-2', ?, 0)", (-off * 1000,))
    windows.read(read(3, 1), read(4 + off, 2, node="store-2"), read(10, 3), read(10 + off, 4, node="store-2"))
    assert standing(windows) == {(0, 10): [1, 2]}


def test_a_small_offset_and_a_clock_outside_are_not_corrected(rig: MakeRig) -> None:
    for ahead, time in ((4999, "event"), (10**9, "outside")):
        windows = rig(Tumbling(10), time=time)
        windows.connection.execute("insert into forebay_clock_offset values ('store-1', ?, 0)", (ahead,))
        windows.read(read(9, 1), read(10, 2))
        assert standing(windows) == {(0, 10): [1]}


def test_windows_by_the_hybrid_logical_clock_take_the_time_of_writing(rig: MakeRig) -> None:
    windows = rig(Tumbling(10), time="hlc")
    windows.read(read(3, 1))
    ((opens,),) = windows.rows("select opens from forebay_window")
    assert opens == 1_483_272_000_000, "as the test's events are stamped"


class Counted(Event, service="core-probe", kind="counted", key="probe"):
    probe: str
    count: int


def test_a_store_that_closes_the_same_window_again_emits_under_the_same_cause_b5(rig: MakeRig) -> None:
    causes = []
    for batches in ([[0, 1, 2], [3]], [[0], [1], [2, 3]]):
        service = Service("core-probe", lanes=[Lane("ledger")])

        @service.window(Read, Tumbling(10), state=Numbers, lateness=10)
        def numbers(state: Numbers, read: Read) -> Numbers:
            return Numbers([*state.numbers, read.number])

        @numbers.closed
        def tell(tx: UnitOfWork, result: Result[Numbers]) -> None:
            tx.emit(Counted(probe=result.key, count=result.events))

        windows = rig(Tumbling(10))
        windows.service = service
        service.windows.wall = lambda: BASE + 3_600_000
        readings = [read(3, 1), read(4, 2), read(10, 3), read(5, 4)]
        for batch in batches:
            windows.read(*[readings[index] for index in batch])
        causes.append(windows.rows("select cause, body from forebay_outbox order by sequence"))
    assert causes[0] == causes[1]
    assert len({cause for cause, _ in causes[0]}) == 2
    assert all(cause.endswith(f"/{BASE + 10_000}/0") for cause, _ in causes[0])


def test_windows_of_one_event_share_it_and_names_are_taken_once() -> None:
    service = Service("core-probe")

    @service.window(Read, Tumbling(10), state=Numbers)
    def short(state: Numbers, _: Read) -> Numbers:
        return state

    service.window(Read, Tumbling(60), state=Numbers)(_named("long_one", short.add))
    assert service.windows.names == ["short", "long-one"]
    assert service.handlers.services == ["probe"]
    with pytest.raises(ConfigurationError, match="already"):
        service.window(Read, Tumbling(10), state=Numbers)(_named("short", short.add))


def _named(name: str, function: Any) -> Any:
    def add(state: Numbers, event: Read) -> Numbers:
        return function(state, event)  # type: ignore[no-any-return]

    add.__name__ = name
    return add


def test_a_window_that_lacks_something_is_refused_when_its_service_opens() -> None:
    service = Service("core-probe")

    @service.window(Read, Session(10), state=Numbers)
    def numbers(state: Numbers, _: Read) -> Numbers:
        return state

    with pytest.raises(ConfigurationError, match=r"@numbers\.closed"):
        service.windows.check({})
    numbers.closed(lambda _, __: None)
    with pytest.raises(ConfigurationError, match=r"@numbers\.merge"):
        service.windows.check({})


class NotEmpty(msgspec.Struct):
    number: int


@pytest.mark.parametrize(
    "wrong",
    [
        lambda _: Tumbling(0),
        lambda _: Tumbling("soon"),
        lambda _: Sliding(10, every=20),
        lambda _: Sliding("24h", every=1),
        lambda _: Session(-1),
        lambda service: service.window(Read, Tumbling(10), state=Numbers, lateness=-1)(lambda state, _: state),
        lambda service: service.window(Read, Tumbling(10), state=NotEmpty)(_named("sum", None)),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_declared(wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        wrong(Service("core-probe"))


@pytest.mark.parametrize(
    ("kind", "at", "spans"),
    [
        (Tumbling(10), -1, [Span(-10_000, 0)]),
        (Tumbling(10), 10_000, [Span(10_000, 20_000)]),
        (Sliding(20, every=10), 10_000, [Span(0, 20_000), Span(10_000, 30_000)]),
        (Sliding(25, every=10), 24_999, [Span(0, 25_000), Span(10_000, 35_000), Span(20_000, 45_000)]),
        (Session("1s"), 7, [Span(7, 1007)]),
    ],
)
def test_an_event_belongs_to_these_windows(kind: Kind, at: int, spans: list[Span]) -> None:
    assert kind.spans(at) == spans
    assert all(span.opens <= at < span.closes for span in spans)
