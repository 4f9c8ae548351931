"""What goes from an outbox to the stream next, as it stands on the wire: single events, and frames of consecutive ones.

Rows become messages on the store's reading thread, in as little work for each as there can be: an event that goes in a
frame is one string on its way to the body, one that goes alone is its headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from forebay.clock import format_tick
from forebay.drafts import NO_EXTRA
from forebay.envelope import GATEWAY, add_optional, write_headers
from forebay.frame import (
    frame_headers,
    frames_take,
    join_events,
    quoted,
    write_data,
    write_event,
    write_more,
)
from forebay.headers import Headers
from forebay.identity import MessageId, Place, retransmission_id
from forebay.jetstream.publishing import Outgoing, Prepared, Staged, encode_head
from forebay.lanes import Frames
from forebay.outbox import Outbox
from forebay.packing import can_pack, pack
from forebay.plain_heads import PlainHeads
from forebay.runs import Run
from forebay.sequences import Range
from forebay.subjects import command_subject, event_subject
from forebay.transaction import Transaction


class Packet(NamedTuple):
    """One message on its way: the event ``first``, or a frame of the events ``first`` to ``last``.

    ``size`` is its bytes on the wire, as the server counts them.
    """

    epoch: str
    first: int
    last: int
    outgoing: Outgoing
    size: int

    @property
    def place(self) -> Place:
        """The place of its last event."""
        return Place(self.epoch, self.last)

    @property
    def events(self) -> int:
        """How many events it holds."""
        return self.last - self.first + 1


def events_of(packets: Iterable[Packet]) -> int:
    """Return how many events messages hold together."""
    return sum([last - first + 1 for _, first, last, _, _ in packets])


def bytes_of(packets: Iterable[Packet]) -> int:
    """Return the bytes that messages take on the wire together."""
    return sum([size for _, _, _, _, size in packets])


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What there is room for.

    Attributes:
        events: of all messages together.
        wire: bytes of all messages together on the wire; one goes whatever its size.
        message: bytes of one message on the wire; a frame is cut to fit. None where no limit is known.
        disk: bytes of the rows that are read for it.
        frames: how events are framed; None where each goes alone.
    """

    events: int
    wire: int
    message: int | None
    disk: int
    frames: Frames | None = None


class Batch(NamedTuple):
    """Messages of one origin, in order.

    Attributes:
        packets: the messages.
        disk: bytes that their rows take.
        more: whether other events of the origin follow them.
        prepared: the messages as an atomic batch sends them, or has staged them; None where that is left to whoever
            sends.
    """

    packets: list[Packet]
    disk: int
    more: bool
    prepared: Prepared | Staged | None = None

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return bytes_of(self.packets)

    @property
    def events(self) -> int:
        """How many events it holds."""
        return events_of(self.packets)


class Look(NamedTuple):
    """Where to look for what goes next: in a lane after ``place``, as much as there is room for."""

    lane: str
    place: Place | None
    room: Room


class Found(NamedTuple):
    """What was found.

    Attributes:
        at: the number of the look that found something; as many as there were where none did.
        batch: what it found; empty where nothing is to be sent.
        rest: whether any of the looks would find more.
    """

    at: int
    batch: Batch
    rest: bool


class Packer:
    """Writes the rows of one outbox as messages; its methods take the transaction that they read in.

    A frame begins anew with every epoch, wherever a sequence is missing or the kind changes, and around an event whose
    attributes have no place in one. Where it was cut is nobody's business: sent again, the same events may go in
    others (I4).

    Args:
        outbox: whose rows they are.
        wire_bytes: returns the bytes of a message on the wire.
        prepare: returns messages as an atomic batch sends them; called on the reading thread.
    """

    def __init__(
        self,
        outbox: Outbox,
        wire_bytes: Callable[[Outgoing], int],
        prepare: Callable[[Sequence[Outgoing]], Prepared | None] = lambda _: None,
    ) -> None:
        self._outbox = outbox
        self._wire_bytes = wire_bytes
        self._prepare = prepare
        self._source = f"/{outbox.node}/{outbox.service}"

    def after(self, tx: Transaction, lane: str, place: Place | None, room: Room, destination: str = "") -> Batch:
        """Return an origin's events after a place (None: from the oldest), at least one if there is one."""
        runs = self._outbox.runs_after(tx, lane, place, limit=room.events, max_bytes=room.disk, destination=destination)
        return self._batch(lane, runs, room, destination, again=False)

    def ready(self, tx: Transaction, lane: str, place: Place | None, room: Room) -> Batch:
        """Return what ``after`` does, ready to be sent: what this thread does the event loop need not do."""
        batch = self.after(tx, lane, place, room)
        return batch._replace(prepared=self._prepare([packet.outgoing for packet in batch.packets]))

    def following(self, tx: Transaction, look: Look, others: Iterable[tuple[str, Place | None]]) -> tuple[Batch, bool]:
        """Return what ``ready`` does, and whether none of the other lanes has events after its place."""
        return self.ready(tx, *look), not any(self._outbox.any_after(tx, lane, place) for lane, place in others)

    def first(self, tx: Transaction, looks: Sequence[Look]) -> Found:
        """Return the events of the first lane that has any."""
        for at, look in enumerate(looks):
            batch = self.ready(tx, *look)
            if batch.packets:
                # Known at once, nobody has to look again once these are sent: whoever writes more wakes the relay.
                ends = {each.lane: each.place for each in looks} | {look.lane: batch.packets[-1].place}
                rest = batch.more or any(self._outbox.any_after(tx, lane, place) for lane, place in ends.items())
                return Found(at, batch, rest)
        return Found(len(looks), Batch([], 0, more=False), rest=False)

    def within(self, tx: Transaction, lane: str, epoch: str, places: Range, room: Room, destination: str = "") -> Batch:
        """Return those events of a range that are still here, withheld ones too, under fresh ids (I4).

        The broker swallows what it takes for known, so that every copy goes under an id of its own.
        """
        run = self._outbox.run_within(tx, epoch, places, limit=room.events, max_bytes=room.disk)
        return self._batch(lane, [run], room, destination, again=True)

    def _batch(self, lane: str, runs: Sequence[Run], room: Room, destination: str, *, again: bool) -> Batch:
        writing = _Writing(self._outbox, lane, room, destination, self._wire_bytes, self._source, again=again)
        for run in runs:
            if not writing.add(run):
                break
        read = sum(len(run.rows) for run in runs)
        written = events_of(writing.packets)
        disk = sum(run.bytes for run in runs)
        more = written < read or any(run.more for run in runs)
        return Batch(writing.packets, disk if written == read else disk * written // max(1, read), more)


class _Writing:
    """The writing of one batch."""

    def __init__(
        self,
        outbox: Outbox,
        lane: str,
        room: Room,
        destination: str,
        wire_bytes: Callable[[Outgoing], int],
        source: str,
        *,
        again: bool,
    ) -> None:
        self._outbox = outbox
        self._lane = lane
        self._room = room
        self._destination = destination
        self._wire_bytes = wire_bytes
        self._source = source
        self._again = again
        self._packs = room.frames is not None and room.frames.zstd and can_pack()
        self._size = 0
        self._subjects: dict[str, str] = {}
        self._heads: dict[str, PlainHeads] = {}
        self.packets: list[Packet] = []

    def add(self, run: Run) -> bool:
        """Write the messages of a run; return whether there is room for more."""
        if self._room.frames is None:
            return all(self._fits(self._single(run, row)) for row in run.rows)
        return self._add_frames(run, self._room.frames)

    def _fits(self, packet: Packet) -> bool:
        """Take a message, unless there is no room for it."""
        self._size += packet.size
        if self.packets and self._size > self._room.wire:
            return False
        self.packets.append(packet)
        return True

    def _single(self, run: Run, row: Sequence[Any]) -> Packet:
        sequence, kind, type_, key, time, hlc, cause, extra_text, body, _ = row
        if extra_text is None:
            return self._plain(run, row)
        extra = self._outbox.extra_of(extra_text)
        message_id = f"{run.epoch}-{sequence}"
        headers = write_headers(
            retransmission_id(message_id) if self._again else message_id,
            extra.id or message_id,
            extra.source or self._source,
            type_,
            time,
            key,
            extra.content_type,
            extra.attributes,
        )
        headers["forebay-lane"] = self._lane
        headers["forebay-prev"] = run.prev
        headers["forebay-hlc"] = format_tick(hlc)
        add_optional(headers, cause, extra.traceparent, extra.tracestate)
        return self._packet(run, sequence, sequence, kind, headers, body)

    def _plain(self, run: Run, row: Sequence[Any]) -> Packet:
        """Write an event that has nothing but what every event has: most are like that."""
        sequence, kind, type_, key, time, hlc, cause, _, body, _ = row
        heads = self._heads.get(run.epoch)
        if heads is None:
            heads = PlainHeads(self._source, NO_EXTRA.content_type, self._lane, run.prev)
            self._heads[run.epoch] = heads
        event_id = f"{run.epoch}-{sequence}"
        message_id = retransmission_id(event_id) if self._again else event_id
        head = heads.write(message_id, event_id, type_, time, key, hlc, cause)
        outgoing = Outgoing(self._subject(kind), Headers(b"NATS/1.0\r\n%b\r\n" % head), body, head)
        return Packet(run.epoch, sequence, sequence, outgoing, self._wire_bytes(outgoing))

    def _subject(self, kind: str) -> str:
        found = self._subjects.get(kind)
        if found is None:
            if self._destination:
                found = command_subject(self._destination, kind)
            else:
                found = event_subject(self._outbox.node, self._outbox.service, kind)
            self._subjects[kind] = found
        return found

    def _packet(self, run: Run, first: int, last: int, kind: str, headers: dict[str, str], body: bytes) -> Packet:
        outgoing = Outgoing(self._subject(kind), headers, body, encode_head(headers), divisible=last > first)
        return Packet(run.epoch, first, last, outgoing, self._wire_bytes(outgoing))

    def _add_frames(self, run: Run, frames: Frames) -> bool:
        most_events, most_bytes = frames.events, frames.most_bytes
        own_source, types = quoted(self._source), dict[str, str]()
        begin, kind, following, size = 0, "", 0, 0
        texts: list[str] = []
        for at, row in enumerate(run.rows):
            sequence, row_kind, type_, key, time, hlc, cause, extra_text, body, _ = row
            event_id, source, more, content_type, alone = f'"{run.epoch}-{sequence}"', own_source, "", "", False
            if extra_text is not None:
                extra = self._outbox.extra_of(extra_text)
                more = write_more(extra.content_type, extra.attributes, extra.traceparent, extra.tracestate)
                event_id = event_id if extra.id is None else quoted(extra.id)
                source = source if extra.source is None else quoted(extra.source)
                content_type, alone = extra.content_type, not self._takes(extra.id, extra.attributes)
            if (quoted_type := types.get(type_)) is None:
                quoted_type = types[type_] = quoted(type_)
            data = write_data(content_type or NO_EXTRA.content_type, body)
            text = write_event(event_id, source, quoted_type, time, key, hlc, cause, more, data)
            if texts and (
                sequence != following
                or row_kind != kind
                or alone
                or len(texts) >= most_events
                or size + len(text) > most_bytes
            ):
                if not self._frame(run, begin, texts):
                    return False
                texts = []
            if not texts:
                begin, kind, size = at, row_kind, 0
            texts.append(text)
            size += len(text)
            following = 0 if alone else sequence + 1
        if run.more and self.packets and len(texts) < most_events:
            return False  # the last one is not full, and what fills it is there
        return not texts or self._frame(run, begin, texts)

    def _takes(self, event_id: str | None, attributes: dict[str, str]) -> bool:
        """Whether a frame can hold such an event: of what is not the gateway's it says itself where events stand."""
        own_id = event_id is not None and self._outbox.service != GATEWAY
        return not own_id and frames_take(attributes)

    def _frame(self, run: Run, begin: int, texts: list[str]) -> bool:
        """Write the rows from ``begin`` on as one message, or as two or more where it would be too large."""
        rows = run.rows
        if len(texts) == 1:
            return self._fits(self._single(run, rows[begin]))
        first, last = rows[begin][0], rows[begin + len(texts) - 1][0]
        message_id = str(MessageId(run.epoch, first, last))
        body = join_events(texts)
        packed = pack(body) if self._packs else body
        is_packed = len(packed) < len(body)
        headers = frame_headers(
            retransmission_id(message_id) if self._again else message_id, self._lane, run.prev, packed=is_packed
        )
        packet = self._packet(run, first, last, rows[begin][1], headers, packed if is_packed else body)
        most = self._room.wire if self._room.message is None else min(self._room.wire, self._room.message)
        if packet.size > most:
            half = len(texts) // 2
            return self._frame(run, begin, texts[:half]) and self._frame(run, begin + half, texts[half:])
        return self._fits(packet)
