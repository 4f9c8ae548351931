"""Requests of the shop floor: each has a name that its client gave it, and counts once however often it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, NamedTuple, TypeVar

import msgspec

from contracts.stock import Number, StockLine, Time
from forebay import UnitOfWork
from forebay.problems import ProblemError

T = TypeVar("T")

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
    rows = tx.execute("select said, answer from request where request = :request", request=said.request)
    if rows:
        if rows[0]["said"] != text:
            detail = f"request {said.request!r} was made before with other contents"
            raise ProblemError(409, "Conflict", detail, "request")
        return Answered(msgspec.json.decode(rows[0]["answer"], type=answer), new=False)
    done = act()
    tx.execute(
        "insert into request (request, said, answer) values (:request, :said, :answer)",
        request=said.request,
        said=text,
        answer=msgspec.json.encode(done).decode(),
    )
    return Answered(done, new=True)
