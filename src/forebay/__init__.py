"""Event-driven microservices for small, badly connected machines: exactly once in effect, end to end.

The names below are loaded when they are first used: who needs an event type does not pay for a web framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.aggregate import Aggregate
    from forebay.command import Command
    from forebay.envelope import Message
    from forebay.event import Event
    from forebay.evolution import upcasts
    from forebay.lanes import Lane
    from forebay.service import Service
    from forebay.transaction import Transaction
    from forebay.unit_of_work import UnitOfWork, UnitStore

__all__ = [
    "Aggregate",
    "Command",
    "Event",
    "Lane",
    "Message",
    "Service",
    "Transaction",
    "UnitOfWork",
    "UnitStore",
    "upcasts",
]

_HOMES = {
    "Aggregate": "forebay.aggregate",
    "Command": "forebay.command",
    "Event": "forebay.event",
    "Lane": "forebay.lanes",
    "Message": "forebay.envelope",
    "Service": "forebay.service",
    "Transaction": "forebay.transaction",
    "UnitOfWork": "forebay.unit_of_work",
    "UnitStore": "forebay.unit_of_work",
    "upcasts": "forebay.evolution",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'forebay' has no attribute {name!r}")
