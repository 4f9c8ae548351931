"""Events on their way into the outbox, and the end of the origin that they are appended to (rules I2, I3, I5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from forebay.envelope import JSON, format_time
from forebay.errors import EventTooLargeError
from forebay.identity import Place, new_epoch
from forebay.transaction import Row

MAX_EVENT_BYTES = 256 * 1024
"""Bytes of one event's body."""

MAX_METADATA_BYTES = 16 * 1024
"""Bytes of an event's key, type and attributes. Percent-encoded they are at most three times as many, and a broker
takes 64 KiB of headers: what is above would be refused for ever."""

ROW_BYTES = 160
"""What a row takes beside its texts and its body, measured as file growth per row on SQLite."""

_EXTRA = msgspec.json.Encoder()


class Extra(msgspec.Struct, frozen=True, omit_defaults=True):
    """What only some rows carry: the CloudEvents fields that are not implied by the place, and the trace."""

    id: str | None = None
    source: str | None = None
    content_type: str = JSON
    attributes: dict[str, str] = {}
    traceparent: str | None = None
    tracestate: str | None = None


NO_EXTRA = Extra()


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An event, or a command for a ``destination``, on its way into the outbox."""

    lane: str
    kind: str
    type: str
    body: bytes
    time: datetime
    key: str | None = None
    cause: str | None = None
    extra: Extra = NO_EXTRA
    destination: str = ""


Entry = tuple[str, str, str | None, str, str | None, str | None, bytes, int]
"""An event as its row has it, but for its place and its ticks: kind, type, key, time (RFC 3339 in UTC), cause, extra
(JSON), body, and what the row takes of the budget, in bytes. A tuple, since many are made at once."""

COLUMNS = ("kind", "type", "key", "time", "cause", "extra", "body", "bytes", "epoch", "sequence", "hlc", "written_at")
"""An entry's columns in the outbox, and those of its place."""


def entry(
    kind: str,
    type: str,  # noqa: A002 - the column's name
    key: str | None,
    time: str,
    cause: str | None,
    extra: str | None,
    body: bytes,
) -> Entry:
    """Return an entry; its size is counted and checked (O5).

    Raises:
        EventTooLargeError: the body is above ``MAX_EVENT_BYTES``, or what goes into headers above
            ``MAX_METADATA_BYTES``.
    """
    if len(body) > MAX_EVENT_BYTES:
        raise EventTooLargeError(f"the event {type!r} has {len(body)} bytes, the limit is {MAX_EVENT_BYTES}")
    texts = f"{kind}{type}{key or ''}{cause or ''}{extra or ''}"
    metadata = len(texts) if texts.isascii() else len(texts.encode())
    if metadata > MAX_METADATA_BYTES:
        raise EventTooLargeError(
            f"the key and attributes of the event {type[:64]!r} have {metadata} bytes, "
            f"the limit is {MAX_METADATA_BYTES}"
        )
    return kind, type, key, time, cause, extra, body, ROW_BYTES + len(body) + metadata


def entries(
    kinds: Iterable[str],
    types: Iterable[str],
    keys: Iterable[str | None],
    times: Iterable[str],
    extras: Iterable[str | None],
    bodies: Iterable[bytes],
) -> list[Entry]:
    """Return the entries of many events without a cause, in their order. Raises as ``entry`` does."""
    return [
        # What is above a limit, or is longer in bytes than in characters, is counted by ``entry``.
        (kind, type_, key, time, None, extra, body, ROW_BYTES + len(body) + size)
        if len(body) <= MAX_EVENT_BYTES
        and (texts := f"{kind}{type_}{key or ''}{extra or ''}").isascii()
        and (size := len(texts)) <= MAX_METADATA_BYTES
        else entry(kind, type_, key, time, None, extra, body)
        for kind, type_, key, time, extra, body in zip(kinds, types, keys, times, extras, bodies, strict=True)
    ]


def entry_of(draft: Draft) -> Entry:
    """Return a draft's entry. Raises as ``entry`` does."""
    extra = None if draft.extra is NO_EXTRA or draft.extra == NO_EXTRA else encoded(draft.extra)
    return entry(draft.kind, draft.type, draft.key, format_time(draft.time), draft.cause, extra, draft.body)


def encoded(extra: Extra) -> str:
    """Return what stands in the column ``extra``."""
    return _EXTRA.encode(extra).decode()


def all_encoded(extras: Sequence[Extra]) -> list[str]:
    """Return what stands in the column ``extra``, for many events."""
    return _EXTRA.encode_lines(extras).decode().split("\n")[: len(extras)]


def extra_of(entry: Entry) -> Extra:
    """Return what stands in an entry's column ``extra``."""
    return NO_EXTRA if entry[5] is None else msgspec.json.decode(entry[5], type=Extra)


Tails = dict[tuple[str, str], "Tail"]
"""The ends of a transaction's origins, by lane and destination."""


class Tail:
    """The end of one origin within one transaction, written back by ``Outbox.flush``."""

    __slots__ = ("bytes", "epoch", "epoch_id", "last", "origin", "prev", "rows", "size")

    def __init__(self, row: Row, opening: str) -> None:
        self.origin: int = row["origin"]
        self.bytes: int = row["bytes"]
        self.epoch_id: int | None = None
        if row["opening"] == opening:
            self.epoch_id, self.epoch, self.last, self.prev = row["epoch_id"], row["epoch"], row["last"], ""
        else:
            # The first write since the store was opened takes a new epoch (I2), which says for its whole life what
            # came before it (I5). Its row is written with its first event: an epoch without events would be a place
            # that nobody can reach.
            self.epoch, self.last = new_epoch(row["epoch"]), 0
            self.prev = "none" if row["epoch"] is None else str(Place(row["epoch"], row["last"]))
        self.size = 0
        self.rows: list[tuple[Any, ...]] = []
