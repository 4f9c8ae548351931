"""Snapshots: the state that an aggregate's events come to, kept so that not all of them are read again.

A snapshot is only a shortcut: the events are the truth. One that another schema wrote, that cannot be read, or that is
ahead of the history is passed over, and what it said is folded anew.
"""

from __future__ import annotations

import logging
import zlib
from typing import TypeVar

import msgspec

from forebay.history import Instance
from forebay.transaction import Transaction

T = TypeVar("T", bound=msgspec.Struct)

logger = logging.getLogger(__name__)

_SAVE = """
    insert into forebay_snapshot (name, instance, version, schema, state)
    values (:name, :instance, :version, :schema, :state)
    on conflict (name, instance) do update set
      version = excluded.version, schema = excluded.schema, state = excluded.state"""

_FIND = """
    select {what} from forebay_snapshot
    where name = :name and instance = :instance and schema = :schema{condition}"""

_STATE = _FIND.format(what="version, state", condition=" and version <= :upto")
_ANY_STATE = _FIND.format(what="version, state", condition="")
_VERSION = _FIND.format(what="version", condition="")


def schema_of(state: type[msgspec.Struct], number: int, folded: list[str]) -> str:
    """Name what snapshots of a type depend on: the number that its author gave, its fields, and the events folded in.

    A field or an event more is thus noticed by itself; a fold that counts differently is not, and needs a new number.
    """
    said = msgspec.json.encode([msgspec.json.schema(state), sorted(folded)], order="sorted")
    return f"{number}-{zlib.crc32(said):08x}"


def save(tx: Transaction, of: Instance, version: int, schema: str, state: msgspec.Struct) -> None:
    """Write the snapshot of a version in place of the one before."""
    body = msgspec.json.encode(state)
    tx.execute(_SAVE, name=of.name, instance=of.id, version=version, schema=schema, state=body)


def version_of(tx: Transaction, of: Instance, schema: str) -> int:
    """Return the version of the snapshot that this schema wrote; 0 where there is none."""
    rows = tx.execute(_VERSION, name=of.name, instance=of.id, schema=schema)
    return int(rows[0]["version"]) if rows else 0


def find(tx: Transaction, of: Instance, schema: str, state: type[T], upto: int | None) -> tuple[int, T] | None:
    """Return version and state of the snapshot that this schema wrote, unless it is above version ``upto``."""
    if upto is None:
        rows = tx.execute(_ANY_STATE, name=of.name, instance=of.id, schema=schema)
    else:
        rows = tx.execute(_STATE, name=of.name, instance=of.id, schema=schema, upto=upto)
    if not rows:
        return None
    try:
        return int(rows[0]["version"]), msgspec.json.decode(rows[0]["state"], type=state)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        extra = {"aggregate": of.name, "instance": of.id, "reason": str(error)}
        logger.warning("snapshot.ignored", extra=extra)
        return None
