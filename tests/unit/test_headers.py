from __future__ import annotations

import pytest

from forebay.headers import NO_HEADERS, Headers


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        (b"", {}),
        (b"NATS/1.0\r\n\r\n", {}),
        (b"NATS/1.0\r\nA: 1\r\nb-c: two words: three\r\n\r\n", {"A": "1", "b-c": "two words: three"}),
        (b"NATS/1.0\r\nA:1\r\nB:\t 2 \r\nC:  3\r\nD: 4 \r\n\r\n", {"A": "1", "B": "2", "C": "3", "D": "4"}),
        (b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n", {"A": "2"}),
        (b"NATS/1.0\r\nA: \r\n\r\n", {"A": ""}),
        (b"NATS/1.0\r\nnothing\r\nA: 1\r\n\r\n", {"A": "1"}),
        ("NATS/1.0\r\nA: \N{SNOWMAN}\r\n\r\n".encode(), {"A": "\N{SNOWMAN}"}),
        (b"NATS/1.0\r\nA: \xff\r\n\r\n", {"A": "\N{REPLACEMENT CHARACTER}"}),
        (b"NATS/1.0\r\nA b:  1\r\n\xff: 2\r\nC: 3\r\n\r\n", {"C": "3"}),
        (b"NATS/1.0\r\nA:b: c\r\nB : 2\r\nC d: 3\r\nE: 5\r\n\r\n", {"A": "b: c", "B": "2", "E": "5"}),
        (b"NATS/1.0\r\n A: 1\r\nB: \x0b2\x0c\r\nC: 3\n\r\n\r\n", {"A": "1", "B": "2", "C": "3"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 404 No Messages\r\n\r\n", {"Status": "404", "Description": "No Messages"}),
        (
            b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Stream: 7\r\n\r\n",
            {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Stream": "7"},
        ),
    ],
)
def test_headers_are_read_whatever_their_form(raw: bytes, fields: dict[str, str]) -> None:
    headers = Headers(raw)
    assert headers == fields
    assert dict(headers) == fields
    assert len(headers) == len(fields)
    assert headers.get("missing", "") == ""


def test_no_headers_are_an_empty_mapping() -> None:
    assert not NO_HEADERS
    assert repr(NO_HEADERS) == "Headers({})"
