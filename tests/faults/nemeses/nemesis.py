"""The form of a fault."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from tests.faults.system import Begins, System


class Nemesis(msgspec.Struct, frozen=True):
    """One kind of fault.

    Attributes:
        name: in results and tests.
        inject: injects it once, heals it and returns.
        quiet: whether it must not meet requests under way, because it takes away what they wrote.
        waits_for: the rule that must be built before anything is promised under it; empty where that is so today.
        in_soak: whether it may come in any order and any number of times, mixed with others.
        traced: whether it needs ``strace``.
        begins_previous: who begins with the previous release, where it is the first fault.
        small_disks: whether its nodes have small disks of their own.
        grace: the grace tail that it needs, in seconds.
    """

    name: str
    inject: Callable[[System], Awaitable[None]]
    quiet: bool = False
    waits_for: str = ""
    in_soak: bool = True
    traced: bool = False
    begins_previous: Begins = ""
    small_disks: bool = False
    grace: str = "0"
