from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from forebay import Event, upcasts
from forebay.command import Command
from forebay.envelope import Message
from forebay.errors import BodyError, ConfigurationError, UnknownVersionError
from forebay.evolution import Reader, spec_of
from forebay.handlers import Handlers


class SoldV1(Event, service="shop", kind="sold", version=1, key="basket"):
    basket: str
    euros: float


class SoldV2(Event, service="shop", kind="sold", version=2, key="basket"):
    basket: str
    cents: int


class Sold(Event, service="shop", kind="sold", version=3, key="basket"):
    basket: str
    cents: int
    currency: str


class Returned(Event, service="shop", kind="returned", version=2):
    cents: int


class Elsewhere(Event, service="shop", kind="sold", version=4, lane="telemetry"):
    cents: int


@upcasts(SoldV1)
def in_cents(old: SoldV1) -> SoldV2:
    if old.euros < 0:
        raise ValueError("a price below nothing\nsecond line")
    return SoldV2(basket=old.basket, cents=round(old.euros * 100))


@upcasts(SoldV2)
def in_euros(old: SoldV2) -> Sold:
    return Sold(basket=old.basket, cents=old.cents, currency="EUR")


def message(version: int, body: bytes) -> Message:
    return Message(
        message_id="x", node="n", service="shop", kind="sold", id="x", source="/n/shop", type=f"shop.sold.v{version}",
        time=datetime(2026, 3, 1, tzinfo=UTC), body=body,
    )  # fmt: skip


def handle(tx: Any, event: Any) -> None: ...


def handle_newer(tx: Any, event: Any) -> None: ...


def handling(*events: type[Event]) -> Handlers:
    handlers = Handlers()
    for event, function in zip(events, (handle, handle_newer), strict=False):
        handlers.add(event, function, batch=False)
    return handlers


def found(handlers: Handlers, version: int, body: bytes) -> tuple[Any, Any]:
    result = handlers.find(message(version, body))
    assert result is not None
    return result[0].function, result[1]


V1 = b'{"basket": "b", "euros": 0.5}'
V2 = b'{"basket": "b", "cents": 50}'
V3 = b'{"basket": "b", "cents": 50, "currency": "SEK"}'


def test_upcasters_chain_so_that_the_newest_version_reads_all() -> None:
    reader = Reader(Sold)
    assert reader.versions == [1, 2, 3]
    assert reader.decode(1, V1) == reader.decode(2, V2) == Sold(basket="b", cents=50, currency="EUR")
    assert reader.decode(3, V3).currency == "SEK"


def test_upcasters_lead_forward_only() -> None:
    assert Reader(SoldV2).versions == [1, 2]
    with pytest.raises(UnknownVersionError, match=r"version 3 cannot be read as shop\.sold\.v2, only v1, v2"):
        Reader(SoldV2).decode(3, V3)


def test_a_handler_of_the_newest_version_gets_the_older_ones_upcast() -> None:
    handlers = handling(Sold)
    for version, body in ((1, V1), (2, V2)):
        assert found(handlers, version, body) == (handle, Sold(basket="b", cents=50, currency="EUR"))


def test_a_version_goes_to_its_own_handler_else_to_the_nearest_newer_one() -> None:
    handlers = handling(SoldV2, Sold)
    assert found(handlers, 1, V1) == (handle, SoldV2(basket="b", cents=50))
    assert found(handlers, 2, V2) == (handle, SoldV2(basket="b", cents=50))
    assert found(handlers, 3, V3)[0] is handle_newer
    both = handling(SoldV1, Sold)
    assert found(both, 1, V1) == (handle, SoldV1(basket="b", euros=0.5))


def test_an_unknown_newer_version_of_a_handled_type_is_told_s2() -> None:
    with pytest.raises(UnknownVersionError, match=r"shop\.sold\.v4 .* \(v3\)"):
        handling(Sold).find(message(4, V3))
    with pytest.raises(UnknownVersionError, match=r"shop\.sold\.v2 .* \(v1\)"):
        handling(SoldV1).find(message(2, V2))


def test_a_body_is_what_its_own_version_says() -> None:
    with pytest.raises(BodyError, match=r"not a shop\.sold\.v1: Object missing required field `euros`"):
        Reader(Sold).decode(1, V2)


def test_an_upcaster_that_fails_on_an_event_is_told_in_one_line_with_its_name() -> None:
    with pytest.raises(BodyError, match=r"^upcaster in_cents failed on a shop\.sold\.v1: ValueError: a price .*g$"):
        Reader(Sold).decode(1, b'{"basket": "b", "euros": -1}')


class CountedV1(Event, service="shop", kind="counted", version=1):
    number: int


class CountedV2(Event, service="shop", kind="counted", version=2):
    number: int


def test_an_upcaster_that_returns_something_else_is_told() -> None:
    @upcasts(CountedV1)
    def forgetful(old: CountedV1) -> CountedV2:
        return old  # type: ignore[return-value]

    with pytest.raises(BodyError, match="forgetful returned CountedV1, not CountedV2"):
        Reader(CountedV2).decode(1, b'{"number": 1}')


def test_an_upcaster_says_what_it_returns() -> None:
    def silent(old):  # type: ignore[no-untyped-def]
        return old

    with pytest.raises(ConfigurationError, match="silent returns None, which is no event"):
        upcasts(Sold)(silent)


def test_an_upcaster_stands_below_both_versions() -> None:
    def early(old: Sold) -> DeclaredLater:  # type: ignore[name-defined]  # noqa: F821
        return old

    with pytest.raises(ConfigurationError, match="declare it below both versions"):
        upcasts(Sold)(early)


def to_v1(old: Any) -> SoldV1: ...  # type: ignore[empty-body]


def to_another_kind(old: Any) -> Returned: ...  # type: ignore[empty-body]


def to_another_lane(old: Any) -> Elsewhere: ...  # type: ignore[empty-body]


def to_the_newest(old: Any) -> Sold: ...  # type: ignore[empty-body]


def to_text(old: Any) -> str: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("old", "function", "said"),
    [
        (Sold, to_v1, "leads from shop.sold.v3 to shop.sold.v1"),
        (Sold, to_the_newest, "leads from shop.sold.v3 to shop.sold.v3"),
        (SoldV1, to_another_kind, "leads from shop.sold.v1 to shop.returned.v2"),
        (Sold, to_another_lane, "in lane 'ledger', shop.sold.v4 in 'telemetry'"),
        (SoldV1, to_the_newest, "shop.sold.v1 has an upcaster already: in_cents"),
        (str, to_the_newest, "takes str, which is no event"),
        (Event, to_the_newest, "takes Event, which is no event"),
        (Sold, to_text, "returns str, which is no event"),
    ],
)
def test_an_upcaster_that_leads_nowhere_is_refused(old: Any, function: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        upcasts(old)(function)
    assert said in str(caught.value)
    assert Reader(Sold).versions == [1, 2, 3]


def test_two_classes_of_one_version_do_not_lead_to_the_same_event() -> None:
    class Again(Event, service="shop", kind="sold", version=1):
        basket: str

    with pytest.raises(ConfigurationError, match=r"another class is shop\.sold\.v1 too, and leads to shop\.sold\.v3"):
        upcasts(Again)(to_the_newest)
    assert Reader(Sold).decode(1, V1).cents == 50


def test_an_upcaster_declared_after_the_handler_counts() -> None:
    handlers = handling(Late)
    upcasts(LateV1)(later)
    assert handlers.find(
        Message(
            message_id="x", node="n", service="shop", kind="late", id="x", source="/n/shop", type="shop.late.v1",
            time=datetime(2026, 3, 1, tzinfo=UTC), body=b"{}",
        )
    ) is not None  # fmt: skip


class LateV1(Event, service="shop", kind="late", version=1): ...


class Late(Event, service="shop", kind="late", version=2):
    """An event whose upcaster is declared by its test."""


def later(_: LateV1) -> Late:
    return Late()


class CloseV1(Command, service="door", kind="close", version=1):
    seconds: int


class Close(Command, service="door", kind="close", version=2):
    after: float


@upcasts(CloseV1)
def with_fractions(old: CloseV1) -> Close:
    return Close(after=float(old.seconds))


def test_commands_evolve_like_events() -> None:
    handlers = Handlers()
    handlers.add_command("door", Close, handle)
    found = handlers.find(
        Message(
            message_id="x", node="core", service="desk", kind="close", id="x", source="/core/desk",
            type="door.close.v1", time=datetime(2026, 3, 1, tzinfo=UTC), body=b'{"seconds": 3}',
            destination="store-330/door",
        )
    )  # fmt: skip
    assert found is not None
    assert found[1] == Close(after=3.0)


def test_what_is_no_event_says_nothing_of_itself() -> None:
    assert spec_of(Sold).version == 3
    with pytest.raises(ConfigurationError):
        spec_of(Sold(basket="b", cents=1, currency="EUR"))
