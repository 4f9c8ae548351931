"""What a rebuild has to replay: per epoch the places that had an effect and are not done, in the chain's order (F3).

The places of a pass are fixed when it begins. The archive's order is followed as long as it is the order in which the
events were written; what comes out of turn is put off and read by its place, so that an origin's events are never
replayed in another order than they were written in.
"""

from __future__ import annotations

from collections.abc import Iterable

from forebay.identity import Origin, parse_place
from forebay.sequences import Range, joined, without


class EpochWork:
    """One epoch: ``todo`` is left of this pass, ``done`` was replayed; both as ranges, ascending."""

    __slots__ = ("changed", "done", "epoch", "origin", "prev", "todo")

    def __init__(self, origin: Origin, epoch: str, prev: str, todo: list[Range], done: list[Range]) -> None:
        self.origin = origin
        self.epoch = epoch
        self.prev = prev
        self.todo = todo
        self.done = done
        self.changed = False

    def take(self, sequence: int) -> None:
        """Move a place from what is left to what is done."""
        first, last = self.todo[0]
        if sequence == first:
            self.todo[:1] = [(first + 1, last)] if first < last else []
        else:
            self.todo = without(self.todo, [(sequence, sequence)])
        if self.done and self.done[-1][1] == sequence - 1:
            self.done[-1] = (self.done[-1][0], sequence)
        else:
            self.done = joined([*self.done, (sequence, sequence)])
        self.changed = True


class Plan:
    """The places of one pass over all origins.

    Args:
        epochs: what is known of each epoch, in any order.
    """

    def __init__(self, epochs: Iterable[EpochWork]) -> None:
        self._epochs: dict[tuple[str, str, str], EpochWork] = {}
        self._chains: dict[Origin, list[EpochWork]] = {}
        for each in epochs:
            self._epochs[each.origin.node, each.origin.service, each.epoch] = each
            self._chains.setdefault(each.origin, []).append(each)
        for origin, chain in self._chains.items():
            self._chains[origin] = _in_order(chain)
        self._at = dict.fromkeys(self._chains, 0)

    def set(self, origin: Origin, epoch: str, prev: str, effects: Iterable[Range]) -> EpochWork:
        """Let what had an effect and is not done be what is left of an epoch."""
        known = self._epochs.get((origin.node, origin.service, epoch))
        if known is None:
            known = EpochWork(origin, epoch, prev, [], [])
            known.changed = True
            self._epochs[origin.node, origin.service, epoch] = known
            self._chains[origin] = _in_order([*self._chains.get(origin, []), known])
        self._at[origin] = 0
        todo = without(effects, known.done)
        known.changed |= todo != known.todo
        known.todo = todo
        return known

    def due(self, node: str, service: str, epoch: str, sequence: int) -> bool:
        """Whether a place is left, and everything that its origin wrote before is done."""
        known = self._epochs.get((node, service, epoch))
        if known is None or not known.todo or known.todo[0][0] != sequence:
            return False
        chain, at = self._chains[known.origin], self._at[known.origin]
        while not chain[at].todo:
            at += 1
        self._at[known.origin] = at
        return chain[at] is known

    def take(self, node: str, service: str, epoch: str, sequence: int) -> None:
        """Note that a place is done."""
        self._epochs[node, service, epoch].take(sequence)

    def left(self) -> list[tuple[EpochWork, Range]]:
        """Return what is left, in the order in which each origin wrote it."""
        return [(each, places) for chain in self._chains.values() for each in chain for places in each.todo]

    @property
    def count(self) -> int:
        """How many places are left."""
        return sum(last - first + 1 for each in self._epochs.values() for first, last in each.todo)

    def changed(self) -> list[EpochWork]:
        """Return the epochs that have changed since ``saved``: a unit of work that writes them may run twice."""
        return [each for each in self._epochs.values() if each.changed]

    def saved(self) -> None:
        """Say that all that changed is on the disk."""
        for each in self._epochs.values():
            each.changed = False


def _in_order(chain: list[EpochWork]) -> list[EpochWork]:
    """Sort the epochs of an origin: the one that another names as its ``prev`` stands before that."""
    by_epoch = {each.epoch: each for each in sorted(chain, key=lambda each: each.epoch)}
    ordered: dict[str, EpochWork] = {}
    for each in by_epoch.values():
        way: list[EpochWork] = []
        at: EpochWork | None = each
        while at is not None and at.epoch not in ordered and at not in way:  # a forged chain may be a circle
            way.append(at)
            prev = parse_place(at.prev)
            at = by_epoch.get(prev.epoch) if prev is not None else None
        ordered.update((found.epoch, found) for found in reversed(way))
    return list(ordered.values())
