"""The headers of a message, read from the bytes of the wire only where somebody looks.

A reader takes tens of thousands of messages a second from one event loop, and looks at their headers on another thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_LINE = b"NATS/1.0"
_BEGIN = len(_LINE)

_WRITTEN_WITH_CARE = re.compile(rb"NATS/1\.0\r\n(?:[!-9;-~]+: [!-~]+(?: [!-~]+)*\r\n)+\r\n")
"""Lines of a name, one colon, one space, and printable ASCII with no space around it."""


class Headers(Mapping[str, str]):
    """The headers of one message; equal to a dictionary of the same names and values.

    Args:
        raw: as they came: ``NATS/1.0``, for a status its code and description, then ``name: value`` lines, each line
            ended by CR LF, and an empty line; nothing at all for a message without headers.
    """

    __slots__ = ("_fields", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._fields: dict[str, str] | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The headers as a dictionary, which is not to be changed; a status is under ``Status`` and ``Description``."""
        if self._fields is None:
            self._fields = _parsed(self.raw)
        return self._fields

    def __getitem__(self, name: str) -> str:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        return f"Headers({self.fields})"

    __hash__ = None  # type: ignore[assignment]


NO_HEADERS = Headers(b"")


def _parsed(raw: bytes) -> dict[str, str]:
    if not raw:
        return {}
    if _WRITTEN_WITH_CARE.fullmatch(raw):
        text = raw[_BEGIN + 2 : -4].decode("ascii")
        return dict([line.split(": ", 1) for line in text.split("\r\n")])
    status, _, lines = raw[_BEGIN:].partition(b"\r\n")
    return _status(status.decode("utf-8", "replace").strip()) | _careful(lines)


def _status(text: str) -> dict[str, str]:
    code, _, description = text.partition(" ")
    found = {"Status": code} if code.isdigit() else {}
    if description:
        found["Description"] = description
    return found


def _careful(lines: bytes) -> dict[str, str]:
    """Read lines of any form: what has no name is passed over, space around values is no part of them."""
    found = {}
    for line in lines.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        text = name.strip().decode("utf-8", "replace")
        if colon and text.isascii() and not any(map(str.isspace, text)):
            found[text] = value.strip().decode("utf-8", "replace")
    return found
