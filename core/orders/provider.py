"""What the orders need from a payment provider."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec


class Taken(msgspec.Struct, frozen=True):
    """The money is there."""


class Declined(msgspec.Struct, frozen=True):
    """It will not be, and why."""

    reason: str


class Returned(msgspec.Struct, frozen=True):
    """Nothing is there any more; ``cents`` went back."""

    cents: int


Outcome = Taken | Declined | Returned
Answer = Callable[[Outcome], Awaitable[None]]
"""Takes an outcome; calling it again with one that was told before changes nothing."""


class ProviderError(Exception):
    """The provider could not be asked, or did not say: whether it has done anything is not known."""


class PaymentProvider(Protocol):
    """A payment provider, asked under the order's name as the idempotency key: whatever is repeated happens once.

    It answers by calling ``answer``, perhaps late, perhaps twice.
    """

    async def charge(self, key: str, cents: int, answer: Answer) -> None:
        """Take ``cents`` once for this key. Raises ``ProviderError``; then it may have been taken all the same."""
        ...

    async def refund(self, key: str, answer: Answer) -> None:
        """Return what was taken for this key, and let a charge that is still on its way come to nothing.

        Raises ``ProviderError``; then it may have been returned all the same.
        """
        ...
