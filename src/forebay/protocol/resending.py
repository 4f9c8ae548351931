"""What has to be sent again: places that a consumer has read past without meeting them (rules C2, C3).

No timer guesses. The node knows up to which place it had forwarded what at which stream sequence; the answer says how
far the consumer has read that very stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from forebay.protocol.confirmation import Answer, EpochAnswer
from forebay.sequences import Range, joined, without


class Forwarded(NamedTuple):
    """Places ``first`` to ``last`` of an epoch: acknowledged by ``incarnation`` at ``stream_sequence`` or before.

    ``incarnation`` is empty where it is not known (another process forwarded them); ``at`` is seconds of wall time.
    """

    first: int
    last: int
    incarnation: str
    stream_sequence: int
    at: float = 0.0


def missed(epoch: str, forwarded: Iterable[Forwarded], answer: Answer) -> list[Range]:
    """Return the places that one consumer cannot get any more from what was sent, ascending.

    Args:
        epoch: the epoch of the places.
        forwarded: what had been acknowledged before the question was asked (later forwards are not judged).
        answer: the consumer's answer to it.
    """
    said = answer.epochs.get(epoch, EpochAnswer(watermark=0))
    found: list[Range] = []
    for sent in forwarded:
        stands = sent.incarnation == answer.incarnation and sent.stream_sequence <= answer.stream_end
        if stands and sent.stream_sequence > answer.position:
            continue  # still on its way
        # At or below the watermark a place is passed; without its event only where it is listed so (B2).
        for first, last in [(said.watermark + 1, sent.last), *said.missing, *said.wanted]:
            low, high = max(first, sent.first), min(last, sent.last)
            if low <= high:
                found += without([(low, high)], said.held)  # a held one is there already
    return joined(found)
