"""An event that came alone, as a relay writes most of them, read in one go.

Its headers are the usual ones in the usual order (``forebay.plain``), and nothing in them is wrong. Any other event is
read by ``envelope.identify`` and ``envelope.decode_message``, step by step, with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache

from forebay.envelope import Message, parse_time, prev_of
from forebay.errors import HeaderError
from forebay.headers import Headers
from forebay.identity import Place
from forebay.plain import Plain, read_plain
from forebay.subjects import KEPT_SUBJECTS, subject_parts


def plain_of(headers: Mapping[str, str]) -> Plain | None:
    """Return what is read at once of headers as a relay writes most of them; None of any others."""
    return read_plain(headers.raw) if isinstance(headers, Headers) else None


def decode_usual(subject: str, plain: Plain, body: bytes, stored_at: datetime) -> Message | None:
    """Read a stored event as a relay writes most of them, in one go; None where ``identify`` and the rest have to look.

    What it returns is what ``decode_message`` returns of the event's identity.
    """
    (
        message_id, epoch, sequence, id_, source, type_, time, content_type, key, lane, prev, hlc, cause, traceparent,
        tracestate,
    ) = plain  # fmt: skip
    try:
        node, service, kind, own = _source_of(subject)
        before, at = prev_of(prev), parse_time(time)
    except HeaderError:
        return None
    if source != own or not body or (before is not None and before.epoch == epoch):
        return None
    place = tuple.__new__(Place, (epoch, int(sequence)))
    return Message(
        message_id,
        node,
        service,
        kind,
        id_,
        own,
        type_,
        at,
        key,
        content_type,
        {},
        lane,
        place,
        before,
        int(hlc, 16),
        cause,
        traceparent,
        tracestate,
        stored_at,
        body,
    )


@lru_cache(KEPT_SUBJECTS)
def _source_of(subject: str) -> tuple[str, str, str, str]:
    """Return node, service and kind of a subject, and the source of its events. Raises as ``subject_parts``."""
    node, service, kind = subject_parts(subject)
    return node, service, kind, f"/{node}/{service}"
