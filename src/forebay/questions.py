"""The question that a node asks each consumer, and what its answers look like on arrival (rules C1, C2, O2 to O4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from forebay.dropping import dropped
from forebay.envelope import parse_time
from forebay.errors import HeaderError, LinkError
from forebay.forwarding import LaneState
from forebay.freeing import chain, floor, standing
from forebay.identity import Place
from forebay.protocol.confirmation import VERSION, Answer, ConfirmedBy, OriginQuestion, Question
from forebay.protocol.resending import Forwarded
from forebay.sequences import Range, without
from forebay.transaction import Transaction
from forebay.withholding import listed

LISTED = 500
"""Ranges of drops, and withheld places, of a lane in one question, the oldest; the next ones follow when these are
passed."""


class Asked(NamedTuple):
    """A question, and what had been forwarded when it was asked, per lane and epoch.

    ``gone`` are the places that the node cannot send again: freed, dropped or withheld.
    """

    question: Question
    forwarded: dict[str, dict[str, list[Forwarded]]]
    gone: dict[str, list[Range]]


def prepare(
    tx: Transaction,
    service: str,
    lanes: Mapping[str, LaneState],
    unpassed: Mapping[str, Collection[str] | None],
    most_listed: int,
    clock_offset: float | None = None,
    destination: str = "",
) -> Asked:
    """Return what to ask, and what had been forwarded by then: an answer judges nothing that came later (C2).

    Args:
        tx: a snapshot of the outbox.
        service: whose outbox it is.
        lanes: how far each lane is forwarded.
        unpassed: per lane, see ``freeing.chain``.
        most_listed: drops and withheld places of a lane that are listed, at most.
        clock_offset: seconds that the core's clock is ahead of ours, where that was measured.
        destination: of commands: then it is this one's origins that are asked about.
    """
    origins = []
    forwarded: dict[str, dict[str, list[Forwarded]]] = {}
    gone: dict[str, list[Range]] = {}
    for lane, state in lanes.items():
        sent = state.sent
        epochs = standing(tx, lane, destination)
        forwarded[lane] = state.known_forwards([Place(each.epoch, each.last) for each in epochs])
        for each in epochs:
            sent_since = without(each.withheld, without(each.withheld, state.bodies.get(each.epoch, ())))
            gone[each.epoch] = without([(1, each.first - 1), *each.aside], sent_since)
        if links := chain(tx, lane, unpassed[lane], destination):
            segment = state.forwards.covering(sent) if sent else None
            withheld = listed(tx, lane, destination)
            # Below the floor a place that is not listed counts as nobody's (B7): then the floor is not said.
            whole = not any(each.passed for each in withheld[most_listed:])
            origins.append(
                OriginQuestion(
                    service=service,
                    lane=lane,
                    chain=links,
                    floor=floor(tx, lane, destination) if whole else None,
                    forwarded=str(sent) if sent else None,
                    stream_sequence=segment.stream_sequence if segment else None,
                    drops=dropped(tx, lane, most_listed, destination),
                    withheld=[each.place for each in withheld[:most_listed]],
                )
            )
    return Asked(Question(VERSION, origins, clock_offset), forwarded, gone)


def clock_offset(clock: str, began: float, ended: float) -> float | None:
    """Return the seconds that the core's wall clock is ahead of ours, the answer taken as of half the way."""
    try:
        return parse_time(clock).timestamp() - (began + ended) / 2
    except HeaderError:
        return None


def decode_answer(body: bytes, consumer: str) -> Answer:
    """Read a consumer's answer; raises ``LinkError`` where it is none, or another's."""
    try:
        answer = msgspec.json.decode(body, type=Answer)
    except msgspec.DecodeError as error:
        raise LinkError(f"the confirmation of {consumer} cannot be read: {error}") from error
    if (answer.v, answer.consumer) != (VERSION, consumer):
        raise LinkError(f"{consumer} was asked, and {answer.consumer!r} answered in version {answer.v}")
    return answer


def decode_list(body: bytes) -> ConfirmedBy | None:
    """Read the list of consumers; raises ``LinkError`` where it is none."""
    try:
        return msgspec.json.decode(body, type=ConfirmedBy | None)
    except msgspec.DecodeError as error:
        raise LinkError(f"the list of consumers cannot be read: {error}") from error
