"""A copy of a damaged database that SQLite will read: its log applied as far as it is sound, its header mended."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from forebay.sqlite.frames import read_frames
from forebay.sqlite.swap import beside

_MAGIC = b"SQLite format 3\0"
_PAGE_SIZES = frozenset(1 << power for power in range(9, 16)) | {1}
_DEFAULT_PAGE_SIZE = 4096


def make_image(path: Path, image: Path) -> bool:
    """Copy ``path``, with its log, to ``image``; neither is changed. Returns whether all of the log was sound.

    Of the log every sound frame up to the last commit is taken: SQLite itself would stop at the first bad one. A page
    whose frame is bad stays as it was before: what it lost is missing rather than false.
    """
    if path.exists():
        shutil.copyfile(path, image)
    else:
        image.write_bytes(b"")
    log = read_frames(beside(path, "-wal"))
    sound = True
    with image.open("r+b") as file:
        if log is not None and (ends := [at for at, frame in enumerate(log.frames) if frame.pages]):
            with beside(path, "-wal").open("rb") as frames:
                for frame in log.frames[: ends[-1] + 1]:
                    # The first frame of a log whose header is bad has no checksum before it to go by.
                    if frame.sound or (not log.header_sound and frame is log.frames[0]):
                        frames.seek(frame.offset)
                        file.seek((frame.page - 1) * log.page_size)
                        file.write(frames.read(log.page_size))
                    else:
                        sound = False
        _mend_header(file, log.page_size if log else _DEFAULT_PAGE_SIZE)
    return sound


def open_image(image: Path) -> sqlite3.Connection:
    """Open an image to be read; any statement may find more damage."""
    connection = sqlite3.connect(f"{image.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    for pragma in ("writable_schema=ON", "cache_size=-2000"):  # a part of a schema is better than none
        with suppress(sqlite3.Error):
            connection.execute(f"PRAGMA {pragma}")
    return connection


def _mend_header(file: BinaryIO, page_size: int) -> None:
    """Write the parts of the file's header that are the same in all of our databases, or follow from its size."""
    size = file.seek(0, 2)
    file.seek(0)
    header = bytearray(file.read(100).ljust(100, b"\0"))
    known = int.from_bytes(header[16:18], "big")
    if known in _PAGE_SIZES:
        page_size = 65536 if known == 1 else known
    pages = -(-size // page_size)
    header[:16] = _MAGIC
    header[16:18] = (1 if page_size == 65536 else page_size).to_bytes(2, "big")
    header[18:20] = b"\1\1"  # no write-ahead log: it is in the file now
    header[20:24] = bytes((0, 64, 32, 32))
    header[28:32] = pages.to_bytes(4, "big")
    header[44:48] = (4).to_bytes(4, "big")
    header[56:60] = (1).to_bytes(4, "big")
    header[92:96] = header[24:28]
    file.seek(0)
    file.write(header)
    file.truncate(pages * page_size)
