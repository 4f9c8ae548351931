"""The official CloudEvents SDK's events, from the gateway's door to the archive, over real processes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from tests.faults.fleet import Fleet, until

ATTRIBUTES: dict[str, Any] = {
    "specversion": "1.0",
    "source": "https://example.com/sensors/Zürich 4?unit=°C",
    "type": "com.example.Reading.Taken",
    "subject": "oven/4",
    "dataschema": "https://example.com/schema/reading",
    "datacontenttype": "application/json",
    "partitionkey": "oven 4",
    "comexampleroom": 'the "blue" room, 100 % full',
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
DATA = {"celsius": 71.5, "name": "Müller ☃", "list": [1, None, {"deep": True}]}


@pytest.mark.timeout(180)
async def test_events_of_the_sdk_arrive_in_the_archive_with_every_attribute_and_extension(tmp_path: Path) -> None:
    events = {
        name: CloudEvent({**ATTRIBUTES, "id": name, "time": datetime(2018, 4, 5, 17, 31, second, tzinfo=UTC)}, DATA)
        for second, name in enumerate(["binary", "structured", "batch-1", "batch/2 ☃"])
    }
    with Fleet(tmp_path / "data", ["store-330"]) as fleet:
        await fleet.ready()
        async with httpx.AsyncClient(timeout=10) as http:
            gateway = f"{fleet.tills['store-330']}/gateway/events"
            binary, structured = to_binary_event(events["binary"]), to_structured_event(events["structured"])
            first = await http.post(gateway, content=binary.body, headers=binary.headers)
            second = await http.post(gateway, content=structured.body, headers=structured.headers)
            # The SDK has no batch mode: a batch is the array of its structured events.
            batch = b"[" + b",".join(to_structured_event(events[name]).body for name in list(events)[2:]) + b"]"
            third = await http.post(
                gateway, content=batch, headers={"content-type": "application/cloudevents-batch+json"}
            )
            assert [answer.status_code for answer in (first, second, third)] == [201, 201, 201]
            message_ids = [*first.json()["ids"], *second.json()["ids"], *third.json()["ids"]]

            async def arrived() -> bool:
                found = (await http.get(f"{fleet.core}/archive/events?service=gateway")).json()["events"]
                return len(found) == len(events)

            await until(arrived, limit=10, what="all are in the archive")
            for message_id, (name, event) in zip(message_ids, events.items(), strict=True):
                kept = (await http.get(f"{fleet.core}/archive/events/{message_id}")).json()
                sent = {**event.get_attributes(), "time": f"{event.get_time():%Y-%m-%dT%H:%M:%SZ}"}
                assert kept["envelope"] == sent, name
                assert kept["data"] == msgspec.json.decode(msgspec.json.encode(DATA))
                assert (kept["node"], kept["service"], kept["lane"]) == ("store-330", "gateway", "ledger")
