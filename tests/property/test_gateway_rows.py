"""The gateway's quick way from JSON to rows judges and writes as the careful one does, event by event."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.gateway import app as gateway_app
from edge.gateway.app import take
from edge.gateway.arrivals import Arrivals, _Reader, read
from edge.gateway.cloudevents import read_structured
from forebay import Transaction
from forebay.drafts import COLUMNS
from forebay.problems import ProblemError
from forebay.testing.stores import opened

HEADERS = [(b"content-type", b"application/cloudevents-batch+json")]
LINES = [(b"content-type", b"application/x-ndjson")]

TEXT = st.text(max_size=8) | st.sampled_from(["", "a\x00b", "\x9f", "€", "😀", " ", "\u00a0", "x" * 100, "é" * 3000])
TIME = st.sampled_from(
    [
        "2026-03-01T12:00:00Z",
        "2026-03-01T12:00:00.5Z",
        "2026-03-01T12:00:00.123456789Z",
        "2026-03-01T12:00:00+02:00",
        "2026-03-01t12:00:00z",
        "0001-01-01T00:00:00+23:00",
        "9999-12-31T23:59:59-23:00",
        "2026-03-01T12:00:00",
        "2026-02-30T12:00:00Z",
        "2016-12-31T23:59:60Z",
        "yesterday",
        "",
    ]
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
RAW = st.sampled_from([b"1e400", b"9" * 40, b"[" * 130 + b"]" * 130, b"[" * 128 + b"]" * 128, b'{ "a" :\t1 }', b"-0.0"])
EVENT = st.fixed_dictionaries(
    {
        "specversion": st.just("1.0") | st.sampled_from(["0.3", 1.0]),
        "id": TEXT | st.integers(0, 3),
        "source": TEXT,
        "type": st.sampled_from(["t", "Com.Example", "a b", ""]) | TEXT,
    },
    optional={
        "time": TIME | st.none(),
        "partitionkey": TEXT | st.none(),
        "datacontenttype": st.sampled_from(["application/json", "application/x+json", "text/plain", None]),
        "dataschema": TEXT | st.none(),
        "subject": TEXT | st.none() | st.booleans(),
        "traceparent": TEXT | st.none(),
        "tracestate": TEXT,
        "extension": TEXT | st.integers(-5, 5) | st.just(2**31),
        "forebayx": TEXT,
        "data": JSON | RAW.map(msgspec.Raw),
        "data_base64": st.just("AAAA"),
    },
)


def lane_of(event_type: str) -> str:
    return "telemetry" if event_type == "t" else "ledger"


@settings(max_examples=600, deadline=None)
@example({"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": msgspec.Raw(b"[" * 130 + b"]" * 130)})
@given(EVENT)
def test_a_plain_event_becomes_the_row_that_careful_reading_makes_of_it(event: dict[str, Any]) -> None:
    raw = msgspec.json.encode(event)
    quick, careful = _Reader(lane_of, many=True), _Reader(lane_of, many=True)
    careful._now = quick._now
    if quick.add_plain([raw]):
        careful.add(read_structured(raw, "[0]"))
        assert quick.arrivals == careful.arrivals
    else:
        assert quick.arrivals == Arrivals(many=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENT, max_size=9))
def test_a_batch_is_judged_as_its_events_are_one_after_the_other(events: list[dict[str, Any]]) -> None:
    raws = [msgspec.json.encode(event) for event in events]
    careful = _Reader(lane_of, many=True)
    wrong = None
    for at, raw in enumerate(raws):
        try:
            careful.add(read_structured(raw, f"[{at}]"))
        except ProblemError as error:
            wrong = error.status, error.detail, error.field
            break
    for headers, body in ((HEADERS, b"[" + b",".join(raws) + b"]"), (LINES, b"\n".join(raws))):
        refused = found = None
        try:
            found = read(headers, body, lane_of)
        except ProblemError as error:
            refused = error.status, error.detail, error.field
        assert refused == wrong
        if found is not None:
            careful.arrivals.entries = [  # one without a time has that of its arrival
                (*row[:3], found.entries[at][3] if events[at].get("time") is None else row[3], *row[4:])
                for at, row in enumerate(careful.arrivals.entries)
            ]
            assert found == careful.arrivals


def test_reading_batches_keeps_nothing_of_them() -> None:
    event = {"specversion": "1.0", "source": "s", "type": "t", "time": "2026-03-01T12:00:00.5Z", "data": {"a": [1.5]}}

    def objects(first: int) -> int:
        read(HEADERS, msgspec.json.encode([{**event, "id": f"{at}"} for at in range(first, first + 500)]), lane_of)
        gc.collect()
        return len(gc.get_objects())

    before = objects(0)
    assert objects(500) - before < 400  # not one for each event


# One content for each id: whoever sends it again repeats it.
KNOWN: list[dict[str, Any]] = [
    {"specversion": "1.0", "id": name, "source": "/a", "time": "2026-03-01T12:00:00Z", "data": at, **more}
    for at, (name, more) in enumerate[tuple[str, dict[str, Any]]](
        [
            ("1", {"type": "t"}),
            ("2", {"type": "u", "subject": "s"}),
            ("é", {"type": "t", "extension": "e"}),
            ("x" * 100, {"type": "u", "partitionkey": "k"}),
            ("5", {"type": "t", "data": {"b": 1, "a": [2]}}),
            ("6", {"type": "u", "traceparent": "00"}),
        ]
    )
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(KNOWN), max_size=6), min_size=1, max_size=3))
def test_many_at_once_leave_the_rows_that_one_after_the_other_leaves(requests: list[list[dict[str, Any]]]) -> None:
    asyncio.run(_compare(requests))


async def _compare(requests: list[list[dict[str, Any]]]) -> None:
    single = [[event] for request in requests for event in request]
    rows, ids = [], []
    with TemporaryDirectory() as folder:
        for way, each in (("many", requests), ("single", single)):
            migrations = Path(str(gateway_app.__file__)).parent / "migrations"
            async with opened(gateway_app.gateway, Path(folder) / way, migrations=migrations) as store:
                answers = [await take(store, read(HEADERS, msgspec.json.encode(request), lane_of)) for request in each]
                # An epoch is another in each store; the place in it is the same.
                ids.append([name.partition("-")[2] for answer in answers for name in answer.ids])
                rows.append(await store.read(_rows))
    assert rows[0] == rows[1]
    assert ids[0] == ids[1]


def _rows(tx: Transaction) -> list[tuple[Any, ...]]:
    columns = [column for column in COLUMNS if column not in ("epoch", "hlc", "written_at")]
    rows = tx.execute(
        f"select lane, {', '.join('r.' + column for column in columns)} from forebay_outbox r"
        " join forebay_epoch e on e.id = r.epoch join forebay_origin o on o.id = e.origin order by lane, r.sequence"
    )
    known = tx.execute("select name, content, substr(message_id, 33) as place from client_id order by name")
    books = tx.execute("select lane, bytes, written from forebay_origin order by lane")
    return [tuple(row[name] for name in list(row.keys())) for row in [*rows, *known, *books]]
