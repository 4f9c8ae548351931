from __future__ import annotations

from pathlib import Path

from forebay import Event, Lane, Service, UnitOfWork
from forebay.jetstream.publishing import Outgoing
from forebay.lanes import Frames
from forebay.packets import Packer, Packet, Room
from forebay.testing.stores import opened
from forebay.transaction import Transaction
from tests.framed import encode_frame
from tests.outboxes import messages_after


class Measured(Event, service="fridges", kind="measured", lane="telemetry", key="fridge"):
    fridge: str
    number: int


FRIDGES = Service("fridges", lanes=[Lane("telemetry", budget="8MiB", frames=True)])
ROOM = Room(events=100, wire=1 << 20, message=None, disk=1 << 20, frames=Frames(zstd=False))


def wire_bytes(outgoing: Outgoing) -> int:
    return len(outgoing.head) + len(outgoing.body)


async def test_a_frame_of_rows_is_the_frame_of_their_messages_and_names_the_epoch_before_i5(tmp_path: Path) -> None:
    def measure(tx: UnitOfWork, first: int) -> None:
        for number in range(first, first + 3):
            tx.emit(Measured(fridge=f"f-{number} %", number=number))

    async with opened(FRIDGES, tmp_path) as store:
        await store.write(measure, 1)
    async with opened(FRIDGES, tmp_path) as store:
        await store.write(measure, 4)
        outbox = store._outbox

        def read(tx: Transaction) -> list[Packet]:
            return Packer(outbox, wire_bytes).after(tx, "telemetry", None, ROOM).packets

        packets = await store.read(read)
        messages = await store.read(messages_after, outbox, "telemetry", None, limit=100, max_bytes=1 << 20)

    assert [(each.first, each.last) for each in packets] == [(1, 3), (1, 3)]
    written = [encode_frame(part) for part in (messages[:3], messages[3:])]
    assert [(dict(each.outgoing.headers), each.outgoing.body) for each in packets] == written
    assert [headers["forebay-prev"] for headers, _ in written] == ["none", f"{packets[0].epoch}-3"]
