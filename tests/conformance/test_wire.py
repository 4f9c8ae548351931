"""Golden examples of what stands on the wire: a fleet of several releases, and other languages, read the same bytes."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forebay.clock import HybridClock
from forebay.drafts import Draft, Extra
from forebay.envelope import Message, decode_message, encode_headers, identify
from forebay.event import Event
from forebay.frame import decode_frame, identify_frame
from forebay.identity import Place, partition_of
from forebay.jetstream.topology import confirmed_by
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.protocol.confirmation import (
    Answer,
    ChainLink,
    ConfirmedBy,
    DroppedRange,
    EpochAnswer,
    OriginQuestion,
    Question,
    WithheldPlace,
)
from forebay.sqlite import MigrationSet, SqliteStore
from forebay.subjects import command_subject, event_subject
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.framed import encode_frame
from tests.outboxes import messages_after

WIRE = Path(__file__).parent / "wire"
EPOCHS = ["019cab1e4c007000800000000000000a", "019cab1e4c007000800000000000000b"]
TIME = datetime(2026, 3, 1, 11, 53, 26, 500_000, tzinfo=UTC)
WALL = 0x0199C82CC000


class SaleRecorded(Event, service="till", kind="sale-recorded", version=1, key="basket"):
    basket: str
    cents: int


def golden(name: str) -> Any:
    return json.loads((WIRE / f"{name}.json").read_text(encoding="utf-8"))


MESSAGE = Message(
    message_id=f"{EPOCHS[1]}-2",
    node="store-330",
    service="till",
    kind="sale-recorded",
    id=f"{EPOCHS[1]}-2",
    source="/store-330/till",
    type="till.sale-recorded.v1",
    time=TIME,
    key="Kasse 3 € 100%",
    lane="ledger",
    place=Place(EPOCHS[1], 2),
    prev=Place(EPOCHS[0], 1),
    hlc=WALL << 16 | 1,
    cause="019cab1e4c007000800000000000000c-7/till/0",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    tracestate="vendor=x",
    body='{"basket":"Kasse 3 € 100%","cents":1299}'.encode(),
)

MORE: list[dict[str, Any]] = [
    {"key": "Fridge 7 €", "hlc": WALL << 16, "body": '{"fridge":"Fridge 7 €","milli_degrees":4100}'.encode()},
    {
        "hlc": WALL << 16 | 1,
        "cause": MESSAGE.cause,
        "traceparent": MESSAGE.traceparent,
        "tracestate": MESSAGE.tracestate,
        "attributes": {"expirytime": "2026-03-01T12:53:26Z"},
        "body": b'{"fridge":"8","milli_degrees":-18250}',
    },
    {"key": "9", "hlc": WALL << 16 | 2, "content_type": "application/cbor", "body": bytes([0xA1, 0x01, 0x02])},
]

FRAMED = [
    Message(
        message_id=f"{EPOCHS[1]}-{sequence}",
        node="store-330",
        service="coldchain",
        kind="fridge-read",
        id=f"{EPOCHS[1]}-{sequence}",
        source="/store-330/coldchain",
        type="coldchain.fridge-read.v1",
        time=TIME,
        lane="telemetry",
        place=Place(EPOCHS[1], sequence),
        prev=Place(EPOCHS[0], 41),
        **more,
    )
    for sequence, more in enumerate(MORE, 7)
]

ASKED = Question(
    1,
    [
        OriginQuestion(
            service="till",
            lane="ledger",
            chain=[ChainLink(EPOCHS[0], "none"), ChainLink(EPOCHS[1], f"{EPOCHS[0]}-41")],
            floor=f"{EPOCHS[0]}-12",
            forwarded=f"{EPOCHS[1]}-7",
            stream_sequence=90210,
            drops=[DroppedRange(EPOCHS[0], 13, 20), DroppedRange(EPOCHS[1], 3, 3)],
            withheld=[WithheldPlace(EPOCHS[1], 5, "Kasse 3"), WithheldPlace(EPOCHS[1], 6)],
        ),
        OriginQuestion(service="till", lane="telemetry", chain=[ChainLink("019cab1e4c007000800000000000000d", "none")]),
    ],
    clock_offset=-0.25,
)

LISTED = ConfirmedBy(3, {"archive": ["*"], "sales": ["till"]})

ANSWERED = Answer(
    v=1,
    consumer="sales",
    store="019cab1e4c0070008000000000000001",
    clock="2026-03-01T11:53:27.000000Z",
    incarnation="2026-01-01T00:00:00.123456789Z",
    stream_end=90213,
    position=90211,
    epochs={
        EPOCHS[0]: EpochAnswer(41),
        EPOCHS[1]: EpochAnswer(5, held=[(7, 9), (11, 11)], missing=[(2, 2)], wanted=[(4, 4)]),
    },
    confirmed_by=LISTED,
)


COMMAND = Message(
    message_id=f"{EPOCHS[1]}-2",
    node="core",
    service="orders",
    kind="reserve-stock",
    id=f"{EPOCHS[1]}-2",
    source="/core/orders",
    type="stock.reserve-stock.v1",
    time=TIME,
    key="31",
    attributes={"expirytime": "2026-03-01T12:53:26Z"},
    lane="ledger",
    place=Place(EPOCHS[1], 2),
    prev=Place(EPOCHS[0], 1),
    hlc=WALL << 16 | 1,
    cause="019cab1e4c007000800000000000000c-7/orders/0",
    body=b'{"order":"31","pieces":2}',
    destination="store-330/stock",
)

COMMANDS_ASKED = Question(
    1,
    [
        OriginQuestion(
            service="orders",
            lane="ledger",
            chain=[ChainLink(EPOCHS[0], "none")],
            floor=f"{EPOCHS[0]}-12",
            forwarded=f"{EPOCHS[0]}-17",
            stream_sequence=4711,
        )
    ],
    incarnation="2026-01-01T00:00:00.123456789Z",
    stream_end=4712,
)

COMMANDS_ANSWERED = Answer(
    v=1,
    consumer="stock",
    store="019cab1e4c0070008000000000000002",
    clock="2026-03-01T11:53:27.000000Z",
    incarnation="2026-01-01T00:00:00.123456789Z",
    stream_end=4712,
    position=4712,
    epochs={EPOCHS[0]: EpochAnswer(17)},
)


def test_a_command_is_written_and_read_as_in_the_golden_example_b1() -> None:
    example = golden("command")
    assert encode_headers(COMMAND) == example["headers"]
    assert command_subject(COMMAND.destination, COMMAND.kind) == example["subject"]
    identity = identify(example["subject"], example["headers"])
    read = decode_message(identity, example["body"].encode(), datetime(2030, 1, 1, tzinfo=UTC))
    assert msgspec.structs.replace(read, stored_at=None) == COMMAND


def test_an_event_is_written_as_in_the_golden_example() -> None:
    example = golden("event")
    assert encode_headers(MESSAGE) == example["headers"]
    assert event_subject(MESSAGE.node, MESSAGE.service, MESSAGE.kind) == example["subject"]
    assert partition_of(MESSAGE.node) == int(example["stored_subject"].split(".")[1])


def test_an_event_is_read_as_in_the_golden_example() -> None:
    example = golden("event")
    identity = identify(example["stored_subject"], example["headers"])
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert decode_message(identity, example["body"].encode(), at) == msgspec.structs.replace(MESSAGE, stored_at=at)
    assert msgspec.json.decode(example["body"], type=SaleRecorded) == SaleRecorded(basket="Kasse 3 € 100%", cents=1299)


def test_a_frame_is_written_as_in_the_golden_example_i4() -> None:
    example = golden("frame")
    headers, body = encode_frame(FRAMED)
    assert headers == example["headers"]
    assert body.decode() == example["body"]
    assert event_subject(FRAMED[0].node, FRAMED[0].service, FRAMED[0].kind) == example["subject"]
    assert encode_frame(FRAMED, packed=True)[0] == golden("frame-packed")["headers"]


@pytest.mark.parametrize("name", ["frame", "frame-packed"])
def test_a_frame_is_read_as_in_the_golden_example_i4(name: str) -> None:
    example = golden(name)
    body = base64.b64decode(example["body_base64"]) if "body_base64" in example else example["body"].encode()
    frame = identify_frame(example["stored_subject"], example["headers"])
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert decode_frame(frame, body, at) == [msgspec.structs.replace(each, stored_at=at) for each in FRAMED]


def test_headers_of_a_later_release_are_passed_over() -> None:
    example = golden("event")
    headers = {**example["headers"], "forebay-color": "red", "Nats-Time-Stamp": "x"}
    read = decode_message(identify(example["stored_subject"], headers), MESSAGE.body, TIME)
    assert read == msgspec.structs.replace(MESSAGE, stored_at=TIME)


async def test_a_service_that_emits_writes_the_golden_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ``tx.emit`` to the headers: the second event of a second epoch."""
    epochs = iter(EPOCHS)
    monkeypatch.setattr("forebay.drafts.new_epoch", lambda _: next(epochs))

    def unit(tx: UnitOfWork) -> None:
        tx.emit(SaleRecorded(basket="1", cents=1), time=TIME)

    def caused(tx: UnitOfWork) -> None:
        sale = SaleRecorded(basket="Kasse 3 € 100%", cents=1299)
        extra = Extra(traceparent=MESSAGE.traceparent, tracestate=MESSAGE.tracestate)
        tx.append(
            Draft(
                lane="ledger", kind=sale.spec.kind, type=sale.spec.type, body=msgspec.json.encode(sale), time=TIME,
                key=sale.basket, cause=MESSAGE.cause, extra=extra,
            )
        )  # fmt: skip

    for units in ([unit], [unit, caused]):
        outbox = Outbox("store-330", "till", [Lane("ledger")])
        store = await SqliteStore.open(
            tmp_path / "till.db", migrations=[MigrationSet("forebay", files("forebay.migrations"))]
        )
        try:
            await store.write(outbox.bind, "s1")
            outbox.clock = HybridClock(wall=lambda: WALL)
            for one in units:
                await UnitStore(store, outbox).write(one)
            written = await store.read(messages_after, outbox, "ledger", None, limit=10, max_bytes=1 << 20)
        finally:
            await store.close()
    example = golden("event")
    assert outbox.subject(written[-1]) == example["subject"]
    assert encode_headers(written[-1]) == example["headers"]
    assert written[-1].body == example["body"].encode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confirmation-question", ASKED),
        ("confirmation-answer", ANSWERED),
        ("command-question", COMMANDS_ASKED),
        ("command-answer", COMMANDS_ANSWERED),
    ],
    ids=lambda one: str(one)[:24],
)
def test_a_confirmation_is_written_and_read_as_in_the_golden_example(name: str, value: msgspec.Struct) -> None:
    body = golden(name)["body"]
    assert json.loads(msgspec.json.encode(value)) == body
    assert msgspec.json.decode(json.dumps(body), type=type(value)) == value


@pytest.mark.parametrize(("name", "kind"), [("confirmation-question", Question), ("confirmation-answer", Answer)])
def test_fields_of_a_later_release_are_ignored(name: str, kind: type[msgspec.Struct]) -> None:
    def widened(value: Any) -> Any:
        if isinstance(value, dict):
            epochs = all(len(key) == 32 for key in value)
            more = {} if epochs or "archive" in value else {"color": [1, {"x": None}]}
            return {**{key: widened(one) for key, one in value.items()}, **more}
        return [widened(one) for one in value] if isinstance(value, list) else value

    body = golden(name)["body"]
    assert widened(body) != body
    assert msgspec.json.decode(json.dumps(widened(body)), type=kind) == msgspec.json.decode(json.dumps(body), type=kind)


def test_a_question_of_a_release_that_does_not_tell_its_clock_is_read_c1() -> None:
    body = golden("confirmation-question")["body"]
    del body["clock_offset"]
    assert msgspec.json.decode(json.dumps(body), type=Question) == msgspec.structs.replace(ASKED, clock_offset=None)
    assert "clock_offset" not in json.loads(msgspec.json.encode(Question(1, [])))


def test_the_list_of_consumers_is_read_and_written_as_in_the_golden_example_s3() -> None:
    example = golden("confirmed-by")
    text = example["metadata"][confirmed_by.KEY]
    assert confirmed_by.KEY == "forebay.confirmed-by"
    listed = msgspec.json.decode(text, type=ConfirmedBy)
    assert listed == LISTED
    assert {service: listed.needing(service) for service in example["needed"]} == example["needed"]
    known = confirmed_by.parse(text)
    assert known is not None
    assert json.loads(known.encode()) == json.loads(msgspec.json.encode(LISTED)) == json.loads(text)


def test_every_golden_example_is_tested() -> None:
    names = {"event", "confirmation-question", "confirmation-answer", "confirmed-by"}
    names |= {"frame", "frame-packed", "command", "command-question", "command-answer"}
    assert {path.stem for path in WIRE.glob("*.json")} >= names
