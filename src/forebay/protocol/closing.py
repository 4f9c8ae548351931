"""What a node's floor closes: places that nobody will send any more (rules O2, B4, B5, B7).

A *hole* is a place not passed yet, with later ones seen; closed without its event it is a *gap*. A floor speaks for its
own epoch up to its sequence, and for every older epoch as far as that epoch is known; what lies beyond stays open, for
clones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from forebay.identity import Place
from forebay.protocol.inbox import OriginInbox
from forebay.sequences import without

Prevs = Mapping[str, Place | None]
"""Per epoch the place before it, as a request's chain and the inbox know it."""


class Hole(NamedTuple):
    """Places of an epoch that are open, both ends included."""

    epoch: str
    first: int
    last: int


def known_prevs(inbox: OriginInbox, lane: str, chain: Prevs) -> dict[str, Place | None]:
    """Join what the inbox knows of a lane's epochs with a request's chain."""
    return {**{epoch: state.prev for epoch, state in inbox.epochs.items() if state.lane == lane}, **chain}


def targets(inbox: OriginInbox, lane: str, floor: Place, chain: Prevs) -> dict[str, int]:
    """Return for each epoch that a floor speaks for, the oldest first, the last sequence up to which it does."""
    prevs = known_prevs(inbox, lane, chain)
    older = _older(floor.epoch, prevs)
    ends: dict[str, int] = dict.fromkeys(older, 0)
    for successor, place in prevs.items():
        # What follows the floor's epoch, a clone's epoch say, may name places that are still to come.
        if place is not None and place.epoch in ends and (successor == floor.epoch or successor in ends):
            ends[place.epoch] = max(ends[place.epoch], place.sequence)
    for epoch in older:
        if (state := inbox.epochs.get(epoch)) is not None:
            ends[epoch] = max(ends[epoch], state.extent)
    return {**ends, floor.epoch: floor.sequence}


def next_hole(inbox: OriginInbox, upto: Mapping[str, int]) -> Hole | None:
    """Return the first open places below the targets that no event and no decision covers, or None.

    Pass what is ``due`` first: what is held or decided below a hole is not behind it.
    """
    for epoch, last in upto.items():
        state = inbox.epochs.get(epoch)
        watermark = state.passed.watermark if state else 0
        if watermark >= last:
            continue
        first = watermark + 1
        if state is not None:
            following = [low for low, _ in [*state.passed.ranges, *state.dropped]] + list(state.withheld)
            last = min([last, *(place - 1 for place in following if place >= first)])
            if last < first:
                continue  # held or decided, behind an epoch that is not reached
            if state.given_up is not None and state.given_up[0] <= last:
                if state.given_up[0] == first:
                    return None  # it has to be read again first, and everything later comes after it
                last = state.given_up[0] - 1
        return Hole(epoch, first, last)
    return None


def open_below(inbox: OriginInbox, upto: Mapping[str, int]) -> list[Hole]:
    """Return all open places below the targets, the oldest first: what an archive may have."""
    holes: list[Hole] = []
    for epoch, last in upto.items():
        state = inbox.epochs.get(epoch)
        watermark = state.passed.watermark if state else 0
        if watermark >= last:
            continue
        covered = [*state.passed.ranges, *state.dropped, *((each, each) for each in state.withheld)] if state else []
        holes += [Hole(epoch, *each) for each in without([(watermark + 1, last)], covered)]
    return holes


def given_up(inbox: OriginInbox, upto: Mapping[str, int]) -> int | None:
    """Return the stream sequence to go back to for events given up below the targets, or None (B3, B4)."""
    places = [
        state.given_up[2]
        for epoch, last in upto.items()
        if (state := inbox.epochs.get(epoch)) is not None and state.given_up is not None and state.given_up[0] <= last
    ]
    return min(places, default=None)


def lost(inbox: OriginInbox, upto: Mapping[str, int], listed: set[Place]) -> list[Place]:
    """Return the wanted places below the targets that a request does not list: nobody has the body (B7)."""
    return [
        Place(epoch, sequence)
        for epoch, last in upto.items()
        if (state := inbox.epochs.get(epoch)) is not None
        for first, end in state.wanted
        for sequence in range(first, min(end, last) + 1)
        if Place(epoch, sequence) not in listed
    ]


def own_branch(floor: Place, prevs: Prevs) -> dict[str, int]:
    """Return the emitter's own epochs up to its floor, each with the last sequence that is its own (B5)."""
    own = {floor.epoch: floor.sequence}
    at = prevs.get(floor.epoch)
    while at is not None and at.epoch not in own:
        own[at.epoch] = at.sequence
        at = prevs.get(at.epoch)
    return own


def is_beyond(inbox: OriginInbox, lane: str, floor: Place, chain: Prevs) -> bool:
    """Whether a floor says anything that the inbox has not passed."""
    return any(
        epoch not in inbox.epochs or inbox.epochs[epoch].passed.watermark < last
        for epoch, last in targets(inbox, lane, floor, chain).items()
        if last
    )


def _line(epoch: str, prevs: Prevs) -> dict[str, None]:
    """The epochs that an epoch descends from, the latest first."""
    line: dict[str, None] = {}
    at = prevs.get(epoch)
    while at is not None and at.epoch not in line:
        line[at.epoch] = None
        at = prevs.get(at.epoch)
    return line


def _older(epoch: str, prevs: Prevs) -> list[str]:
    """The epochs before another, each after those that it descends from.

    Before it is what it descends from, whatever the clock said, and what has a lower id (UUIDv7) and does not descend
    from it: the branches that a restore left behind.
    """
    line = _line(epoch, prevs)
    successors: dict[str, list[str]] = {}
    for successor, place in prevs.items():
        if place is not None:
            successors.setdefault(place.epoch, []).append(successor)
    later, waiting = {epoch}, [epoch]
    while waiting:
        for successor in successors.get(waiting.pop(), ()):
            if successor not in later:
                later.add(successor)
                waiting.append(successor)
    known = {*prevs, *successors}
    older = {each for each in known if each in line or (each < epoch and each not in later)}
    ordered: dict[str, None] = {}
    for each in sorted(older):
        if each not in ordered:
            ordered.update(dict.fromkeys(p for p in reversed(_line_until(each, prevs, ordered)) if p in older))
            ordered[each] = None
    return list(ordered)


def _line_until(epoch: str, prevs: Prevs, known: Mapping[str, None]) -> list[str]:
    line: list[str] = []
    at = prevs.get(epoch)
    while at is not None and at.epoch not in known and at.epoch not in line:
        line.append(at.epoch)
        at = prevs.get(at.epoch)
    return line
