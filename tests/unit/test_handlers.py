from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from forebay.envelope import Message
from forebay.errors import BodyError, ConfigurationError, HeaderError, UnknownVersionError
from forebay.event import Event
from forebay.handlers import Handlers


class SoldV1(Event, service="till", kind="sold"):
    cents: int


class SoldV2(Event, service="till", kind="sold", version=2):
    cents: int
    currency: str


class Seen(Event, service="gateway", kind="seen"):
    door: int


def message(
    event_type: str = "till.sold.v1", body: bytes = b'{"cents":5}', service: str = "till", kind: str = "sold"
) -> Message:
    return Message(
        message_id="x", node="n", service=service, kind=kind, id="x", source="/n/till", type=event_type,
        time=datetime(2026, 3, 1, tzinfo=UTC), body=body,
    )  # fmt: skip


def single(tx: Any, event: Any) -> None: ...


def with_message(tx: Any, event: Any, message: Any) -> None: ...


def everything(tx: Any, messages: Any) -> None: ...


def nothing() -> None: ...


def one(tx: Any) -> None: ...


def four(tx: Any, event: Any, message: Any, more: Any) -> None: ...


def test_a_handler_gets_the_event_decoded() -> None:
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    found = handlers.find(message())
    assert found is not None
    registration, event = found
    assert event == SoldV1(cents=5)
    assert (registration.function, registration.batch, registration.wants_message) == (single, False, False)


def test_each_version_has_a_handler_of_its_own() -> None:
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    handlers.add(SoldV2, with_message, batch=False)
    found = handlers.find(message("till.sold.v2", b'{"cents":5,"currency":"EUR"}'))
    assert found is not None
    assert found[1] == SoldV2(cents=5, currency="EUR")
    assert found[0].wants_message


def test_an_event_without_a_handler_is_passed_over_s2() -> None:
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    assert handlers.find(message("till.counted.v1", kind="counted")) is None
    assert handlers.find(message("price.sold.v1", service="price")) is None


def test_an_unknown_version_of_a_handled_type_is_told_s2() -> None:
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    with pytest.raises(UnknownVersionError, match=r"till\.sold\.v9 .* \(v1\)"):
        handlers.find(message("till.sold.v9"))


@pytest.mark.parametrize("event_type", ["till.counted.v1", "price.sold.v1", "Sold", "till.sold.v1x"])
def test_a_type_that_is_not_its_subjects_is_told(event_type: str) -> None:
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    with pytest.raises(HeaderError, match="as its subject"):
        handlers.find(message(event_type))


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"cents":"5"}', b"{}", b"\xff"])
def test_a_body_that_is_not_the_events_is_told(body: bytes) -> None:
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    with pytest.raises(BodyError, match=r"not a till\.sold\.v1"):
        handlers.find(message(body=body))


def test_the_gateways_clients_have_types_of_their_own() -> None:
    handlers = Handlers()
    handlers.add(Seen, single, batch=False)
    found = handlers.find(message("com.acme.Seen", b'{"door":7}', service="gateway", kind="seen"))
    assert found is not None
    assert found[1] == Seen(door=7)


def test_a_handler_of_everything_gets_messages_alone_and_undecoded() -> None:
    handlers = Handlers()
    assert not handlers
    handlers.add_everything(everything)
    found = handlers.find(message(body=b"not json"))
    assert found is not None
    assert (found[0].batch, found[1]) == (True, None)
    assert (handlers.services, bool(handlers)) == (["*"], True)


def test_a_consumer_reads_the_services_that_it_handles() -> None:
    handlers = Handlers()
    handlers.add(SoldV2, single, batch=False)
    handlers.add(Seen, single, batch=False)
    assert handlers.services == ["gateway", "till"]


def test_a_version_has_one_handler() -> None:
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    with pytest.raises(ConfigurationError, match=r"till\.sold\.v1 has a handler already: single"):
        handlers.add(SoldV1, with_message, batch=False)


@pytest.mark.parametrize(
    ("function", "batch"),
    [(nothing, False), (one, False), (four, False), (single, True)],
)
def test_a_handler_with_other_parameters_is_refused(function: Any, batch: bool) -> None:
    with pytest.raises(ConfigurationError, match="parameters"):
        Handlers().add(SoldV1, function, batch=batch)


def test_a_refused_handler_leaves_nothing_behind() -> None:
    handlers = Handlers()
    with pytest.raises(ConfigurationError):
        handlers.add(SoldV1, one, batch=False)
    assert (bool(handlers), handlers.services) == (False, [])


async def coroutine(tx: Any, event: Any) -> None: ...


def test_a_coroutine_function_is_refused_because_its_effect_would_never_happen() -> None:
    with pytest.raises(ConfigurationError, match="coroutine"):
        Handlers().add(SoldV1, coroutine, batch=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="coroutine"):
        Handlers().add_everything(coroutine)  # type: ignore[arg-type]


def test_a_handler_of_everything_stands_alone_because_it_would_hide_the_others() -> None:
    handlers = Handlers()
    handlers.add_everything(everything)
    with pytest.raises(ConfigurationError, match="everything"):
        handlers.add_everything(everything)
    with pytest.raises(ConfigurationError, match="everything"):
        handlers.add(SoldV1, single, batch=False)
    handlers = Handlers()
    handlers.add(SoldV1, single, batch=False)
    with pytest.raises(ConfigurationError, match="everything"):
        handlers.add_everything(everything)
