"""Watermarks: how far event time has come, as the least over the nodes that count. Pure arithmetic, in milliseconds.

A node's own time is the latest event of it that was seen. The watermark is the least of these over the nodes that
count; it never goes back. A node stops counting when it is silent for the idle time-out while others speak, or while it
is ``MOST_BEHIND`` or more behind the foremost: a clock at 1970, or a long backlog, must not hold back the others. It
counts again once it has reached the watermark.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from forebay.clock import MAX_AHEAD

LONG_AGO = -(2**62)
"""The watermark before the first event."""

MOST_BEHIND = 24 * 3600 * 1000
"""Milliseconds of event time behind the foremost node from which on a node holds back nobody."""


class NodeTime(msgspec.Struct):
    """How far one node is: its latest event, when it was heard by our wall clock, and whether it holds back others."""

    seen: int
    heard_at: int
    counts: bool = False


class Watermark:
    """The watermark of the nodes of one window.

    Args:
        mark: where it stands.
        nodes: how far each known node is.
        idle: milliseconds of wall time for which a silent node counts on.
    """

    def __init__(self, mark: int = LONG_AGO, nodes: Mapping[str, NodeTime] | None = None, *, idle: int) -> None:
        self.mark = mark
        self.nodes = dict(nodes or {})
        self._idle = idle

    def observe(self, node: str, at: int, now: int) -> int:
        """Take note of an event of a node and return the watermark.

        Args:
            node: whose event it is.
            at: the event's time, plausible (``is_plausible``).
            now: the wall clock.
        """
        heard_at = max((each.heard_at for each in self.nodes.values()), default=now)
        if now - heard_at >= self._idle:
            # Nobody was heard: rather we were deaf than all of them silent. Each gets its time anew, or the first one
            # that is read after an outage would leave the others behind. It ends before that one's own: where the
            # others stay silent, they are left behind, even if this node speaks seldom.
            for each in self.nodes.values():
                each.heard_at, each.counts = now - 1, True
        known = self.nodes.get(node)
        if known is None:
            known = self.nodes[node] = NodeTime(at, now)
        held_back = not known.counts or known.seen <= self.mark
        known.heard_at = max(known.heard_at, now)
        known.seen = max(known.seen, at)
        known.counts = known.counts or known.seen >= self.mark
        if held_back:  # else the least is another's, and stays
            self._advance()
        return self.mark

    def pass_silent(self, now: int) -> int:
        """Go on without the nodes that were silent for the idle time-out, and return the watermark.

        Where all of them were, it stays: nobody is held back, and the next to speak gives the others their time anew.
        """
        for each in self.nodes.values():
            if each.heard_at + self._idle <= now:
                each.counts = False
        self._advance()
        return self.mark

    def silent_at(self) -> int | None:
        """Return the wall time at which a node that counts will have been silent too long; None if it holds nobody."""
        counting = [each.heard_at for each in self.nodes.values() if each.counts]
        return min(counting) + self._idle if len(counting) > 1 else None

    def _advance(self) -> None:
        foremost = max((each.seen for each in self.nodes.values()), default=LONG_AGO)
        counting = [each.seen for each in self.nodes.values() if each.counts and each.seen > foremost - MOST_BEHIND]
        if counting:
            self.mark = max(self.mark, min(counting))


def is_plausible(at: int, now: int) -> bool:
    """Whether an event can have happened by now; one node ten years ahead would end every window (as rule I8)."""
    return at <= now + MAX_AHEAD
