"""The question that a node asks each consumer, and what its answers look like on arrival (rules C1, C2, O2 to O4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from forebay.dropping import ALL, dropped
from forebay.envelope import parse_time
from forebay.errors import HeaderError, LinkError
from forebay.forwarding import LaneState
from forebay.freeing import chain, floor, standing
from forebay.identity import Place
from forebay.protocol.confirmation import (
    VERSION,
    Answer,
    Confirmations,
    ConfirmedBy,
    DroppedRange,
    OriginQuestion,
    Question,
)
from forebay.protocol.resending import Forwarded
from forebay.sequences import Range, without
from forebay.transaction import Transaction
from forebay.withholding import Listed, listed

LISTED = 500
"""Ranges of drops, and withheld places, of a lane in one question: the oldest that some consumer has not passed; the
next ones follow when these are."""


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
    needed: Sequence[Confirmations] = (),
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
        needed: what is known of each needed consumer.
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
            # What everybody knows stands behind what somebody has to hear of yet: however much is listed at most, all
            # of it is said in time.
            withheld = sorted(listed(tx, lane, destination), key=partial(_rank, needed))
            drops = [each for each in dropped(tx, lane, ALL, destination) if not _ended(needed, each)]
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
                    drops=drops[:most_listed],
                    withheld=[each.place for each in withheld[:most_listed]],
                )
            )
    return Asked(Question(VERSION, origins, clock_offset), forwarded, gone)


def _rank(needed: Sequence[Confirmations], listed: Listed) -> int:
    """First what some consumer has not passed, then what the floor has, then what only the consumers have."""
    place = Place(listed.place.epoch, listed.place.sequence)
    if not needed or not all(each.passed(place) for each in needed):
        return 0
    return 1 if listed.passed else 2


def _ended(needed: Sequence[Confirmations], drop: DroppedRange) -> bool:
    return bool(needed) and all(each.ended(drop.epoch, drop.first, drop.last) >= drop.last for each in needed)


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
