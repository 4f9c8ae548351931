"""What the archive had and has deleted, by its retention: told to whoever asks, never passed over (C5)."""

from __future__ import annotations

from forebay import Transaction
from forebay.protocol.archive import ArchiveQuestion

_DELETED = """
    select first, last from deleted where node = :node and service = :service and epoch = :epoch
      and first <= :last and last >= :first order by first"""


def deleted(tx: Transaction, question: ArchiveQuestion) -> list[tuple[int, int]]:
    """Return the places of a range of an epoch that were deleted, both ends included."""
    rows = tx.execute(
        _DELETED,
        node=question.node,
        service=question.service,
        epoch=question.epoch,
        first=question.first,
        last=question.last,
    )
    return [(max(row["first"], question.first), min(row["last"], question.last)) for row in rows]
