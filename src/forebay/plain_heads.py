"""The headers that most events have, written in one go: the common case of relays; ``plain`` reads them."""

from __future__ import annotations

from forebay.envelope import percent_encode


class PlainHeads:
    """Writes the headers of events without attributes of others and without a trace, of one epoch.

    What is the same for all of them is put together once.

    Args:
        source: as ``ce-source`` says it.
        content_type: of their bodies.
        lane: their lane.
        prev: as ``forebay-prev`` says it.
    """

    def __init__(self, source: str, content_type: str, lane: str, prev: str) -> None:
        self._source = source
        self._content = f"\r\nce-datacontenttype: {content_type}\r\n"
        self._place = f"forebay-lane: {lane}\r\nforebay-prev: {prev}\r\nforebay-hlc: "
        self._types: dict[str, str] = {}
        self._keys: dict[str | None, str] = {None: ""}

    def write(
        self, message_id: str, event_id: str, type_: str, time: str, key: str | None, hlc: int, cause: str | None
    ) -> bytes:
        """Return an event's headers, each on its line; ``hlc`` is a tick of the hybrid clock."""
        if (typed := self._types.get(type_)) is None:
            encoded = percent_encode(type_)
            typed = self._types[type_] = f"\r\nce-source: {self._source}\r\nce-type: {encoded}\r\nce-time: "
        if (keyed := self._keys.get(key)) is None:
            keyed = self._keys[key] = f"ce-partitionkey: {percent_encode(key or '')}\r\n"
        cause = "" if cause is None else f"forebay-cause: {cause}\r\n"
        return (
            f"Nats-Msg-Id: {message_id}\r\nce-specversion: 1.0\r\nce-id: {event_id}{typed}{time}"
            f"{self._content}{keyed}{self._place}{hlc:016x}\r\n{cause}"
        ).encode()
