"""Panes: the open windows of a key as rows, each with the fold of its events; loaded and saved once per transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import msgspec

from forebay.protocol.windows import Span
from forebay.transaction import Row, Transaction

S = TypeVar("S")

CONTENT_BITS = 62
"""Bits of the sum that names what a window is made of: it fits a signed 64-bit column."""

_COLUMNS = "scope, key, opens, closes, due, state, events, content, revision, told"

_OVERLAPPING = f"""
    select {_COLUMNS} from forebay_window
    where name = :name and scope = :scope and key = :key and opens < :upto and closes > :after"""

# A pane that was told is due later than it closes, and gone where the lateness is none.
_CLOSING = f"""
    select {_COLUMNS} from forebay_window
    where name = :name and scope = :scope and due <= :mark and due = closes"""

_SAVE = """
    insert into forebay_window (name, scope, key, opens, closes, due, state, events, content, revision, told)
    values (:name, :scope, :key, :opens, :closes, :due, :state, :events, :content, :revision, :told)
    on conflict (name, scope, key, opens) do update set
      closes = excluded.closes, due = excluded.due, state = excluded.state, events = excluded.events,
      content = excluded.content, revision = excluded.revision, told = excluded.told"""

_DELETE = "delete from forebay_window where name = :name and scope = :scope and key = :key and opens = :opens"

_EXPIRE = "delete from forebay_window where name = :name and scope = :scope and due <= :mark"

_spans = msgspec.json.Decoder(list[Span])
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Pane(Generic[S]):
    """One window of one key.

    Attributes:
        span: its stretch of event time.
        state: the fold of its events.
        told: the spans of the results that stand for it.
        dirty: whether it has events that no result has.
        gone: another pane has taken its place.
    """

    __slots__ = ("content", "dirty", "events", "gone", "key", "revision", "span", "state", "told")

    def __init__(self, key: str, span: Span, state: S) -> None:
        self.key = key
        self.span = span
        self.state = state
        self.events = 0
        self.content = 0
        self.revision = 0
        self.told: list[Span] = []
        self.dirty = True
        self.gone = False


class Panes(Generic[S]):
    """The panes of one window and scope that a transaction works on."""

    def __init__(self, tx: Transaction, name: str, scope: str, state: type[S]) -> None:
        self._tx = tx
        self._at = {"name": name, "scope": scope}
        self._decoder = msgspec.json.Decoder(state)
        self._of: dict[str, dict[int, Pane[S]]] = {}
        self._stored: set[tuple[str, int]] = set()
        self._touched: dict[tuple[str, int], Pane[S]] = {}

    def load_key(self, key: str, span: Span) -> None:
        """Load the panes of a key that share a moment with ``span``."""
        self._load(self._tx.execute(_OVERLAPPING, **self._at, key=key, after=span.opens, upto=span.closes))

    def load_closing(self, mark: int) -> None:
        """Load the panes that close at or before ``mark`` and are still to be told."""
        self._load(self._tx.execute(_CLOSING, **self._at, mark=mark))

    def waiting(self) -> list[Pane[S]]:
        """Return the loaded panes that are still to be told."""
        return [pane for panes in self._of.values() for pane in panes.values() if pane.dirty]

    def find(self, key: str, span: Span) -> Pane[S] | None:
        """Return the pane of exactly this beginning, loaded or made in this transaction."""
        return self._of.get(key, {}).get(span.opens)

    def overlapping(self, key: str, span: Span) -> list[Pane[S]]:
        """Return the panes of a key that share a moment with ``span``, the earliest first."""
        found = [pane for pane in self._of.get(key, {}).values() if pane.span.overlaps(span)]
        return sorted(found, key=lambda pane: pane.span)

    def put(self, pane: Pane[S]) -> None:
        """Keep a pane that is new or was changed."""
        self._of.setdefault(pane.key, {})[pane.span.opens] = pane
        self._touched[pane.key, pane.span.opens] = pane

    def remove(self, pane: Pane[S]) -> None:
        """Take a pane out: another has taken its place."""
        pane.gone = True
        del self._of[pane.key][pane.span.opens]
        self._touched.pop((pane.key, pane.span.opens), None)

    def save(self, mark: int, lateness: int) -> None:
        """Write what was changed, and delete what is final: closed, and behind the watermark by the lateness."""
        kept = {at: pane for at, pane in self._touched.items() if pane.dirty or pane.span.closes + lateness > mark}
        standing = {(key, opens) for key, panes in self._of.items() for opens in panes}
        gone = [at for at in self._stored if at not in standing or (at in self._touched and at not in kept)]
        if gone:
            self._tx.executemany(_DELETE, [{**self._at, "key": key, "opens": opens} for key, opens in gone])
        if kept:
            self._tx.executemany(_SAVE, [self._row(pane, lateness) for pane in kept.values()])
        self._tx.execute(_EXPIRE, **self._at, mark=mark)

    def _row(self, pane: Pane[S], lateness: int) -> dict[str, Any]:
        return {
            **self._at,
            "key": pane.key,
            "opens": pane.span.opens,
            "closes": pane.span.closes,
            "due": pane.span.closes if pane.dirty else pane.span.closes + lateness,
            "state": msgspec.json.encode(pane.state).decode(),
            "events": pane.events,
            "content": pane.content,
            "revision": pane.revision,
            "told": msgspec.json.encode(pane.told).decode(),
        }

    def _load(self, rows: Iterable[Row]) -> None:
        for row in rows:
            at = (row["key"], row["opens"])
            if at in self._stored:
                continue
            self._stored.add(at)
            pane = Pane(row["key"], Span(row["opens"], row["closes"]), self._decoder.decode(row["state"]))
            pane.events, pane.content, pane.revision = row["events"], row["content"], row["revision"]
            pane.told = _spans.decode(row["told"])
            pane.dirty = row["due"] == row["closes"]
            self._of.setdefault(row["key"], {})[row["opens"]] = pane


def content_of(message_id: str) -> int:
    """Return a message's part of the sum that names what a window is made of."""
    digest = hashlib.blake2b(message_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - CONTENT_BITS)


def joined_content(one: int, other: int) -> int:
    """Return the sum that names what two windows are made of together, whatever the order of adding."""
    return (one + other) & ((1 << CONTENT_BITS) - 1)


def open_windows(tx: Transaction) -> dict[str, int]:
    """Return the windows that are kept, open or not final yet, per name."""
    rows = tx.execute("select name, count(*) as n from forebay_window group by name")
    return {row["name"]: row["n"] for row in rows}


def instance_of(name: str, scope: str, key: str, content: int) -> str:
    """Name a window and what it is made of, for causes (B5); a key may hold what no header can."""
    digest = hashlib.blake2b(f"{scope}/{key}".encode(), digest_size=12).hexdigest()
    return f"window:{name}:{digest}:{content:x}"


def moment(milliseconds: int) -> datetime:
    """Return an aware time of milliseconds since 1970; the ends of the calendar stand for what lies beyond."""
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return _FIRST if milliseconds < 0 else _LAST


def milliseconds_of(time: datetime) -> int:
    """Return the whole milliseconds since 1970 of an aware time."""
    return (time - _EPOCH) // timedelta(milliseconds=1)
