"""What consumers still need of the archive: the exchange on ``archive.needs.<consumer>`` as types (C5).

The archive asks before it deletes. Who does not answer needs everything.
"""

from __future__ import annotations

import msgspec

from forebay.protocol.confirmation import VERSION


def needs_subject(consumer: str) -> str:
    """The subject on which one consumer answers."""
    return f"archive.needs.{consumer}"


class EpochNeed(msgspec.Struct, frozen=True):
    """An epoch of which the archive would delete everything up to ``last``."""

    node: str
    service: str
    epoch: str
    last: int


class NeedsQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Asks up to where a consumer is done with some epochs."""

    v: int = VERSION
    epochs: list[EpochNeed]


class NeedsAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Up to where.

    Attributes:
        everything: it begins with the archive, or is rebuilt from it: nothing may be deleted.
        done: per epoch of the question, in its order, the place up to which nothing is needed any more.
    """

    v: int = VERSION
    everything: bool = False
    done: list[int] = []
