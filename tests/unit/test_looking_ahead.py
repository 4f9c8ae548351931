from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from forebay import Lane, Service, UnitOfWork
from forebay.identity import Place
from forebay.jetstream.publishing import Publisher
from forebay.looking_ahead import LookAhead
from forebay.packets import Look, Packer, Room
from forebay.testing.stores import opened
from tests.unit.test_packets import Measured, wire_bytes

FRIDGES = Service("fridges", lanes=[Lane("telemetry", budget="8MiB")])
EVENTS = 3
LOOK = Look("telemetry", None, Room(events=EVENTS, wire=1 << 20, message=1 << 20, disk=1 << 20))


def measure(tx: UnitOfWork) -> None:
    for number in range(EVENTS):
        tx.emit(Measured(fridge="f", number=number))


@pytest.mark.parametrize(
    ("changed", "room", "fits"),
    [
        ({}, {}, True),
        ({}, {"events": EVENTS + 1}, True),
        ({}, {"events": EVENTS - 1}, False),
        ({}, {"wire": 10}, False),
        ({}, {"message": 1 << 19}, False),
        ({"place": Place("0" * 32, 1)}, {}, False),
        ({"lane": "ledger"}, {}, False),
    ],
    ids=["the same", "more room", "fewer events", "fewer bytes", "smaller messages", "another place", "another lane"],
)
async def test_what_was_read_ahead_is_taken_once_and_only_where_a_look_would_find_it(
    tmp_path: Path, changed: dict[str, Any], room: dict[str, Any], fits: bool
) -> None:
    """A batch that begins where the lane no longer stands would be sent out of its order."""
    async with opened(FRIDGES, tmp_path) as store:
        await store.write(measure)
        ahead = LookAhead(store, Packer(store._outbox, wire_bytes), cast(Publisher, None))  # nothing is staged
        await ahead.read(LOOK, [], 0, wide=False)
        now = LOOK._replace(room=msgspec.structs.replace(LOOK.room, **room), **changed)

        taken = ahead.take(now)

        assert (taken is not None) is fits
        assert taken is None or taken.events == EVENTS
        assert ahead.take(LOOK) is None
