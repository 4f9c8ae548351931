from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from forebay.jetstream.parser import MessageParser
from forebay.jetstream.replies import Incoming

SUBJECTS = st.text(st.characters(exclude_characters=" \t\r\n", codec="utf-8"), min_size=1, max_size=12)
HEADS = st.dictionaries(
    st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True), st.from_regex(r"[!-9;-~]{1,12}", fullmatch=True)
)
MESSAGES = st.lists(st.tuples(SUBJECTS, st.just("") | SUBJECTS, HEADS, st.binary(max_size=60)), max_size=12)


class Client:
    """What a parser needs of nats-py's client."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.pongs = self.pings = 0

    async def _error_cb(self, error: Exception) -> None:
        self.errors.append(error)

    async def _process_pong(self) -> None:
        self.pongs += 1

    async def _process_ping(self) -> None:
        self.pings += 1


def written(subject: str, reply: str, headers: dict[str, str], body: bytes, number: int = 7) -> bytes:
    to = f"{subject} {number} {reply} " if reply else f"{subject} {number} "
    if not headers:
        return f"MSG {to}{len(body)}\r\n".encode() + body + b"\r\n"
    head = b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"
    return f"HMSG {to}{len(head)} {len(head) + len(body)}\r\n".encode() + head + body + b"\r\n"


def parsed(parser: MessageParser, data: bytes, cuts: Sequence[int]) -> None:
    async def run() -> None:
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for first, last in pairwise(edges):
            await parser.parse(data[first:last])

    asyncio.run(run())


@given(
    MESSAGES,
    st.lists(st.integers(0, 10_000), max_size=8),
    st.lists(st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n"]), max_size=12),
)
def test_every_message_arrives_whole_and_in_order_however_the_bytes_are_cut(
    messages: list[tuple[str, str, dict[str, str], bytes]], cuts: list[int], between: list[bytes]
) -> None:
    client = Client()
    parser = MessageParser(client)
    seen: list[Incoming] = []
    parser.listeners[7] = seen.append
    between += [b""] * (len(messages) - len(between))
    data = b"".join(
        more + written(*message) + written("other.subject", "", {}, b"x", number=8)
        for message, more in zip(messages, between, strict=False)
    )
    parsed(parser, data, cuts)
    assert [(each.subject, each.reply, dict(each.headers), each.body) for each in seen] == messages
    used = between[: len(messages)]
    assert (client.pings, client.pongs) == (used.count(b"PING\r\n"), used.count(b"PONG\r\n"))
    assert client.errors == []


def test_what_a_listener_raises_is_reported_and_the_next_message_comes() -> None:
    client = Client()
    parser = MessageParser(client)
    seen: list[bytes] = []

    def receive(message: Incoming) -> None:
        seen.append(message.body)
        if message.body == b"1":
            raise RuntimeError("one")

    parser.listeners[7] = receive
    parsed(parser, written("a", "", {}, b"1") + written("a", "", {}, b"2"), [])
    assert seen == [b"1", b"2"]
    assert [str(error) for error in client.errors] == ["one"]


@pytest.mark.parametrize("line", [b"MSG a\r\n", b"HMSG a 7 x y\r\n", b"MSGS a 7 1\r\n", b"NOISE\r\n"])
def test_what_is_no_protocol_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parsed(MessageParser(Client()), line, [])


def test_a_subject_that_is_no_text_is_read_as_far_as_it_is() -> None:
    parser = MessageParser(Client())
    seen: list[Incoming] = []
    parser.listeners[7] = seen.append
    parsed(parser, b"MSG evt.\xff.a 7 \xfe 1\r\nx\r\n", [])
    assert [(each.subject, each.reply, each.body) for each in seen] == [("evt.\ufffd.a", "\ufffd", b"x")]


def test_half_a_message_of_a_connection_that_is_gone_is_forgotten() -> None:
    parser = MessageParser(Client())
    seen: list[Incoming] = []
    parser.listeners[7] = seen.append
    data = written("a", "", {}, b"whole")
    parsed(parser, data[:-4], [])
    parser.reset()
    parsed(parser, data, [])
    assert [each.body for each in seen] == [b"whole"]


def test_what_follows_in_a_piece_is_dropped_when_the_connection_goes_while_it_is_read() -> None:
    client = Client()
    parser = MessageParser(client)
    seen: list[bytes] = []

    def receive(message: Incoming) -> None:
        seen.append(message.body)
        if message.body == b"last":
            parser.reset()

    parser.listeners[7] = receive
    parsed(parser, written("a", "", {}, b"last") + written("a", "", {}, b"gone") + b"PING\r\nMSG a 7", [])
    parsed(parser, written("a", "", {}, b"first"), [])
    assert seen == [b"last", b"first"]
    assert client.pings == 0
