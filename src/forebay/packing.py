"""Packing the body of a frame with zstd, where that is installed (``forebay[zstd]``), and unpacking within bounds."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from forebay.errors import BodyError, HeaderError

ZSTD = "zstd"

MAX_BYTES = 16 * 1024 * 1024
"""Bytes of a frame's unpacked body, as far as readers take one: a few packed bytes can stand for any number."""

_WINDOW_LOG = 24
"""Base 2 logarithm of the memory that unpacking may take beside the body: 16 MiB."""

_LEVEL = 1
"""Of zstd: a frame of 1,000 readings was smaller than at levels 3 and 6, and at 9, 15 times slower, smaller by 8 %."""


def can_pack() -> bool:
    """Whether this process has zstd."""
    return _zstd() is not None


def pack(body: bytes) -> bytes:
    """Return a frame's body, packed; needs what ``can_pack`` asks for."""
    packed: bytes = _zstd().compress(body, _LEVEL)
    return packed


def unpack(encoding: str, body: bytes) -> bytes:
    """Return a frame's body as it was before it was packed.

    Args:
        encoding: its ``Content-Encoding``; empty where it was not packed.
        body: as it came.

    Raises:
        HeaderError: the encoding is not known, or zstd is not installed here.
        BodyError: it cannot be unpacked, or has more than ``MAX_BYTES``.
    """
    if not encoding:
        if len(body) > MAX_BYTES:
            raise BodyError(f"the frame has {len(body)} bytes, the limit is {MAX_BYTES}")
        return body
    if encoding.strip().lower() != ZSTD:
        raise HeaderError(f"the frame's content-encoding {encoding!r} is not known")
    zstd = _zstd()
    if zstd is None:
        raise HeaderError("the frame is packed with zstd, which is not installed", hint="install forebay[zstd]")
    reader = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        text: bytes = reader.decompress(body, MAX_BYTES + 1)
    except zstd.ZstdError as error:
        raise BodyError(f"the frame cannot be unpacked: {error}") from None
    if len(text) > MAX_BYTES:
        raise BodyError(f"the frame has more than {MAX_BYTES} bytes when it is unpacked, which is the limit")
    if not reader.eof or reader.unused_data:
        raise BodyError("the frame cannot be unpacked: it is cut off, or something follows it")
    return text


@lru_cache(1)
def _zstd() -> Any:
    """Return the module, or None; it is loaded when the first packed frame is met."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None
