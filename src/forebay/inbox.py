"""The inbox: what a consumer has seen, at constant cost per epoch, in the effects' transaction (rules B1 to B5)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from forebay.calm_epochs import OF_ORIGIN, CalmEpochs
from forebay.delivery import Delivery
from forebay.envelope import Identity, Message
from forebay.epoch_rows import (
    ALL,
    ANY_WAIT,
    EPOCHS,
    OF_EPOCH,
    OF_MANY,
    SAVE,
    SAVE_MANY,
    THEIR_NUMBERS,
    WAITING,
    SimpleRow,
    numbered,
    row_of,
    state_of,
)
from forebay.foreseen import Met, foreseen, met_of
from forebay.frame_event import FrameIdentity
from forebay.identity import Origin, Place, parse_place
from forebay.protocol.confirmation import EpochAnswer
from forebay.protocol.inbox import HELD_BYTES, EpochState, OriginInbox
from forebay.sequences import SequenceSet
from forebay.transaction import Row, Transaction

_headers = msgspec.json.Decoder(dict[str, str])

FEW = 3
"""Epochs that are read one by one: that statement reads what waits as well."""

_HOLD = """
    insert into forebay_held (node, service, epoch, sequence, subject, headers, body, stream_sequence, stored_at)
    values (:node, :service, :epoch, :sequence, :subject, :headers, :body, :stream_sequence, :stored_at)"""

_HELD_BYTES = """
    select epoch, sum(length(body) + length(headers)) as bytes from forebay_held
    where node = :node and service = :service group by epoch"""

_FEW = HELD_BYTES // (512 * 1024)
"""Held events that cannot be too many bytes, whatever they are: those of fewer need not be counted."""

_RELEASE = """
    delete from forebay_held
    where node = :node and service = :service and epoch = :epoch and sequence = :sequence
    returning subject, headers, body, stream_sequence, stored_at"""


class Ahead(NamedTuple):
    """What the inbox's rows say of the epochs that a batch is about.

    Attributes:
        met: what was looked for.
        simple: node, service and epoch, lane, the place before it and the watermark, of those with nothing else to say.
        others: node, service and the whole row of the others, and of those that wait.
    """

    met: set[Met]
    simple: list[tuple[tuple[str, str, str], str, str, int]]
    others: list[tuple[str, str, Row]]


def look_ahead(tx: Transaction, deliveries: Sequence[Delivery]) -> Ahead:
    """Read what the inbox will be asked for when these deliveries are taken.

    In a transaction before the one that takes them this is for the partition's one reader alone (S7): until it commits
    nobody else can change these rows. It looks for partitions between its commits, never within one: where it lost a
    partition meanwhile, to a reader that may have gone again, what was read here meets a session that holds none.
    """
    return _ahead(tx, foreseen(deliveries))


def _ahead(tx: Transaction, met: set[Met]) -> Ahead:
    named: dict[tuple[str, str, str], None] = {}
    for node, service, epoch, prev in met:
        named[node, service, epoch] = None
        if prev:
            named[node, service, prev] = None
    keys = list(named)
    simple, others = [], []
    for row in tx.execute(OF_MANY, keys=numbered(keys)):
        key, watermark = keys[int(row["key"])], row["watermark"]
        if watermark is not None:
            simple.append((key, row["lane"], row["prev"], watermark))
        else:
            node, service, epoch = key
            whole = tx.execute(f"{OF_EPOCH} :epoch", node=node, service=service, epoch=epoch)
            others += [(node, service, each) for each in whole]
    if tx.execute(ANY_WAIT):
        origins = msgspec.json.encode({f"{node}/{service}": 0 for node, service, *_ in met}).decode()
        others += [(row["node"], row["service"], row) for row in tx.execute(WAITING, origins=origins)]
    return Ahead(met, simple, others)


class Inbox:
    """The inbox within one transaction: epochs are read when they are first met and written back by ``save``.

    Whoever knows what will be met says so with ``expect``: in a fleet of 10,000 nodes nearly every event of a
    transaction is another origin's, and a statement for each costs more than all the rest of the event.
    """

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._origins: dict[tuple[str, str], OriginInbox] = {}
        self._held_bytes: dict[tuple[str, str], Counter[str]] = {}
        self._calm = CalmEpochs(tx, getattr(tx, "row_cache", None))
        self._passed: dict[tuple[str, str, str], int] = {}
        self._latest = ("", "", "", OriginInbox({}))
        self._looked: set[Met] = set()
        self._detailed: set[tuple[str, str, str]] = set()

    def expect(self, deliveries: Sequence[Delivery], messages: Sequence[Message | None]) -> None:
        """Know at once what ``of`` will be asked for; what is not foreseen is read when it is met.

        Args:
            deliveries: what will be taken.
            messages: of each of them the event, where it was read already.
        """
        met: set[Met] = set()
        if None in messages:
            met = foreseen([each for each, message in zip(deliveries, messages, strict=True) if message is None])
            for node, service, *_ in met:
                self._origin(node, service)  # what else comes of it is looked for as well
        find, epoch = self._calm.find, ""
        for message in messages:
            if message is None or (place := message.place) is None or place.epoch == epoch:
                continue
            epoch = place.epoch  # events of one come together, more often than not
            if not find(message, place):
                met.add(met_of(message, place))
        met -= self._looked
        if len(met) > FEW:
            self.know(_ahead(self._tx, met))

    def know(self, ahead: Ahead) -> None:
        """Know what ``look_ahead`` found before the transaction."""
        for (node, service, epoch), lane, prev, watermark in ahead.simple:
            epochs = self._origin(node, service).epochs
            if epoch not in epochs:
                watermark = self._passed.get((node, service, epoch), watermark)
                epochs[epoch] = EpochState(lane, parse_place(prev), SequenceSet(watermark))
        for node, service, row in ahead.others:
            self._found(node, service, row)
        self._looked |= ahead.met

    def pass_next(self, message: Message, place: Place) -> bool:
        """Pass an event as most are, next in its epoch, while nothing waits; False, and nothing done, for any other."""
        node, service, epoch, origin = self._latest
        if place.epoch != epoch or message.node != node or message.service != service:
            if self._calm.pass_next(message, place):
                return True
            origin = self.of(message, place)
            self._latest = message.node, message.service, place.epoch, origin
        return origin.pass_next(place, message.prev, message.lane)

    def of(self, identity: Identity | FrameIdentity | Message, place: Place) -> OriginInbox:
        """Return the epochs of a message's node and service: its own, the one before it, and all that hold events."""
        origin = self._origin(identity.node, identity.service)
        prev = identity.prev.epoch if identity.prev else ""
        if place.epoch not in origin.epochs or (prev and prev not in origin.epochs):
            met = (identity.node, identity.service, place.epoch, prev)
            if met not in self._looked:
                self._looked.add(met)
                self._read(identity.node, identity.service, EPOCHS, epoch=place.epoch, prev=prev)
        return origin

    def whole(self, node: str, service: str) -> OriginInbox:
        """Return all epochs of a node's service."""
        self._read(node, service, ALL)
        return self._origin(node, service)

    def _origin(self, node: str, service: str) -> OriginInbox:
        found = self._origins.get((node, service))
        if found is None:
            found = self._origins[node, service] = OriginInbox({})
            for epoch, watermark in self._calm.leave(node, service).items():
                self._passed[node, service, epoch] = watermark
        return found

    def _read(self, node: str, service: str, sql: str, **params: str) -> None:
        for row in self._tx.execute(sql, node=node, service=service, **params):
            self._found(node, service, row)

    def _found(self, node: str, service: str, row: Row) -> None:
        """Take on an epoch as its row has it, unless it was met before."""
        epochs = self._origin(node, service).epochs
        if row["epoch"] not in epochs:
            state = epochs[row["epoch"]] = state_of(row)
            state.passed.watermark = self._passed.get((node, service, row["epoch"]), state.passed.watermark)
            if not state.simple:
                self._detailed.add((node, service, row["epoch"]))

    def seen_foreign(self, identity: Identity, delivery: Delivery) -> bool:
        """Record a foreign producer's id; return whether it was there already (I7).

        What is recorded is where its latest copy stands: the id is kept until the stream has passed that.
        """
        known = self._tx.execute(
            "update forebay_foreign set stream_sequence ="
            " case when stream_sequence > :stream_sequence then stream_sequence else :stream_sequence end"
            " where node = :node and service = :service and message_id = :message_id returning 1",
            node=identity.node,
            service=identity.service,
            message_id=identity.message_id,
            stream_sequence=delivery.stream_sequence,
        )
        if known:
            return True
        self._tx.execute(
            "insert into forebay_foreign (node, service, message_id, stream_sequence, seen_at)"
            " values (:node, :service, :message_id, :stream_sequence, :seen_at)",
            node=identity.node,
            service=identity.service,
            message_id=identity.message_id,
            stream_sequence=delivery.stream_sequence,
            seen_at=time.time_ns() // 1_000_000,
        )
        return False

    def hold(self, identity: Identity, place: Place, delivery: Delivery) -> None:
        """Keep an event that waits for a hole to be repaired; the highest is given up where too many are held (B3)."""
        origin = self.of(identity, place)
        origin.hold(place)
        headers = msgspec.json.encode(dict(delivery.headers)).decode()
        if (counted := self._held_bytes.get((identity.node, identity.service))) is not None:
            counted[place.epoch] += len(delivery.body) + len(headers)
        self._tx.execute(
            _HOLD,
            node=identity.node,
            service=identity.service,
            epoch=place.epoch,
            sequence=place.sequence,
            subject=delivery.subject,
            headers=headers,
            body=delivery.body,
            stream_sequence=delivery.stream_sequence,
            stored_at=delivery.stored_at,
        )
        while (excess := origin.overfull(identity.lane, self._bytes_of(identity, origin))) is not None:
            given_up = self.release(Origin(identity.node, identity.service, identity.lane), excess, 0)
            origin.give_up(excess, given_up.stream_sequence)

    def _bytes_of(self, identity: Identity, origin: OriginInbox) -> int:
        """Return what the held events of a message's origin take; 0 where they are few."""
        if origin.held(identity.lane) <= _FEW:
            return 0
        where = identity.node, identity.service
        if where not in self._held_bytes:
            rows = self._tx.execute(_HELD_BYTES, node=identity.node, service=identity.service)
            self._held_bytes[where] = Counter({row["epoch"]: row["bytes"] for row in rows})
        counted = self._held_bytes[where]
        return sum(counted[epoch] for epoch, state in origin.epochs.items() if state.lane == identity.lane)

    def release(self, origin: Origin, place: Place, partition: int) -> Delivery:
        """Take a held event out; it takes effect in this transaction."""
        row = self._tx.execute(
            _RELEASE, node=origin.node, service=origin.service, epoch=place.epoch, sequence=place.sequence
        )[0]
        if (counted := self._held_bytes.get((origin.node, origin.service))) is not None:
            counted[place.epoch] -= len(row["body"]) + len(row["headers"])
        return _delivery(partition, row)

    def save(self) -> None:
        """Write back the epochs that moved: one row each, whatever the number of their events."""
        self._calm.write()
        calm: list[SimpleRow] = []
        simple: list[SimpleRow] = []
        others: list[dict[str, str | int | None]] = []
        for (node, service), origin in self._origins.items():
            latest: dict[str, SimpleRow] = {}
            for epoch, state in origin.epochs.items():
                if not state.changed:
                    continue
                if not state.simple or (self._detailed and (node, service, epoch) in self._detailed):
                    others.append(row_of(node, service, epoch, state))
                    continue
                prev = str(state.prev) if state.prev else "none"
                row = (node, service, epoch, state.lane, prev, state.passed.watermark)
                if self._calm.lasting and origin.is_calm(epoch):
                    if state.lane in latest:
                        simple.append(latest[state.lane])
                    latest[state.lane] = row
                else:
                    simple.append(row)
            (calm if len(latest) <= OF_ORIGIN else simple).extend(latest.values())
        if simple:
            self._tx.execute(SAVE_MANY, rows=numbered(simple))
        if others:
            self._tx.executemany(SAVE, others)
        if calm:
            self._keep(calm)
        self._calm.end()

    def _keep(self, rows: list[SimpleRow]) -> None:
        """Write rows of which nothing is expected but the next event, and remember them."""
        written = self._tx.execute(f"{SAVE_MANY} {THEIR_NUMBERS}", rows=numbered(rows))
        number = {(row["node"], row["service"], row["epoch"]): row["id"] for row in written}
        for node, service, epoch, lane, _, watermark in rows:
            self._calm.keep(node, service, epoch, lane, number[node, service, epoch], watermark)


def epochs_of(tx: Transaction, node: str, service: str, epochs: list[str]) -> dict[str, EpochState]:
    """Return how far the inbox is with the named epochs of a node's service; the unknown ones are left out."""
    found = {}
    for epoch in epochs:
        sql = f"{ALL} and epoch = :epoch"
        for row in tx.execute(sql, node=node, service=service, epoch=epoch):
            found[epoch] = state_of(row)
    return found


def answered(
    tx: Transaction, node: str, service: str, epochs: list[str], floor: Place | None
) -> dict[str, EpochAnswer]:
    """Return what the inbox says of the named epochs when the node asks; the unknown ones are left out (C1).

    Args:
        tx: a snapshot.
        node: whose epochs they are.
        service: of the node.
        epochs: their names.
        floor: what the node no longer has: to tell it what is missing below would let answers grow for ever.
    """
    return {
        epoch: EpochAnswer(
            watermark=state.passed.watermark,
            held=list(state.passed.ranges),
            missing=[
                each
                for each in state.missing
                if each[1] > (floor.sequence if floor is not None and floor.epoch == epoch else 0)
            ],
            wanted=state.wanted,
        )
        for epoch, state in epochs_of(tx, node, service, epochs).items()
    }


def held_between(
    tx: Transaction, node: str, service: str, epoch: str, first: int, last: int, limit: int
) -> list[tuple[int, Delivery]]:
    """Return the held events of a range, ascending, each with its sequence."""
    rows = tx.execute(
        "select sequence, subject, headers, body, stream_sequence, stored_at from forebay_held where node = :node"
        " and service = :service and epoch = :epoch and sequence between :first and :last"
        " order by sequence limit :limit",
        node=node,
        service=service,
        epoch=epoch,
        first=first,
        last=last,
        limit=limit,
    )
    return [(row["sequence"], _delivery(0, row)) for row in rows]


def _delivery(partition: int, row: Row) -> Delivery:
    headers = _headers.decode(row["headers"])
    return Delivery(partition, row["stream_sequence"], row["stored_at"], row["subject"], headers, row["body"])
