"""The stream metadata ``forebay.confirmed-by``: which consumers must confirm events, and of which services (S3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from forebay.protocol.confirmation import ConfirmedBy

KEY = "forebay.confirmed-by"
EVERY_SERVICE = "*"


def parse(text: str | None) -> ConfirmedBy | None:
    """Read the metadata's value; None when it is absent or cannot be read."""
    try:
        return msgspec.json.decode(text, type=ConfirmedBy) if text else None
    except msgspec.DecodeError:
        return None


def merged(
    known: Iterable[ConfirmedBy | None], wanted: Mapping[str, Iterable[str]], first_version: int = 1
) -> ConfirmedBy | None:
    """Join what is known (the live list, one that a file carries) with the consumers that are wanted.

    Names are added, or their services changed, never removed: an event would be freed before a consumer that still
    needs it has it. The version goes on from the highest known and is raised by one when the consumers change; where
    nothing is known it is ``first_version``.

    Returns:
        None when there is nothing to list: an empty list frees nothing, so it need not exist.
    """
    versions = sorted((one for one in known if one is not None), key=lambda one: one.version)
    consumers: dict[str, list[str]] = {}
    for one in versions:
        consumers |= {name: sorted(services) for name, services in one.consumers.items()}
    consumers |= {name: sorted(services) for name, services in wanted.items()}
    if not consumers:
        return None
    if not versions:
        return ConfirmedBy(first_version, consumers)
    highest = versions[-1]
    same = consumers == {name: sorted(services) for name, services in highest.consumers.items()}
    return ConfirmedBy(highest.version if same else highest.version + 1, consumers)
