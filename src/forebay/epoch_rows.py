"""The inbox's rows: how the state of an epoch stands in the database, of one and of many at once (B1)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import msgspec

from forebay.identity import parse_place
from forebay.protocol.inbox import EpochState
from forebay.sequences import SequenceSet
from forebay.transaction import Row

_ranges = msgspec.json.Decoder(list[tuple[int, int]])


class _Decided(msgspec.Struct, frozen=True, omit_defaults=True):
    dropped: list[tuple[int, int]] = []
    withheld: dict[int, str | None] = {}


_decided = msgspec.json.Decoder(_Decided)
_given_up = msgspec.json.Decoder(tuple[int, int, int])

COLUMNS = "epoch, lane, prev, watermark, held, missing, wanted, decided, given_up, abandoned_after"

_WAITS = "(held <> '[]' or decided <> '{}' or abandoned_after is not null)"
"""As the index ``forebay_inbox_waiting`` has it."""

OF_EPOCH = f"select {COLUMNS} from forebay_inbox where node = :node and service = :service and epoch ="

EPOCHS = f"""
    {OF_EPOCH} :epoch union all {OF_EPOCH} :prev union all
    select {COLUMNS} from forebay_inbox where node || '/' || service = :node || '/' || :service and {_WAITS}"""
"""An event's epoch, the one before it, and those of its origin that wait; one of them may come twice."""

ALL = f"select {COLUMNS} from forebay_inbox where node = :node and service = :service"

OF_MANY = """
    select k.key, i.lane, i.prev, case when i.held = '[]' and i.missing = '[]' and i.wanted = '[]' and i.decided = '{}'
      and i.given_up is null and i.abandoned_after is null then i.watermark end as watermark
    from json_each(:keys) k join forebay_inbox i
      on i.node = k.value->>0 and i.service = k.value->>1 and i.epoch = k.value->>2"""
"""The epochs of many origins, named as ``{"<at>": [node, service, epoch], ...}``; no watermark of those whose rows say
more than what is read here, which few do. JSON, for SQLite and PostgreSQL read it alike; one statement, as each costs
more than the row."""

ANY_WAIT = f"select 1 from forebay_inbox where {_WAITS} limit 1"

WAITING = f"""
    select node, service, {COLUMNS} from forebay_inbox
    where node || '/' || service in (select k.key from json_each(:origins) k) and {_WAITS}"""
"""The epochs that wait, of origins that are named as ``{"<node>/<service>": 0, ...}``."""

SAVE = """
    insert into forebay_inbox (node, service, epoch, lane, prev, watermark, held, missing, wanted, decided, given_up,
      abandoned_after)
    values (:node, :service, :epoch, :lane, :prev, :watermark, :held, :missing, :wanted, :decided, :given_up,
      :abandoned_after)
    on conflict (node, service, epoch) do update set
      watermark = excluded.watermark, held = excluded.held, missing = excluded.missing, wanted = excluded.wanted,
      decided = excluded.decided, given_up = excluded.given_up, abandoned_after = excluded.abandoned_after"""

SAVE_MANY = """
    insert into forebay_inbox (node, service, epoch, lane, prev, watermark, held)
    select k.value->>0, k.value->>1, k.value->>2, k.value->>3, k.value->>4, cast(k.value->>5 as bigint), '[]'
    from json_each(:rows) k where true
    on conflict (node, service, epoch) do update set watermark = excluded.watermark"""
"""Many epochs of which nothing is known but the watermark, as ``{"<at>": [node, service, epoch, lane, prev,
watermark], ...}``."""


THEIR_NUMBERS = "returning id, node, service, epoch"
"""Behind ``SAVE_MANY`` on SQLite: the numbers of the rows."""

SimpleRow = tuple[str, str, str, str, str, int]
"""Node, service, epoch, lane, the place before it and the watermark."""


def numbered(rows: Iterable[tuple[str | int, ...]]) -> str:
    """Return rows as a JSON object by their numbers: what ``json_each`` takes apart on either store."""
    return msgspec.json.encode(dict(zip(map(str, count()), rows, strict=False))).decode()


def row_of(node: str, service: str, epoch: str, state: EpochState) -> dict[str, str | int | None]:
    """Return the row of an epoch, whatever is known of it, for ``SAVE``."""
    return {
        "node": node,
        "service": service,
        "epoch": epoch,
        "lane": state.lane,
        "prev": str(state.prev or "none"),
        "watermark": state.passed.watermark,
        "held": _json(state.passed.ranges),
        "missing": _json(state.missing),
        "wanted": _json(state.wanted),
        "decided": _json(_Decided(state.dropped, state.withheld)) if state.decided else "{}",
        "given_up": msgspec.json.encode(state.given_up).decode() if state.given_up else None,
        "abandoned_after": state.abandoned_after,
    }


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode() if value else "[]"


def state_of(row: Row) -> EpochState:
    """Return an epoch's state as its row, with all of ``COLUMNS``, has it."""
    held = _ranges.decode(row["held"]) if row["held"] != "[]" else ()
    state = EpochState(row["lane"], parse_place(row["prev"]), SequenceSet(row["watermark"], held))
    if row["missing"] != "[]":
        state.missing = _ranges.decode(row["missing"])
    if row["wanted"] != "[]":
        state.wanted = _ranges.decode(row["wanted"])
    if row["decided"] != "{}":
        decided = _decided.decode(row["decided"])
        state.dropped, state.withheld = decided.dropped, decided.withheld
    if row["given_up"] is not None:
        state.given_up = _given_up.decode(row["given_up"])
    state.abandoned_after = row["abandoned_after"]
    return state
