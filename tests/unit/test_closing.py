"""When a node's statement is acted on (rule B4)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from forebay.closing import Closing, Statement
from forebay.protocol.confirmation import DroppedRange, OriginQuestion

EPOCH = "a" * 32


class Reader:
    """What closing looks at of a consumer."""

    def __init__(self, committed: int, incarnation: str = "i") -> None:
        self.committed = {0: committed}
        self.incarnation = incarnation


def closing(reader: Reader) -> Closing:
    nothing: Any = SimpleNamespace()
    consumer: Any = reader
    return Closing(consumer, nothing, nothing, nothing)


def says(stream_end: int, floor: int = 5, incarnation: str = "i", **more: Any) -> Statement:
    said = OriginQuestion("till", "ledger", [], floor=f"{EPOCH}-{floor}", **more)
    return Statement("store-330", said, incarnation, stream_end)


def test_a_statement_waits_until_the_reader_has_read_to_the_streams_end_as_of_then_b4() -> None:
    reader = Reader(committed=7)
    known, said = closing(reader), says(stream_end=9)
    assert known.heard(said, 0, at_end=False) is None
    reader.committed[0] = 8
    assert known.heard(says(stream_end=12), 0, at_end=False) is None
    reader.committed[0] = 9
    assert known.heard(says(stream_end=15), 0, at_end=False) == said, "what was said first is the same: its end counts"


def test_a_reader_at_the_end_acts_at_once_whatever_its_partitions_last_message_b4() -> None:
    said = says(stream_end=9)
    assert closing(Reader(committed=3)).heard(said, 0, at_end=True) == said


@pytest.mark.parametrize(
    "newer", [says(12, floor=6), says(12, drops=[DroppedRange(EPOCH, 6, 7)]), says(12, incarnation="j")]
)
def test_a_newer_statement_takes_the_place_of_the_one_that_waits_b4(newer: Statement) -> None:
    reader = Reader(committed=7)
    known = closing(reader)
    assert known.heard(says(stream_end=9), 0, at_end=False) is None
    assert known.heard(newer, 0, at_end=False) is None
    reader.committed[0], reader.incarnation = 9, newer.incarnation
    assert known.heard(newer, 0, at_end=False) is None, "it is not read to its end"
    reader.committed[0] = 12
    assert known.heard(newer, 0, at_end=False) == newer


def test_a_statement_about_another_stream_is_not_acted_on_s5() -> None:
    assert closing(Reader(committed=20, incarnation="j")).heard(says(stream_end=9), 0, at_end=False) is None
