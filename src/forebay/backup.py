"""Backup and restore of a data folder's databases, one archive for all of them.

A backup reads each database through a connection that cannot write, on one snapshot, while the process that has it open
goes on. Databases are copied one after the other: each is consistent in itself, and what was under way between two of
them the protocol sends again.

A restore is safe for the promise: what the restored store writes gets a new epoch (I2), what it sends again is known
to the core, and what a restored consumer forgot is delivered to it again. It is all or nothing: everything is
checked and laid beside the databases first, then a plan is written, and who comes after a crash carries it out.

The archive is a tar file: the databases under their paths in the data folder, then ``manifest.json`` with their sizes
and checksums; an archive without it is not whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import msgspec

from forebay.errors import ConfigurationError, StoreError
from forebay.identity import NAME
from forebay.sqlite.connection import make_folder, open_reader
from forebay.sqlite.damage import forget_damage, unmark_open
from forebay.sqlite.lock import FileLock
from forebay.sqlite.swap import beside, replace, sync_file, sync_folder

VERSION = 1
"""Of the archive's form."""

MANIFEST = "manifest.json"
PLAN = "restore.json"
"""Lies in a data folder while a restore that was decided is carried out."""

_PATH = re.compile(rf"(?:nodes/{NAME.pattern}|core)/{NAME.pattern}\.db")
_CHUNK = 1024 * 1024


class Entry(msgspec.Struct, frozen=True):
    """One database of an archive: its path in the data folder, its bytes and their SHA-256."""

    path: str
    bytes: int
    sha256: str

    @property
    def node(self) -> str:
        """The node that it belongs to."""
        return self.path.split("/")[-2]

    @property
    def service(self) -> str:
        """The service that it belongs to."""
        return self.path.split("/")[-1].removesuffix(".db")


class Manifest(msgspec.Struct, frozen=True):
    """What is in an archive."""

    v: int
    created_at: str
    databases: list[Entry]


class _Plan(msgspec.Struct, frozen=True):
    databases: list[str]


def back_up(data: Path, databases: Iterable[Path], to: Path) -> list[Entry]:
    """Copy databases of a data folder into a new archive; the processes may run. Returns what is in it.

    A crash leaves no file named ``to``.

    Raises:
        ConfigurationError: ``to`` is there already, or there is nothing to back up.
        StoreError: a database cannot be read or is damaged, or the archive cannot be written.
    """
    if to.exists():
        raise ConfigurationError(f"{to} is there already", hint="give another name; a backup replaces nothing")
    paths = list(databases)
    if not paths:
        raise ConfigurationError(f"there is no database in {data} to back up", hint="give the folder, node and service")
    part = beside(to, ".part")
    try:
        entries = []
        with TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as folder, tarfile.open(part, "w") as archive:
            for path in paths:
                copy = Path(folder) / "copy.db"
                _copy(path, copy)
                name = path.relative_to(data).as_posix()
                entries.append(Entry(name, copy.stat().st_size, _digest(copy)))
                archive.add(copy, name, recursive=False)
                copy.unlink()
            _add(archive, MANIFEST, msgspec.json.encode(Manifest(VERSION, datetime.now(UTC).isoformat(), entries)))
        sync_file(part)
        part.rename(to)
        sync_folder(to.absolute().parent)
    except OSError as error:
        raise StoreError(f"cannot write {to}: {error.strerror}", hint="the folder must be there, with room") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return entries


def restore(data: Path, archive: Path, wanted: Callable[[Entry], bool] = lambda _: True) -> list[Entry]:
    """Put databases of an archive back into a data folder; what was there is set aside. Returns what was restored.

    Raises:
        ConfigurationError: a database is in use, or the archive is none, is not whole, or has nothing that is wanted.
        StoreError: the folder cannot be written.
    """
    finish_restore(data)
    with _opened(archive) as tar, ExitStack() as locks:
        entries = [entry for entry in _manifest(tar, archive).databases if wanted(entry)]
        if not entries:
            raise ConfigurationError(f"{archive} has no such database", hint="tar -tf lists what is in it")
        try:
            for entry in entries:
                path = data / entry.path
                make_folder(path.parent)
                lock = FileLock(path)
                lock.acquire()
                locks.callback(lock.release)
            for entry in entries:
                _lay_down(tar, archive, entry, beside(data / entry.path, ".restoring"))
            _decide(data, [entry.path for entry in entries])
            _carry_out(data)
        except OSError as error:
            raise StoreError(f"cannot restore into {data}: {error.strerror}", hint="is there room?") from error
    return entries


def finish_restore(data: Path) -> None:
    """Carry out a restore that was decided and cut short by a crash; call it before databases are opened.

    Raises:
        StoreError: the folder cannot be written.
    """
    if not (data / PLAN).exists():
        return
    try:
        with (data / f"{PLAN}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that start at once, one does it
            _carry_out(data)
    except OSError as error:
        raise StoreError(f"the restore into {data} cannot be finished: {error.strerror}") from error


def _carry_out(data: Path) -> None:
    plan = data / PLAN
    if not plan.exists():
        return
    for name in msgspec.json.decode(plan.read_bytes(), type=_Plan).databases:
        path = data / name
        laid = beside(path, ".restoring")
        if laid.exists():
            beside(path, ".salvaged").unlink(missing_ok=True)
            forget_damage(path)
            replace(path, laid, why="replaced")
            unmark_open(path)
    plan.unlink()
    sync_folder(data)


def _decide(data: Path, names: Sequence[str]) -> None:
    part = data / f"{PLAN}.part"
    part.write_bytes(msgspec.json.encode(_Plan(list(names))))
    sync_file(part)
    part.rename(data / PLAN)
    sync_folder(data)


def _copy(path: Path, copy: Path) -> None:
    """Copy one database on a snapshot, as a file without a log, and check the copy."""
    source = open_reader(path)
    try:
        target = sqlite3.connect(copy, isolation_level=None)
        try:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE").fetchone()
            found = target.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise StoreError(f"{path} is damaged: {found}", hint="start its service: it salvages what can be read")
        finally:
            target.close()
    except sqlite3.Error as error:
        raise StoreError(
            f"{path} cannot be copied: {error}", hint="is it a service's database, with room for a copy?"
        ) from error
    finally:
        source.close()
    sync_file(copy)


def _lay_down(tar: tarfile.TarFile, archive: Path, entry: Entry, to: Path) -> None:
    """Extract one database beside where it belongs, and check that it is what was backed up."""
    try:
        member: IO[bytes] | None = tar.extractfile(entry.path)
    except KeyError:
        member = None
    if member is None:
        raise ConfigurationError(f"{archive} lacks {entry.path}", hint="take another backup")
    with member, to.open("wb") as file:
        shutil.copyfileobj(member, file, _CHUNK)
        file.flush()
        os.fsync(file.fileno())
    if (to.stat().st_size, _digest(to)) != (entry.bytes, entry.sha256):
        to.unlink()
        raise ConfigurationError(f"{archive} is damaged: {entry.path} has another checksum", hint="take another backup")


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except tarfile.TarError as error:
        raise ConfigurationError(f"{archive} cannot be read as a backup: {error}") from error
    except FileNotFoundError as error:
        if error.filename == str(archive):
            raise ConfigurationError(f"there is no backup {archive}", hint="correct --from") from error
        raise


def _manifest(tar: tarfile.TarFile, archive: Path) -> Manifest:
    try:
        member = tar.extractfile(MANIFEST)
        manifest = msgspec.json.decode(member.read() if member else b"", type=Manifest)
    except (KeyError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{archive} is no whole backup: its {MANIFEST} is missing or unreadable") from error
    if manifest.v != VERSION:
        raise ConfigurationError(
            f"{archive} is a backup of version {manifest.v}", hint="restore it with a newer release"
        )
    for entry in manifest.databases:
        if not _PATH.fullmatch(entry.path):
            raise ConfigurationError(f"{archive} names {entry.path!r}, which is no database of a data folder")
    return manifest


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
