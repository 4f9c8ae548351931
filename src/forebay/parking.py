"""Parking: what cannot take effect now is kept with its reason, and the later events of its key wait behind it (F1).

A key's scope is its origin (node, service, lane). The oldest live row of a key, its *head*, carries the time of its
next retry; the rows behind it carry none. What stands alone blocks nothing: an event without a key, a foreign one, one
that cannot be read, a late one. Nothing leaves but by a retry that succeeds, or discarded, with a reason, on record.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from forebay.delivery import Delivery
from forebay.envelope import Identity, percent_decode
from forebay.errors import HeaderError
from forebay.frame import MAX_EVENTS
from forebay.frame_event import FrameIdentity
from forebay.identity import Origin, Place
from forebay.sequences import Range, joined, without
from forebay.transaction import Row, Transaction

FIRST_RETRY = 1.0
"""Seconds until the first retry of a parked event; they double with each attempt, with full jitter above half."""

LONGEST_RETRY = 300.0
"""Seconds between retries, at most."""

_DIGITS = 18
_LARGEST = 10**_DIGITS - 1
"""Of a sequence (I4)."""

BEHIND = "behind"
LATE = "late"
ABANDONED = "abandoned"
WITHHELD = "withheld"
HANDLER = "handler"
FOREIGN_LANE = "foreign-lane"

_KEY = "node = :node and service = :service and lane = :lane and key = :key and discarded_at is null and alone = 0"

_INSERT = """
    insert into forebay_parked (digest, reason, detail, subject, headers, body, node, service, lane, epoch, sequence,
      message_id, key, partition, stream_sequence, stored_at, parked_at, alone, wanted, attempts, retry_at)
    values (:digest, :reason, :detail, :subject, :headers, :body, :node, :service, :lane, :epoch, :sequence,
      :message_id, :key, :partition, :stream_sequence, :stored_at, :parked_at, :alone, :wanted, :attempts, :retry_at)
    on conflict (digest) do nothing"""

_headers = msgspec.json.Decoder(dict[str, str])


class Whose(NamedTuple):
    """Which parked events are a reader's: those of these services of its own node, or all others.

    A service that follows others and reads a stream as well has two readers, and one parking.
    """

    node: str
    services: tuple[str, ...]
    followed: bool

    def condition(self) -> tuple[str, dict[str, str | int]]:
        """Return it in SQL, with its parameters."""
        names = {f"service_{at}": name for at, name in enumerate(self.services)}
        among = f"node = :own_node and service in ({', '.join(f':{name}' for name in names)})"
        return f"case when {among} then 1 else 0 end = :followed", {
            **names,
            "own_node": self.node,
            "followed": int(self.followed),
        }


class Parked(NamedTuple):
    """One parked event as a retry gets it.

    Attributes:
        placed: whether its place was read and passed; an origin waits behind what could not even be placed.
    """

    id: int
    message_id: str
    placed: bool
    wanted: bool
    alone: bool
    attempts: int
    delivery: Delivery


class Parking:
    """The parking within one transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._any: bool | None = None
        self._blocked: dict[tuple[Origin, str], bool] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing waits that others have to wait behind."""
        if self._any is None:
            live = "select 1 from forebay_parked where discarded_at is null and alone = 0 limit 1"
            self._any = bool(self._tx.execute(live))
        return not self._any

    def blocks(self, identity: Identity) -> bool:
        """Whether an event of the same key waits, so that this later one has to wait behind it."""
        key = None if self.empty else key_of(identity)
        if key is None or identity.place is None:
            return False
        origin = origin_of(identity)
        found = self._blocked.get((origin, key))
        if found is None:
            rows = self._tx.execute(f"select 1 from forebay_parked where {_KEY} limit 1", **_of(origin, key))
            found = self._blocked[origin, key] = bool(rows)
        return found

    def park(
        self,
        delivery: Delivery,
        identity: Identity | None,
        reason: str,
        detail: str,
        *,
        alone: bool = False,
        on_request: bool = False,
        digest: str = "",
    ) -> None:
        """Keep a message, once: what is kept under the same digest, discarded or not, is not kept again.

        Args:
            delivery: the message as it came.
            identity: who wrote it; None where not even that could be read: it is never retried by itself.
            reason: the word that it is listed under.
            detail: a sentence for people.
            alone: let it block nothing, whatever its key.
            on_request: retry it only when somebody asks for it.
            digest: what it is known by; that of all of it where nothing is given.
        """
        key = key_of(identity) if identity else None
        place = identity.place if identity else None
        alone = alone or key is None or place is None
        waits = identity is None or on_request or reason == BEHIND
        headers = msgspec.json.encode(dict(delivery.headers), order="deterministic")
        subject = delivery.subject.split(".")
        self._insert(
            digest=digest or _digest(delivery.subject.encode(), headers, delivery.body),
            reason=reason,
            detail=detail,
            subject=delivery.subject,
            headers=headers.decode(),
            body=delivery.body,
            node=identity.node if identity else subject[2] if len(subject) == 5 else None,
            service=identity.service if identity else subject[3] if len(subject) == 5 else None,
            lane=identity.lane if identity else "",
            place=place,
            message_id=identity.message_id if identity else delivery.headers.get("Nats-Msg-Id"),
            key=key,
            partition=delivery.partition,
            stream_sequence=delivery.stream_sequence,
            stored_at=delivery.stored_at,
            alone=alone,
            wanted=False,
            retry_at=None if waits else after(0),
        )
        if identity and key is not None and not alone:
            self._note(origin_of(identity), key)

    def park_frame(self, frame: FrameIdentity, delivery: Delivery, reason: str, detail: str) -> bool:
        """Keep a frame that cannot be read; return whether it has an event that no frame kept for that has.

        Its places are not passed, so that the node sends them again, in frames that are cut elsewhere by then. The new
        frame takes the place of those that are wholly within it.
        """
        own = _digest(frame.node.encode(), frame.service.encode(), frame.epoch.encode())
        # Digits and lower-case letters, and all of one length: every collation puts them in this order.
        begin, end = _at(own, max(0, frame.first - MAX_EVENTS), 0), _at(own, frame.last, _LARGEST)
        rows = self._tx.execute(
            "select id, digest, reason, discarded_at from forebay_parked where digest between :begin and :end",
            begin=begin,
            end=end,
        )
        kept = [(row, _range_of(row["digest"])) for row in rows]
        if not without([(frame.first, frame.last)], joined(places for _, places in kept)):
            return False
        for row, (first, last) in kept:
            within = frame.first <= first and last <= frame.last
            if within and row["reason"] == reason and row["discarded_at"] is None:
                self._remove(row["id"])
        self.park(delivery, None, reason, detail, alone=True, digest=_at(own, frame.first, frame.last))
        return True

    def want(self, origin: Origin, place: Place, key: str | None, partition: int) -> None:
        """Keep the place of a withheld event: its key waits for the body (O4)."""
        self._insert(
            digest=_digest(b"withheld", origin.node.encode(), origin.service.encode(), str(place).encode()),
            reason=WITHHELD,
            detail="the broker refuses it: the body is still on the node",
            subject="",
            headers="{}",
            body=b"",
            node=origin.node,
            service=origin.service,
            lane=origin.lane,
            place=place,
            message_id=str(place),
            key=key,
            partition=partition,
            stream_sequence=0,
            stored_at=0,
            alone=key is None,
            wanted=True,
            retry_at=None,
        )
        if key is not None:
            self._note(origin, key)

    def fill(self, origin: Origin, place: Place, delivery: Delivery) -> None:
        """Give a withheld event its body; it is retried at once if it is the head of its key."""
        row = self._wanted(origin, place)
        if row is None:
            return
        self._tx.execute(
            "update forebay_parked set wanted = 0, detail = 'its body came later', subject = :subject,"
            " headers = :headers, body = :body, stream_sequence = :stream_sequence, stored_at = :stored_at"
            " where id = :id",
            id=row["id"],
            subject=delivery.subject,
            headers=msgspec.json.encode(dict(delivery.headers), order="deterministic").decode(),
            body=delivery.body,
            stream_sequence=delivery.stream_sequence,
            stored_at=delivery.stored_at,
        )
        if row["alone"]:
            self._tx.execute("update forebay_parked set retry_at = :now where id = :id", now=_now(), id=row["id"])
        else:
            self.wake(origin, row["key"])

    def lose(self, origin: Origin, place: Place) -> None:
        """Take a withheld place out: nobody has its body any more, and its key goes on (B7, O3)."""
        row = self._wanted(origin, place)
        if row is not None:
            self._remove(row["id"])

    def take_due(self, id: int) -> bool:  # noqa: A002 - the column's name
        """Take a row out for its retry; False where it is no longer to be retried: discarded, or abandoned since."""
        (row,) = self._tx.execute(
            "select count(*) as due from forebay_parked"
            " where id = :id and retry_at is not null and discarded_at is null",
            id=id,
        )
        if row["due"]:
            self._remove(id)
        return bool(row["due"])

    def _remove(self, id: int) -> None:  # noqa: A002 - the column's name
        """Take a row out, and let the next of its key be retried at once."""
        rows = self._tx.execute(
            "delete from forebay_parked where id = :id returning node, service, lane, key, alone", id=id
        )
        self._blocked.clear()
        self._any = None
        if rows and not rows[0]["alone"]:
            self.wake(Origin(rows[0]["node"], rows[0]["service"], rows[0]["lane"]), rows[0]["key"])

    def _wanted(self, origin: Origin, place: Place) -> Row | None:
        rows = self._tx.execute(
            "select id, key, alone from forebay_parked where epoch = :epoch and sequence = :sequence"
            " and node = :node and service = :service and wanted = 1 and discarded_at is null",
            epoch=place.epoch,
            sequence=place.sequence,
            node=origin.node,
            service=origin.service,
        )
        return rows[0] if rows else None

    def head(self, origin: Origin, key: str) -> int:
        """Return the id of the oldest live row of a key; there is one."""
        (row,) = self._tx.execute(f"select min(id) as id from forebay_parked where {_KEY}", **_of(origin, key))
        return int(row["id"])

    def wake(self, origin: Origin, key: str) -> None:
        """Let the head of a key be retried at once, unless its body is still wanted."""
        self._tx.execute(
            "update forebay_parked set retry_at = :now"
            f" where id = (select min(id) from forebay_parked where {_KEY}) and wanted = 0",
            now=_now(),
            **_of(origin, key),
        )

    def _note(self, origin: Origin, key: str) -> None:
        self._any = True
        self._blocked[origin, key] = True

    def _insert(self, *, place: Place | None, **values: object) -> None:
        self._tx.execute(
            _INSERT,
            **values,
            epoch=place.epoch if place else None,
            sequence=place.sequence if place else None,
            attempts=0 if values["retry_at"] is None else 1,
            parked_at=_now(),
        )


def leave_branch(tx: Transaction, origin: Origin, abandoned: Callable[[Place], bool]) -> None:
    """Let what waits in its key's queue and was left behind by a restore stand alone: it is emitted again (B5)."""
    rows = tx.execute(
        "select id, epoch, sequence, key, headers from forebay_parked where node = :node and service = :service"
        " and lane = :lane and key is not null and discarded_at is null and alone = 0 order by id",
        node=origin.node,
        service=origin.service,
        lane=origin.lane,
    )
    keys = set()
    for row in rows:
        caused = "forebay-cause" in _headers.decode(row["headers"])
        if caused and abandoned(Place(row["epoch"], row["sequence"])):
            tx.execute(
                "update forebay_parked set alone = 1, attempts = 0, retry_at = null, reason = :reason,"
                " detail = 'a restore of its emitter left it behind: it is emitted again' where id = :id",
                id=row["id"],
                reason=ABANDONED,
            )
            keys.add(row["key"])
    for key in keys:
        Parking(tx).wake(origin, key)


def after(attempts: int) -> int:
    """Return when the retry after so many attempts is due, in milliseconds since 1970."""
    delay = min(FIRST_RETRY * 2 ** min(attempts, 30), LONGEST_RETRY)
    return _now() + int(delay * random.uniform(0.5, 1.0) * 1000)  # noqa: S311 - not a secret


def key_of(identity: Identity) -> str | None:
    """Return the ordering key of an event, whether or not the rest of it can be read."""
    key = identity.headers.get("ce-partitionkey")
    try:
        return percent_decode(key) if key is not None else None
    except HeaderError:
        return key


def origin_of(identity: Identity) -> Origin:
    """Return the origin of an event."""
    return Origin(identity.node, identity.service, identity.lane)


def _of(origin: Origin, key: str) -> dict[str, str]:
    return {"node": origin.node, "service": origin.service, "lane": origin.lane, "key": key}


def _at(digest: str, first: int, last: int) -> str:
    """Return what a frame of places is known by, given the digest of its epoch."""
    return f"{digest}{first:0{_DIGITS}}{last:0{_DIGITS}}"


def _range_of(digest: str) -> Range:
    return int(digest[-2 * _DIGITS : -_DIGITS]), int(digest[-_DIGITS:])


def _digest(*parts: bytes) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def _now() -> int:
    return time.time_ns() // 1_000_000
