from __future__ import annotations

from typing import Any

import msgspec
import pytest

from forebay.errors import ConfigurationError
from forebay.event import Event, EventMeta, key_of, parse_type


class DoorOpened(Event, service="door", kind="door-opened", version=3, lane="telemetry", key="door"):
    door: int
    seconds: float = 0.0


class DoorSeen(Event, service="door", kind="door-seen"):
    door: int | None = None


class DoorNoticed(Event, service="door", kind="door-noticed", key="door"):
    door: str | None = None


def test_an_event_type_knows_what_it_is() -> None:
    spec = DoorOpened.spec
    assert (spec.service, spec.kind, spec.version, spec.lane, spec.key) == (
        "door",
        "door-opened",
        3,
        "telemetry",
        "door",
    )
    assert spec.type == "door.door-opened.v3"
    assert (DoorSeen.spec.version, DoorSeen.spec.lane, DoorSeen.spec.key) == (1, "ledger", None)


def test_an_event_is_frozen_and_takes_keywords_only() -> None:
    event = DoorOpened(door=7)
    with pytest.raises(AttributeError):
        event.door = 8
    with pytest.raises(TypeError):
        DoorOpened(7)


def test_an_events_body_is_its_bare_json() -> None:
    assert msgspec.json.encode(DoorOpened(door=7)) == b'{"door":7,"seconds":0.0}'
    assert msgspec.json.decode(b'{"door":7,"new":1}', type=DoorOpened) == DoorOpened(door=7)


def test_the_ordering_key_is_the_fields_value_as_text() -> None:
    assert key_of(DoorOpened(door=7)) == "7"
    assert key_of(DoorSeen(door=7)) is None


def test_an_event_whose_key_field_is_empty_has_no_key() -> None:
    assert key_of(DoorNoticed()) is None
    assert key_of(DoorNoticed(door="")) == ""


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"service": "door"}, "does not say what it is"),
        ({"kind": "door-opened"}, "does not say what it is"),
        ({"service": "door", "kind": "Opened"}, "kind 'Opened' is not a name"),
        ({"service": "do.or", "kind": "opened"}, "service 'do.or' is not a name"),
        ({"service": "door", "kind": "opened", "lane": "*"}, "lane '\\*' is not a name"),
        ({"service": "door", "kind": "opened", "version": 0}, "version 0 is below 1"),
        ({"service": "door", "kind": "opened", "key": "room"}, "key 'room' is not one of its fields"),
    ],
)
def test_a_wrong_declaration_is_refused_when_the_class_is_made(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        EventMeta("Wrong", (Event,), {"__annotations__": {"door": int}}, **keywords)


def test_a_type_is_service_kind_and_version() -> None:
    assert parse_type(DoorOpened.spec.type) == ("door", "door-opened", 3)


@pytest.mark.parametrize(
    "text", ["", "door", "door.opened", "door.opened.v0", "door.opened.v01", "com.acme.opened.v1x", "a.b.c.v1"]
)
def test_a_type_of_another_form_is_not_read(text: str) -> None:
    assert parse_type(text) is None
