"""Requests of the shop floor: each has a name that its client gave it, and counts once however often it is sent.

Names are known for 30 days; what a client sends again later counts again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Generic, NamedTuple, TypeVar

import msgspec

from contracts.stock import Number, StockLine, Time
from forebay import UnitOfWork
from forebay.problems import ProblemError

T = TypeVar("T")

KEPT = 30 * 24 * 3600
"""Seconds for which a request is known at least: a client that got no answer asks again, hours or days later."""

FORGET_STEP = 16
"""Old requests that one write forgets: no write pays for a long silence."""

# No control characters, as in the keys of events; the end is not written as $, which also matches before a line feed.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]+(?![\s\S])")]
# An order stands in a path and in a timer's name: printable ASCII without space and slash.
Order = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[!-.0-~]+(?![\s\S])")]
Lines = Annotated[list[StockLine], msgspec.Meta(min_length=1, max_length=500)]


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A delivery that came in at a time; ``request`` names it."""

    request: Name
    at: Time
    lines: Lines


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many pieces were counted at a time; with a version only if nothing happened to the product since it."""

    request: Name
    at: Time
    product: Number
    counted: Annotated[int, msgspec.Meta(ge=0, le=10**9)]
    version: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Reserve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keep pieces for an order until a time, in place of what is kept for it."""

    request: Name
    order: Order
    lines: Lines
    until: Time


class OfOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Release or collect what is kept for an order."""

    request: Name
    order: Order


class Answered(NamedTuple, Generic[T]):
    """An answer, and whether it is the first to this request."""

    body: T
    new: bool


def once(
    tx: UnitOfWork, what: str, said: Receipt | Count | Reserve | OfOrder, answer: type[T], act: Callable[[], T]
) -> Answered[T]:
    """Do what is asked for, or return the answer that the same request got before.

    Raises:
        ProblemError: 409, a request of that name said something else. What ``act`` raises leaves nothing.
    """
    text = msgspec.json.encode([what, said]).decode()
    now = int(time.time())
    rows = tx.execute("select said, answer from request where request = :request", request=said.request)
    if rows:
        if rows[0]["said"] != text:
            detail = f"request {said.request!r} was made before with other contents"
            raise ProblemError(409, "Conflict", detail, "request")
        return Answered(msgspec.json.decode(rows[0]["answer"], type=answer), new=False)
    done = act()
    tx.execute(
        "insert into request (request, said, answer, made_at) values (:request, :said, :answer, :now)",
        now=now,
        request=said.request,
        said=text,
        answer=msgspec.json.encode(done).decode(),
    )
    tx.execute("update request set made_at = :now where made_at = 0", now=now)  # an older release wrote them
    forget(tx, now - KEPT, FORGET_STEP)
    return Answered(done, new=True)


def forget(tx: UnitOfWork, before: int, limit: int) -> None:
    """Forget at most ``limit`` requests that were made before a time in seconds since 1970, the oldest first."""
    tx.execute(
        "delete from request where request in"
        " (select request from request where made_at < :before order by made_at limit :limit)",
        before=before,
        limit=limit,
    )
