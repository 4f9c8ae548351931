"""The outbox: events become rows in the transaction that caused them, and stay until they are confirmed.

A place is taken inside the committing transaction (I3): sequences are dense, a rolled-back unit leaves no hole, and a
crash at any line leaves either the domain rows and their events or neither.
"""

from __future__ import annotations

import time as wall
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

import msgspec

from forebay import dropping, freeing
from forebay.clock import HybridClock
from forebay.drafts import COLUMNS, NO_EXTRA, Draft, Entry, Extra, Tail, Tails, entry_of
from forebay.draining import DrainRate
from forebay.envelope import Message, parse_time
from forebay.errors import BudgetSpentError, ConfigurationError
from forebay.identity import Origin, Place, checked_name, parse_place
from forebay.lanes import Lane
from forebay.protocol.confirmation import ConfirmedBy
from forebay.runs import WITHHELD, WRITTEN, Run, read_run
from forebay.sequences import Range
from forebay.subjects import command_subject, event_subject
from forebay.transaction import Transaction

_ORIGIN = """
    select o.id as origin, o.bytes, e.id as epoch_id, e.epoch, e.opening, e.last
    from forebay_origin o left join forebay_epoch e
      on e.id = (select max(id) from forebay_epoch where origin = o.id)
    where o.lane = :lane and o.destination = :destination"""

_LARGEST = 10**18
"""Above every sequence."""

_EPOCHS = """
    select e.id, e.epoch, e.prev from forebay_epoch e join forebay_origin o on o.id = e.origin
    where o.lane = :lane and o.destination = :destination
      and e.id >= coalesce((select id from forebay_epoch where epoch = :epoch),
                           (select id from forebay_epoch where epoch = o.floor_epoch), 0)
    order by e.id"""

_COUNT = """
    select count(*) as events, coalesce(sum(bytes), 0) as bytes from
      (select bytes from forebay_outbox where epoch = :epoch_id and sequence > :after limit :limit) as ahead"""

_ANY = """
    select 1 from forebay_epoch e join forebay_origin o on o.id = e.origin
    where o.lane = :lane and o.destination = ''
      and e.id >= coalesce((select id from forebay_epoch where epoch = :epoch),
                           (select id from forebay_epoch where epoch = o.floor_epoch), 0)
      and exists (select 1 from forebay_outbox r where r.epoch = e.id
                    and r.sequence > case when e.epoch = :epoch then :sequence else 0 end)
    limit 1"""

_BYTES_AT_ONCE = 1024 * 1024
"""About how many bytes of rows are handed to the database at once: it may keep them until the next come."""

_TABLES = ("forebay_outbox", "forebay_epoch", "forebay_origin")
"""What ``Outbox.flush`` writes, and what a ``Tail`` was read from."""


@lru_cache(maxsize=1024)
def names_outbox(sql: str) -> bool:
    """Whether a statement may be about the outbox's tables."""
    lowered = sql.lower()
    return any(table in lowered for table in _TABLES)


class Outbox:
    """The outbox of one service's store.

    Its methods take the transaction that they work in; none of them commits. The store is bound to its node (I6).

    Attributes:
        sheddable: per lane, the place up to which rows may be freed at once for want of room: all needed consumers have
            confirmed them. Kept in memory by what asks the consumers; empty while nothing is known.
        sheddable_to: the same for commands, per lane and destination.
        drains: per lane, how fast its events leave the disk.
        sends: whether it may hold commands: only the core's may.
    """

    def __init__(self, node: str, service: str, lanes: Sequence[Lane], *, sends: bool = False) -> None:
        self.node = checked_name(node, "node")
        self.service = checked_name(service, "service")
        self.lanes = {lane.name: lane for lane in lanes}
        self.clock = HybridClock()
        self.sends = sends
        self.sheddable: Mapping[str, Place] = {}
        self.sheddable_to: dict[tuple[str, str], Place] = {}
        self.drains = {lane.name: DrainRate() for lane in lanes}
        self._extra = msgspec.json.Decoder(Extra)

    # --- opening

    def bind(self, tx: Transaction, store_id: str) -> str:
        """Bind a new store to this node and service, or check that it is theirs; return the store's id.

        Raises:
            ConfigurationError: the store belongs to another node or service (I6), or a lane that still has events is
                not declared.
        """
        rows = tx.execute("select id, node, service from forebay_store")
        if not rows:
            tx.execute(
                "insert into forebay_store (one, id, node, service) values (1, :id, :node, :service)",
                id=store_id,
                node=self.node,
                service=self.service,
            )
        elif (rows[0]["node"], rows[0]["service"]) != (self.node, self.service):
            raise ConfigurationError(
                f"this store belongs to service {rows[0]['service']!r} of node {rows[0]['node']!r}, "
                f"not to {self.service!r} of {self.node!r}",
                hint="give the data folder of this node, or the node's own name",
            )
        stranded = tx.execute(
            "select o.lane from forebay_origin o where o.bytes > 0 or exists (select 1"
            " from forebay_dropped d join forebay_epoch e on e.id = d.epoch where e.origin = o.id)"
        )
        if gone := [row["lane"] for row in stranded if row["lane"] not in self.lanes]:
            raise ConfigurationError(
                f"service {self.service!r} has events in lane {gone[0]!r}, which it does not declare any more",
                hint="declare the lane until they are confirmed and freed",
            )
        tx.executemany(
            "insert into forebay_origin (lane) values (:lane) on conflict do nothing",
            [{"lane": lane} for lane in self.lanes],
        )
        self.clock.resume(tx.execute("select coalesce(max(clock), 0) as clock from forebay_origin")[0]["clock"])
        return str(rows[0]["id"]) if rows else store_id

    # --- writing

    def append(self, tx: Transaction, tails: Tails, draft: Draft) -> Place:
        """Take the next place of the draft's lane; the row is written by ``flush``, in the same transaction.

        Raises:
            ConfigurationError: the service has no such lane.
            EventTooLargeError: the body is above ``MAX_EVENT_BYTES``, or what goes into headers above
                ``MAX_METADATA_BYTES``.
            BudgetSpentError: the lane's budget is spent.
        """
        entry = entry_of(draft)
        tail = self._tail(tx, tails, draft.lane, draft.destination)
        self._make_room(tx, tail, self.lanes[draft.lane], entry, draft.destination)
        return self._take(tx, tail, [entry], entry[-1])

    def extend(self, tx: Transaction, tails: Tails, lane: str, entries: Sequence[Entry]) -> Place:
        """Take the next places of a lane for many events at once; return the first, from which they run on.

        What it leaves is what appending one after the other leaves.

        Raises:
            ConfigurationError: the service has no such lane.
            BudgetSpentError: the lane's budget is spent; no place was taken, but in a lane that drops.
        """
        tail = self._tail(tx, tails, lane, "")
        known, first = self.lanes[lane], Place(tail.epoch, tail.last + 1)
        size = sum(entry[-1] for entry in entries)
        limit = known.drop_from_bytes
        if tail.bytes + tail.size + size > limit:
            self._shed(tx, tail, known, tail.bytes + tail.size + size - limit, "")
        lacking = tail.bytes + tail.size + size - limit
        if lacking <= 0:
            self._take(tx, tail, entries, size)
        elif known.drops:
            for entry in entries:
                self._make_room(tx, tail, known, entry, "")
                self._take(tx, tail, [entry], entry[-1])
        else:
            raise BudgetSpentError(lane, known.budget_bytes, self.drains[lane].retry_after(lacking))
        return first

    def _take(self, tx: Transaction, tail: Tail, entries: Sequence[Entry], size: int) -> Place:
        """Take the next places; whatever can fail came before: a unit may catch the error and go on."""
        if not entries:
            return Place(tail.epoch, tail.last)
        if tail.epoch_id is None:
            self._begin_epoch(tx, tail)
        first, tick, now = tail.last + 1, self.clock.ticks(len(entries)), wall.time_ns() // 1_000_000
        epoch_id = tail.epoch_id
        tail.rows += [
            (*entry, epoch_id, sequence, hlc, now)
            for entry, sequence, hlc in zip(entries, count(first), count(tick), strict=False)
        ]
        tail.last += len(entries)
        tail.size += size
        return Place(tail.epoch, first)

    def flush(self, tx: Transaction, tails: Tails) -> None:
        """Write what was appended: the rows, the epochs' ends and the origins' books."""
        for tail in tails.values():
            self._write(tx, tail)

    def _write(self, tx: Transaction, tail: Tail) -> None:
        if not tail.rows:
            return
        at_once = max(1, len(tail.rows) * _BYTES_AT_ONCE // max(tail.size, 1))
        for at in range(0, len(tail.rows), at_once):
            tx.insert_many("forebay_outbox", COLUMNS, tail.rows[at : at + at_once])
        tx.execute("update forebay_epoch set last = :last where id = :id", last=tail.last, id=tail.epoch_id)
        tx.execute(
            "update forebay_origin set bytes = bytes + :size, written = written + :count, clock = :clock"
            " where id = :id",
            size=tail.size,
            count=len(tail.rows),
            clock=tail.rows[-1][COLUMNS.index("hlc")],
            id=tail.origin,
        )
        tail.bytes, tail.size, tail.rows = tail.bytes + tail.size, 0, []

    def _begin_epoch(self, tx: Transaction, tail: Tail) -> None:
        tail.epoch_id = tx.execute(
            "insert into forebay_epoch (origin, epoch, opening, prev)"
            " values (:origin, :epoch, :opening, :prev) returning id",
            origin=tail.origin,
            epoch=tail.epoch,
            opening=tx.opening,
            prev=tail.prev,
        )[0]["id"]

    def _make_room(self, tx: Transaction, tail: Tail, lane: Lane, entry: Entry, destination: str) -> None:
        """See to it that an entry fits its lane: shed what is confirmed, then drop, where the lane does (O3).

        Raises:
            BudgetSpentError: it does not fit, and what was tried is kept: it changes nothing that counts.
        """
        kind, key, size, limit = entry[0], entry[2], entry[-1], lane.drop_from_bytes

        def lacking() -> int:
            return tail.bytes + tail.size + size - limit

        if lacking() <= 0:
            return
        self._shed(tx, tail, lane, lacking(), destination)
        if lacking() > 0 and lane.drops and size <= limit:
            self._write(tx, tail)  # what this very unit wrote is among the oldest too
            if lane.when_full == "drop-oldest":
                tail.bytes -= dropping.drop_oldest(tx, tail.origin, lacking())
            else:
                tail.bytes -= dropping.drop_replaced(tx, tail.origin)
                if lacking() > 0 and key is not None:
                    tail.bytes -= dropping.drop_of_key(tx, tail.origin, kind, key, lacking())
        if lacking() > 0:
            raise BudgetSpentError(lane.name, lane.budget_bytes, self.drains[lane.name].retry_after(lacking()))

    def _shed(self, tx: Transaction, tail: Tail, lane: Lane, need: int, destination: str) -> None:
        upto = self.sheddable_to.get((lane.name, destination)) if destination else self.sheddable.get(lane.name)
        if upto is not None:
            tail.bytes -= freeing.shed(tx, lane.name, upto, need, destination)

    def _tail(self, tx: Transaction, tails: Tails, lane: str, destination: str) -> Tail:
        tail = tails.get((lane, destination))
        if tail is None:
            tail = tails[lane, destination] = self._open_tail(tx, lane, destination)
        return tail

    def _open_tail(self, tx: Transaction, lane: str, destination: str) -> Tail:
        if lane not in self.lanes:
            known = ", ".join(self.lanes) or "none"
            raise ConfigurationError(
                f"service {self.service!r} has no lane {lane!r} (it has: {known})",
                hint=f"declare it: Service({self.service!r}, lanes=[Lane({lane!r})])",
            )
        if destination:
            tx.execute(
                "insert into forebay_origin (lane, destination) values (:lane, :destination) on conflict do nothing",
                lane=lane,
                destination=destination,
            )
        return Tail(tx.execute(_ORIGIN, lane=lane, destination=destination)[0], tx.opening)

    # --- reading, for the relay

    def within(
        self,
        tx: Transaction,
        lane: str,
        epoch: str,
        places: Range,
        *,
        limit: int,
        max_bytes: int,
        destination: str = "",
    ) -> list[Message]:
        """Return those events of a range of places that are still here, in order, at least one; withheld ones too."""
        run = self.run_within(tx, epoch, places, limit=limit, max_bytes=max_bytes)
        return [self.message(lane, run, row, destination) for row in run.rows]

    def waiting(self, tx: Transaction, lane: str, place: Place | None, upto: int) -> tuple[int, int]:
        """Return how many events of a lane stand behind a place, no more than ``upto`` of them, and their bytes."""
        events = size = 0
        for epoch in tx.execute(_EPOCHS, lane=lane, destination="", epoch=place.epoch if place else ""):
            after = place.sequence if place and epoch["epoch"] == place.epoch else 0
            counted = tx.execute(_COUNT, epoch_id=epoch["id"], after=after, limit=upto - events)
            events, size = events + int(counted[0]["events"]), size + int(counted[0]["bytes"])
        return events, size

    def any_after(self, tx: Transaction, lane: str, place: Place | None) -> bool:
        """Whether a lane has events after a place (None: any)."""
        epoch, sequence = place or ("", 0)
        return bool(tx.execute(_ANY, lane=lane, epoch=epoch, sequence=sequence))

    def runs_after(
        self,
        tx: Transaction,
        lane: str,
        place: Place | None,
        *,
        limit: int,
        max_bytes: int,
        destination: str = "",
    ) -> list[Run]:
        """Return an origin's rows after a place (None: from the oldest), in order, at least one if there is one.

        Those of each epoch stand in a run; no run is empty.
        """
        found: list[Run] = []
        for epoch in tx.execute(_EPOCHS, lane=lane, destination=destination, epoch=place.epoch if place else ""):
            after = place.sequence if place and epoch["epoch"] == place.epoch else 0
            run = read_run(tx, epoch, after, _LARGEST, [WRITTEN], limit, max_bytes, at_least=0 if found else 1)
            if run.rows:
                found.append(run)
            limit, max_bytes = limit - len(run.rows), max_bytes - run.bytes
            if run.more or limit <= 0:
                break
        return found

    def run_within(self, tx: Transaction, epoch: str, places: Range, *, limit: int, max_bytes: int) -> Run:
        """Return what ``within`` does as rows."""
        epochs = tx.execute("select id, epoch, prev from forebay_epoch where epoch = :epoch", epoch=epoch)
        if not epochs:
            return Run(epoch, "none", [], 0, more=False)
        return read_run(tx, epochs[0], places[0] - 1, places[1], [WRITTEN, WITHHELD], limit, max_bytes, at_least=1)

    def subject(self, message: Message) -> str:
        """The subject that a message of this outbox is published on."""
        if message.destination:
            return command_subject(message.destination, message.kind)
        return event_subject(self.node, self.service, message.kind)

    def extra_of(self, text: str | None) -> Extra:
        """Return what a row says in its column ``extra``."""
        return self._extra.decode(text) if text else NO_EXTRA

    def message(self, lane: str, run: Run, row: Sequence[Any], destination: str = "") -> Message:
        """Return a row of a run as the message that it is."""
        sequence, kind, type_, key, time, hlc, cause, extra_text, body, _ = row
        extra = self.extra_of(extra_text)
        place = Place(run.epoch, sequence)
        return Message(
            message_id=str(place),
            node=self.node,
            service=self.service,
            kind=kind,
            id=extra.id or str(place),
            source=extra.source or f"/{self.node}/{self.service}",
            type=type_,
            time=parse_time(time),
            key=key,
            content_type=extra.content_type,
            attributes=extra.attributes,
            lane=lane,
            place=place,
            prev=parse_place(run.prev),
            hlc=hlc,
            cause=cause,
            traceparent=extra.traceparent,
            tracestate=extra.tracestate,
            body=body,
            destination=destination,
        )

    # --- confirmation

    def has_earlier_events(self, tx: Transaction) -> bool:
        """Whether events are here that were written before the store was opened."""
        return bool(
            tx.execute(
                "select 1 from forebay_epoch e where e.opening <> :opening"
                " and exists (select 1 from forebay_origin o where o.id = e.origin and o.destination = '')"
                " and exists (select 1 from forebay_outbox r where r.epoch = e.id) limit 1",
                opening=tx.opening,
            )
        )

    def confirmed_by(self, tx: Transaction) -> ConfirmedBy | None:
        """Return the consumers that this service's events need, as last heard from the core (S3)."""
        text = tx.execute("select confirmed_by from forebay_store")[0]["confirmed_by"]
        return None if text is None else msgspec.json.decode(text, type=ConfirmedBy)

    def remember_confirmed_by(self, tx: Transaction, known: ConfirmedBy) -> None:
        """Keep a newer list of consumers; an older one changes nothing."""
        current = self.confirmed_by(tx)
        if current is None or known.version > current.version:
            tx.execute("update forebay_store set confirmed_by = :text", text=msgspec.json.encode(known).decode())

    def origin(self, lane: str) -> Origin:
        """The origin of one of this outbox's lanes."""
        return Origin(self.node, self.service, lane)
