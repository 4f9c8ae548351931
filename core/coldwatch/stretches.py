"""Warm stretches: the minutes of a fridge in which every reading was too warm, joined where no cold one is between.

Kept so that it does not matter in which order minutes are told, or told again: a late cold minute splits a stretch, a
late warm one joins two. What was told of a stretch counts for one of its parts.
"""

from __future__ import annotations

from typing import NamedTuple

from forebay import Transaction

MINUTE = 60_000
"""Milliseconds."""

_LAST_COLD = """
    select max(minute) as minute from cold_minute
    where node = :node and fridge = :fridge and minute < :minute and minute >= :earliest"""

_NEXT_COLD = """
    select min(minute) as minute from cold_minute
    where node = :node and fridge = :fridge and minute > :minute and minute <= :latest"""

_NEAR = """
    select opens, closes, warmest, alert from stretch
    where node = :node and fridge = :fridge and closes >= :low and opens <= :high order by opens"""

_WRITE = """
    insert into stretch (node, fridge, opens, closes, warmest, alert)
    values (:node, :fridge, :opens, :closes, :warmest, :alert)"""

_REMOVE = "delete from stretch where node = :node and fridge = :fridge and opens = :opens"


class Fridge(NamedTuple):
    """Which fridge: its node and its name there."""

    node: str
    fridge: str


class Stretch(NamedTuple):
    """A warm stretch from ``opens`` to ``closes``; ``alert`` is the message id of the event that told of it."""

    opens: int
    closes: int
    warmest: int
    alert: str | None = None


def add_warm(tx: Transaction, of: Fridge, minute: int, warmest: int, gap: int) -> Stretch:
    """Add a warm minute to the stretch that it belongs to, and return that.

    Args:
        tx: the transaction.
        of: which fridge.
        minute: when the minute begins.
        warmest: its highest reading.
        gap: milliseconds without a reading for which a fridge counts as what it was.
    """
    fridge = of._asdict()
    low, high = minute - gap, minute + MINUTE + gap
    cold = tx.execute(_LAST_COLD, **fridge, minute=minute, earliest=low - MINUTE)[0]["minute"]
    low = low if cold is None else max(low, cold + MINUTE)
    cold = tx.execute(_NEXT_COLD, **fridge, minute=minute, latest=high)[0]["minute"]
    high = high if cold is None else min(high, cold)
    joined = Stretch(minute, minute + MINUTE, warmest)
    for row in tx.execute(_NEAR, **fridge, low=low, high=high):
        tx.execute(_REMOVE, **fridge, opens=row["opens"])
        joined = Stretch(
            min(joined.opens, row["opens"]),
            max(joined.closes, row["closes"]),
            max(joined.warmest, row["warmest"]),
            joined.alert or row["alert"],
        )
    tx.execute(_WRITE, **fridge, **joined._asdict())
    return joined


def add_cold(tx: Transaction, of: Fridge, minute: int, enough: int) -> list[Stretch]:
    """Note a cold minute; return the parts of the stretch that it splits, if any.

    An alert of the whole stays with the earliest part that is long enough by itself, else with the last: it may grow.

    Args:
        tx: the transaction.
        of: which fridge.
        minute: when the minute begins.
        enough: milliseconds from which on a stretch is told of.
    """
    fridge = of._asdict()
    tx.execute(
        "insert into cold_minute (node, fridge, minute) values (:node, :fridge, :minute) on conflict do nothing",
        **fridge,
        minute=minute,
    )
    parts: list[Stretch] = []
    for row in tx.execute(_NEAR, **fridge, low=minute + 1, high=minute + MINUTE - 1):
        tx.execute(_REMOVE, **fridge, opens=row["opens"])
        around = ((row["opens"], minute), (minute + MINUTE, row["closes"]))
        split = [Stretch(opens, closes, row["warmest"]) for opens, closes in around if opens < closes]
        told = next((part for part in split if part.closes - part.opens >= enough), split[-1] if split else None)
        parts += [part._replace(alert=row["alert"]) if part is told else part for part in split]
    tx.executemany(_WRITE, [{**fridge, **part._asdict()} for part in parts])
    return parts


def mark_alerted(tx: Transaction, of: Fridge, opens: int, alert: str) -> None:
    """Keep the message id of the event that tells of a stretch."""
    tx.execute(
        "update stretch set alert = :alert where node = :node and fridge = :fridge and opens = :opens",
        **of._asdict(),
        opens=opens,
        alert=alert,
    )


def forget(tx: Transaction, of: Fridge, before: int) -> None:
    """Delete what no late reading can change any more and nobody was told of."""
    fridge = of._asdict()
    tx.execute(
        "delete from cold_minute where node = :node and fridge = :fridge and minute < :before", **fridge, before=before
    )
    tx.execute(
        "delete from stretch where node = :node and fridge = :fridge and closes < :before and alert is null",
        **fridge,
        before=before,
    )
