"""Judging a fridge: its latest reading against its limit. Alarms are raised on the node, without a link."""

from __future__ import annotations

from contracts.coldchain import AlarmCleared, AlarmRaised
from edge.coldchain.moments import moment
from forebay import UnitOfWork

ALARMS_KEPT = 1000
"""Alarms of a fridge that are kept."""


def judge(tx: UnitOfWork, fridge: str) -> None:
    """Raise or clear a fridge's alarm as its latest reading and its limit say, and tell the core."""
    (row,) = tx.execute("select * from fridge where fridge = :fridge", fridge=fridge)
    at, degrees, limit = row["at"], row["milli_degrees"], row["max_milli_degrees"]
    if degrees is None:
        return
    time = moment(at)
    if row["alarm_since"] is None:
        if limit is not None and degrees > limit:
            tx.execute("update fridge set alarm_since = :at where fridge = :fridge", at=at, fridge=fridge)
            tx.execute(
                "insert into alarm (fridge, raised_at, milli_degrees, max_milli_degrees)"
                " values (:fridge, :at, :degrees, :limit)",
                fridge=fridge,
                at=at,
                degrees=degrees,
                limit=limit,
            )
            tx.emit(AlarmRaised(fridge=fridge, milli_degrees=degrees, max_milli_degrees=limit), time=time)
            _prune(tx, fridge)
    elif limit is None or degrees <= limit - row["hysteresis"]:
        tx.execute("update fridge set alarm_since = null where fridge = :fridge", fridge=fridge)
        tx.execute(
            "update alarm set cleared_at = :at where fridge = :fridge and cleared_at is null", at=at, fridge=fridge
        )
        tx.emit(AlarmCleared(fridge=fridge, milli_degrees=degrees, max_milli_degrees=limit), time=time)


def _prune(tx: UnitOfWork, fridge: str) -> None:
    tx.execute(
        "delete from alarm where fridge = :fridge and id <= coalesce((select id from alarm where fridge = :fridge"
        " order by id desc limit 1 offset :kept), 0)",
        fridge=fridge,
        kept=ALARMS_KEPT,
    )
