"""The cold chain over HTTP, on a store of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from edge.coldchain import app as coldchain_app
from edge.coldchain import readings as coldchain_readings
from edge.coldchain.judging import ALARMS_KEPT
from edge.coldchain.readings import READINGS_KEPT, Reading, record_readings
from tests.services.conftest import Serve, Served

PROBLEM = "application/problem+json"
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def coldchain(serve: Serve) -> Served:
    return await serve(coldchain_app)


def reading(minute: int = 0, milli_degrees: int = 4000, fridge: str = "milk-1") -> dict[str, Any]:
    at = (NOON + timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")
    return {"fridge": fridge, "at": at, "milli_degrees": milli_degrees}


async def post(served: Served, *readings: dict[str, Any]) -> Any:
    return await served.http.post("/coldchain/readings", json={"readings": list(readings)})


async def limit(served: Served, most: int | None, hysteresis: int = 500, fridge: str = "milk-1") -> Any:
    body = {"fridge": fridge, "max_milli_degrees": most, "hysteresis_milli_degrees": hysteresis}
    answer = await served.http.post("/coldchain/limits", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def kinds(served: Served) -> list[str]:
    return [event.kind for event in await served.events("ledger")]


async def test_readings_are_answered_with_their_message_ids(coldchain: Served) -> None:
    answer = await post(coldchain, reading(0, 4100), reading(1, 4200))
    events = await coldchain.events("telemetry")
    assert answer.status_code == 201
    assert answer.json() == {"recorded": 2, "repeated": 0, "events": [event.message_id for event in events]}
    assert [(event.kind, event.key, event.time.isoformat()) for event in events] == [
        ("fridge-read", "milk-1", "2017-01-01T12:00:00+00:00"),
        ("fridge-read", "milk-1", "2017-01-01T12:01:00+00:00"),
    ]
    assert msgspec.json.decode(events[0].body) == {"fridge": "milk-1", "milli_degrees": 4100}


async def test_a_reading_counts_once_however_often_it_is_sent(coldchain: Served) -> None:
    first = await post(coldchain, reading(0), reading(1))
    again = await post(coldchain, reading(0))
    both = await post(coldchain, reading(1), reading(2), reading(2))
    assert (first.status_code, again.status_code, both.status_code) == (201, 200, 201)
    assert again.json() == {"recorded": 0, "repeated": 1, "events": first.json()["events"][:1]}
    assert (both.json()["recorded"], both.json()["repeated"]) == (1, 2)
    assert len(await coldchain.events("telemetry")) == 3


async def test_the_same_time_is_the_same_whatever_its_offset(coldchain: Served) -> None:
    await post(coldchain, reading(0))
    answer = await post(coldchain, {**reading(0), "at": "2017-01-01T13:00:00+01:00"})
    assert answer.status_code == 200


async def test_another_temperature_at_the_same_time_is_a_conflict_and_nothing_of_the_request_is_kept(
    coldchain: Served,
) -> None:
    await post(coldchain, reading(0, 4000))
    answer = await post(coldchain, reading(1), reading(0, 4001))
    assert (answer.status_code, answer.json()["field"]) == (409, "readings[1]")
    assert len(await coldchain.events("telemetry")) == 1


async def test_an_alarm_is_raised_above_the_limit_and_cleared_below_the_hysteresis(coldchain: Served) -> None:
    await limit(coldchain, 7000, 500)
    await post(coldchain, reading(0, 7000))
    assert await kinds(coldchain) == []
    await post(coldchain, reading(1, 7001))
    assert await kinds(coldchain) == ["alarm-raised"]
    await post(coldchain, reading(2, 9000), reading(3, 6800), reading(4, 7100), reading(5, 6501))
    assert await kinds(coldchain) == ["alarm-raised"]
    await post(coldchain, reading(6, 6500))
    assert await kinds(coldchain) == ["alarm-raised", "alarm-cleared"]
    assert (await coldchain.http.get("/coldchain/alarms")).json() == [
        {
            "fridge": "milk-1",
            "raised_at": "2017-01-01T12:01:00Z",
            "milli_degrees": 7001,
            "max_milli_degrees": 7000,
            "cleared_at": "2017-01-01T12:06:00Z",
        }
    ]


async def test_an_alarms_event_happened_when_the_reading_was_taken(coldchain: Served) -> None:
    await limit(coldchain, 7000)
    await post(coldchain, reading(5, 8000))
    (raised,) = await coldchain.events("ledger")
    assert (raised.key, raised.time) == ("milk-1", NOON + timedelta(minutes=5))
    assert msgspec.json.decode(raised.body) == {"fridge": "milk-1", "milli_degrees": 8000, "max_milli_degrees": 7000}


async def test_alarms_are_each_fridges_own(coldchain: Served) -> None:
    await limit(coldchain, 7000)
    await limit(coldchain, -15_000, fridge="ice-1")
    await post(coldchain, reading(0, 4000), reading(0, -10_000, "ice-1"), reading(0, 90_000, "oven"))
    assert [alarm["fridge"] for alarm in (await coldchain.http.get("/coldchain/alarms")).json()] == ["ice-1"]


async def test_a_limit_judges_the_latest_reading_at_once(coldchain: Served) -> None:
    await post(coldchain, reading(0, 8000))
    assert (await limit(coldchain, 7000))["alarm_since"] == "2017-01-01T12:00:00Z"
    assert (await limit(coldchain, 9000))["alarm_since"] is None
    assert (await limit(coldchain, 7000))["alarm_since"] == "2017-01-01T12:00:00Z"
    assert (await limit(coldchain, None))["alarm_since"] is None
    assert await kinds(coldchain) == ["alarm-raised", "alarm-cleared"] * 2


async def test_a_reading_that_comes_late_is_recorded_and_says_nothing_of_now(coldchain: Served) -> None:
    await limit(coldchain, 7000)
    await post(coldchain, reading(10, 4000))
    assert (await post(coldchain, reading(5, 9000))).status_code == 201
    state = (await coldchain.http.get("/coldchain/fridges/milk-1")).json()
    assert (state["milli_degrees"], state["alarm_since"]) == (4000, None)
    assert len(await coldchain.events("telemetry")) == 2


async def test_a_fridge_whose_clock_ran_ahead_does_not_silence_its_alarm(coldchain: Served) -> None:
    await limit(coldchain, 7000)
    await post(coldchain, {**reading(), "at": "2999-01-01T00:00:00Z"})
    await post(coldchain, reading(0, 9000))
    assert await kinds(coldchain) == ["alarm-raised"]


async def test_fridges_are_listed_with_reading_and_limit(coldchain: Served) -> None:
    await limit(coldchain, 7000, fridge="new")
    await post(coldchain, reading(0, 4000))
    assert (await coldchain.http.get("/coldchain/fridges")).json() == [
        {
            "fridge": "milk-1",
            "at": "2017-01-01T12:00:00Z",
            "milli_degrees": 4000,
            "max_milli_degrees": None,
            "hysteresis_milli_degrees": 0,
            "alarm_since": None,
        },
        {
            "fridge": "new",
            "at": None,
            "milli_degrees": None,
            "max_milli_degrees": 7000,
            "hysteresis_milli_degrees": 500,
            "alarm_since": None,
        },
    ]


async def test_an_unknown_fridge_is_not_found(coldchain: Served) -> None:
    answer = await coldchain.http.get("/coldchain/fridges/none")
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (404, PROBLEM, "fridge")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"readings": []}, "readings"),
        ({"readings": [{**reading(), "milli_degrees": 4.5}]}, "readings[0].milli_degrees"),
        ({"readings": [{**reading(), "milli_degrees": -273_151}]}, "readings[0].milli_degrees"),
        ({"readings": [{**reading(), "at": "2017-01-01T12:00:00"}]}, "readings[0].at"),
        ({"readings": [{**reading(), "at": "0001-01-01T00:00:00+01:00"}]}, "readings[0].at"),
        ({"readings": [reading(), {**reading(1), "fridge": ""}]}, "readings[1].fridge"),
        ({"readings": [{**reading(), "fridge": "a/b"}]}, "readings[0].fridge"),
        ({"readings": [{**reading(), "colour": "white"}]}, "readings[0].colour"),
        ({"readings": [reading(minute) for minute in range(1001)]}, "readings"),
    ],
)
async def test_readings_that_cannot_be_are_refused_by_name(coldchain: Served, body: dict[str, Any], field: str) -> None:
    answer = await coldchain.http.post("/coldchain/readings", json=body)
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (422, PROBLEM, field)
    assert await coldchain.events("telemetry") == []


@pytest.mark.parametrize("count", ["0", "1001", "many"])
async def test_a_number_of_alarms_that_is_none_is_refused(coldchain: Served, count: str) -> None:
    answer = await coldchain.http.get("/coldchain/alarms", params={"limit": count})
    assert (answer.status_code, answer.json()["field"]) == (422, "limit")


async def test_readings_never_push_out_an_alarm_and_go_oldest_first(coldchain: Served) -> None:
    ledger, telemetry = coldchain.service.lanes
    assert (ledger.name, ledger.when_full) == ("ledger", "block")
    assert (telemetry.name, telemetry.when_full, telemetry.drop_from) == ("telemetry", "drop-oldest", 0.8)


async def test_old_readings_and_alarms_leave_the_disk(coldchain: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldchain_readings, "READINGS_KEPT", 150)
    assert READINGS_KEPT == 10_000
    assert ALARMS_KEPT == 1000
    many = [Reading("milk-1", NOON + timedelta(minutes=minute), 4000) for minute in range(400)]
    await coldchain.units.write(record_readings, many, NOON)
    (row,) = await coldchain.units.read(
        lambda tx: tx.execute("select count(*) as kept, min(at) as oldest from reading")
    )
    assert row["kept"] == 150
    assert row["oldest"] == int((NOON + timedelta(minutes=250)).timestamp() * 1_000_000)
