"""How the processes of a consumer share its partitions: evenly, each giving and taking by itself (consumer groups).

Nobody is in charge. Every member looks at who holds what, gives up what is too much for it and takes what is free, as
far as its share goes. What two want at once, the database's locks decide; the next look repairs what was seen too late.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeVar

M = TypeVar("M", int, str)


class Move(NamedTuple):
    """What one member does now: partitions to take, in this order, and how many to give up."""

    take: list[int]
    give: int


def next_move(me: M, held: Mapping[M, AbstractSet[int]], count: int) -> Move:
    """Return what a member does, so that in the end each has a floor or a ceil of the even share.

    Args:
        me: this member.
        held: of each member, this one included, the partitions that it holds.
        count: how many partitions there are.

    Example:
        >>> next_move(1, {1: set()}, 4)
        Move(take=[0, 1, 2, 3], give=0)
        >>> next_move(1, {1: {0, 1, 2, 3}, 2: set()}, 4)
        Move(take=[], give=2)
    """
    least, extra = divmod(count, len(held))
    most = least + (extra > 0)
    mine = len(held[me])
    if mine > most:
        return Move([], mine - most)
    free = sorted(set(range(count)).difference(*held.values()))
    richer = sum(len(each) > least for member, each in held.items() if member != me)
    share = most if richer < extra else least
    if mine < share:
        at = sorted(held).index(me) * len(free) // len(held)  # members begin at different places
        return Move((free[at:] + free[:at])[: share - mine], 0)
    # Somebody lacks its least share, and nothing is free for it: as many of the richer give one as it takes.
    lacking = sum(max(0, least - len(each)) for each in held.values()) - len(free)
    if mine > least and lacking > 0:
        givers = sorted(member for member, each in held.items() if len(each) > least)
        return Move([], int(givers.index(me) < lacking))
    return Move([], 0)
