"""The watermarks of one window as rows: read when they are first met in a transaction, written back by ``save``."""

from __future__ import annotations

from forebay.protocol.watermarks import LONG_AGO, NodeTime, Watermark
from forebay.transaction import Transaction

TOGETHER = ""
"""The scope of a window for which the nodes' events are together; no node has an empty name."""

# The row is made, or locked as it is: where several processes read partitions of their own, those that meet in a window
# of all nodes take turns.
_MEET = """
    insert into forebay_watermark (name, scope, mark) values (:name, :scope, :mark)
    on conflict (name, scope) do update set mark = forebay_watermark.mark
    returning mark"""

_NODES = "select node, seen, heard_at, counts from forebay_watermark_node where name = :name"

_SAVE = "update forebay_watermark set mark = :mark, late = late + :late where name = :name and scope = :scope"

_SAVE_NODE = """
    insert into forebay_watermark_node (name, node, seen, heard_at, counts)
    values (:name, :node, :seen, :heard_at, :counts)
    on conflict (name, node) do update set
      seen = excluded.seen, heard_at = excluded.heard_at, counts = excluded.counts"""


class Marks:
    """The watermarks of one window within one transaction: one for each node, or one for all of them.

    Args:
        tx: the transaction.
        name: the window's.
        idle: milliseconds of wall time for which a silent node holds back the others.
        together: whether one watermark holds for all nodes.
    """

    def __init__(self, tx: Transaction, name: str, idle: int, *, together: bool) -> None:
        self._tx = tx
        self._name = name
        self._idle = idle
        self._together = together
        self._marks: dict[str, Watermark] = {}
        self._late: dict[str, int] = {}
        self._stored: dict[str, NodeTime] = {}

    def scope(self, node: str) -> str:
        """Return the scope that a node's events belong to: the node, or all of them."""
        return TOGETHER if self._together else node

    def observe(self, node: str, at: int, now: int) -> int:
        """Take note of an event of a node, and return the watermark of its scope; see ``Watermark.observe``."""
        return self._find(self.scope(node)).observe(node, at, now)

    def of(self, scope: str) -> int:
        """Return the watermark of a scope."""
        return self._find(scope).mark

    def pass_silent(self, at: int) -> int:
        """Go on without the nodes that have been silent at a wall time, and return the watermark of all."""
        return self._find(TOGETHER).pass_silent(at)

    def silent_at(self) -> int | None:
        """Return the wall time at which some node will have been silent too long; None where that does not matter."""
        return self._find(TOGETHER).silent_at() if self._together else None

    def count_late(self, node: str) -> None:
        """Count an event that a result lacks."""
        scope = self.scope(node)
        self._find(scope)
        self._late[scope] = self._late.get(scope, 0) + 1

    def save(self) -> None:
        """Write the watermarks back, and of the nodes those that were heard: there may be thousands of others."""
        rows = [
            {"name": self._name, "scope": scope, "mark": watermark.mark, "late": self._late.get(scope, 0)}
            for scope, watermark in self._marks.items()
        ]
        self._tx.executemany(_SAVE, rows)
        if self._together and TOGETHER in self._marks:
            nodes = [
                {
                    "name": self._name,
                    "node": node,
                    "seen": each.seen,
                    "heard_at": each.heard_at,
                    "counts": int(each.counts),
                }
                for node, each in self._marks[TOGETHER].nodes.items()
                if each != self._stored.get(node)
            ]
            self._tx.executemany(_SAVE_NODE, nodes)

    def _find(self, scope: str) -> Watermark:
        found = self._marks.get(scope)
        if found is None:
            row = self._tx.execute(_MEET, name=self._name, scope=scope, mark=LONG_AGO)[0]
            found = self._marks[scope] = Watermark(row["mark"], self._nodes(scope, row["mark"]), idle=self._idle)
        return found

    def _nodes(self, scope: str, mark: int) -> dict[str, NodeTime]:
        if not self._together:  # a node alone is the foremost and the last: what it has seen is the watermark
            return {scope: NodeTime(mark, 0, counts=True)} if mark > LONG_AGO else {}
        rows = self._tx.execute(_NODES, name=self._name)
        found, self._stored = (
            {row["node"]: NodeTime(row["seen"], row["heard_at"], bool(row["counts"])) for row in rows} for _ in range(2)
        )
        return found


def late_events(tx: Transaction) -> dict[str, int]:
    """Return the events that results lack, per window."""
    rows = tx.execute("select name, sum(late) as late from forebay_watermark group by name")
    return {row["name"]: int(row["late"]) for row in rows}
