"""A power cut of a running program: its system calls are recorded, and what it had not synced is taken away.

``strace`` is attached to the program when a first part of its work is done. A copy of its folder from that moment
counts as durable whatever was synced, as if the kernel had long written it back. From then on a write is durable once
its file was synced (or was opened to be), and the rest is dropped. Names are durable at once, and a file that is
renamed over another is, as ext4 does by default: both are kinder to a program than POSIX is.

What is believed about the calls is checked at each cut: with nothing dropped they have to give the folder that the
killed program has really left, byte for byte.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from forebay.testing.waiting import until
from tests.faults.strace import Strace

CALLS = (
    "openat,pwrite64,write,writev,pwritev,fsync,fdatasync,sync_file_range,ftruncate,fallocate,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
UNSTORED = ("-shm", ".lock")
"""Files that mean nothing after a restart; a ``-shm`` is written through memory, which no system call shows."""

_LINE = re.compile(r"^(\w+)\((.*)\)\s+=\s+(-?\d+)(?:<((?:[^>\\]|\\.)*)>)?")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FILE = re.compile(r"^-?\d+<([^>]*)>")
_DIRECTORY = re.compile(r"^(?:-?\d+|AT_FDCWD)<([^>]*)>")


class RecordingError(Exception):
    """The recorded calls do not explain the folder; nothing can be concluded from this cut."""


class Cut(msgspec.Struct, frozen=True):
    """What a power cut took: bytes written and not synced, and the files in which they were."""

    dropped_bytes: int
    files: list[str]


class PowerCut:
    """Records one program, from ``attach`` to its death, and then takes from its folder what was not synced."""

    def __init__(self, folder: Path, scratch: Path, *, known_as: Path | None = None) -> None:
        """Prepare.

        Args:
            folder: what is copied, and changed by the cut.
            scratch: for the copy and the recording.
            known_as: what the program calls the folder, where that is something else.
        """
        # A link into another mount namespace would be followed into this one.
        self._folder = folder.absolute() if known_as else folder.resolve()
        self._known_as = (known_as or folder).resolve()
        self._durable = scratch / "durable"
        self._log = scratch / "calls"
        self._strace: subprocess.Popen[bytes] | None = None
        scratch.mkdir(parents=True, exist_ok=True)

    async def attach(self, pid: int) -> None:
        """Begin to record a program that has nothing to do just now."""
        command = [Strace.find(), "-f", "-xx", "-y", "-s", "4000000", "-e", f"trace={CALLS}"]
        self._strace = _spawn([*command, "-o", str(self._log), "-p", str(pid)], self._log.with_suffix(".errors"))
        await until(lambda: _traced(pid), what="strace is attached to every thread")
        shutil.rmtree(self._durable, ignore_errors=True)
        shutil.copytree(self._folder, self._durable)

    def cut(self) -> Cut:
        """Drop what was not synced; call it when the program was killed.

        Raises:
            RecordingError: the calls do not explain what the program left.
        """
        assert self._strace is not None
        self._strace.wait(timeout=30)
        calls = list(_calls(self._log))
        kept, everything = (_replay(calls, self._known_as, self._durable, all_=each) for each in (False, True))
        real = _content(self._folder)
        wrong = [name for name in real.keys() | everything.keys() if real.get(name) != everything.get(name)]
        if wrong:
            raise RecordingError(f"the calls do not explain {sorted(wrong)[:5]} in {self._folder}")
        for name in real.keys() - kept.keys():
            (self._folder / name).unlink()
        for name, content in kept.items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(content)
        changed = sorted(name for name in real if real[name] != kept.get(name))
        size = sum(abs(len(real[name]) - len(kept.get(name, b""))) for name in changed)
        return Cut(size, changed)


def _spawn(command: list[str], errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file)


def _traced(pid: int) -> bool:
    statuses = [task / "status" for task in Path(f"/proc/{pid}/task").iterdir()]
    return all("TracerPid:\t0\n" not in status.read_text() for status in statuses if status.exists())


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(UNSTORED)
    }


class _Call(msgspec.Struct, frozen=True):
    name: str
    arguments: str
    result: int
    opened: str


def _calls(log: Path) -> Iterator[_Call]:
    """Yield the calls that succeeded, in the order in which they ended; a write that was under way counts as done."""
    halves: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.endswith("<unfinished ...>"):
            halves[thread] = rest.removesuffix("<unfinished ...>")
            continue
        if rest.startswith("<... "):
            rest = halves.pop(thread, "") + rest.partition(" resumed>")[2]
        found = _LINE.match(rest)
        if found and int(found[3]) >= 0:
            yield _Call(found[1], found[2], int(found[3]), found[4] or "")
    for half in halves.values():
        name, _, arguments = half.partition("(")
        if name in ("write", "pwrite64"):
            yield _Call(name, arguments.rstrip(" )"), len(_bytes(arguments)[0]) if _bytes(arguments) else 0, "")


class _Change(msgspec.Struct, frozen=True):
    offset: int
    data: bytes | None
    """None for a cut of the file at the offset."""


class _Disk:
    """Files of a folder: what is durable, and the changes that wait for a sync."""

    def __init__(self, files: dict[str, bytes], *, all_: bool) -> None:
        self.files = {name: bytearray(content) for name, content in files.items()}
        self._waiting: dict[str, list[_Change]] = defaultdict(list)
        self._lengths = {name: len(content) for name, content in files.items()}
        self._synced_always: set[str] = set()
        self._positions: dict[str, int] = {}
        self._all = all_

    def open(self, name: str, flags: str) -> None:
        if "O_CREAT" in flags and name not in self.files:
            self.files[name] = bytearray()
            self._lengths[name] = 0
        self._positions[name] = self._lengths.get(name, 0) if "O_APPEND" in flags else 0
        if "O_SYNC" in flags or "O_DSYNC" in flags:
            self._synced_always.add(name)
        if "O_TRUNC" in flags:
            self.change(name, _Change(0, None))

    def write(self, name: str, data: bytes, offset: int | None) -> None:
        if offset is None:
            # A file that was open before the recording began is at its end: both programs append with plain writes.
            offset = self._positions.get(name, self._lengths.get(name, 0))
            self._positions[name] = offset + len(data)
        self.change(name, _Change(offset, data))

    def change(self, name: str, change: _Change) -> None:
        self.files.setdefault(name, bytearray())
        end = change.offset if change.data is None else change.offset + len(change.data)
        self._lengths[name] = end if change.data is None else max(end, self._lengths.get(name, 0))
        self._waiting[name].append(change)
        if self._all or name in self._synced_always:
            self.sync(name)

    def sync(self, name: str) -> None:
        for change in self._waiting.pop(name, ()):
            content = self.files[name]
            content.extend(bytes(max(0, change.offset - len(content))))
            if change.data is None:
                del content[change.offset :]
            else:
                content[change.offset : change.offset + len(change.data)] = change.data

    def rename(self, old: str, new: str) -> None:
        for name in [each for each in self.files if each == old or each.startswith(f"{old}/")]:
            to = new + name[len(old) :]
            if to in self.files:
                self.sync(name)
            self._waiting.pop(to, None)
            for table in self._tables():
                if name in table:
                    table[to] = table.pop(name)

    def unlink(self, old: str) -> None:
        for name in [each for each in self.files if each == old or each.startswith(f"{old}/")]:
            for table in self._tables():
                table.pop(name, None)

    def _tables(self) -> tuple[dict[str, Any], ...]:
        return self.files, self._waiting, self._lengths, self._positions


def _replay(calls: list[_Call], folder: Path, durable: Path, *, all_: bool) -> dict[str, bytes]:
    disk = _Disk(_content(durable), all_=all_)
    for call in calls:
        _take(disk, call, folder)
    return {name: bytes(content) for name, content in disk.files.items() if not name.endswith(UNSTORED)}


def _take(disk: _Disk, call: _Call, folder: Path) -> None:
    if call.name == "openat":
        if name := _inside(_unescaped(call.opened), folder):
            disk.open(name, call.arguments)
    elif call.name.startswith("rename"):
        old, new = (_inside(each.decode(errors="replace"), folder) for each in _bytes(call.arguments)[:2])
        if old and new:
            disk.rename(old, new)
    elif call.name in ("unlink", "unlinkat", "rmdir"):
        path = _bytes(call.arguments)[0].decode(errors="replace")
        if not path.startswith("/") and (at := _DIRECTORY.match(call.arguments)):
            path = f"{_unescaped(at[1])}/{path}"
        if name := _inside(path, folder):
            disk.unlink(name)
    elif (found := _FILE.match(call.arguments)) and (name := _inside(_unescaped(found[1]), folder)):
        last = call.arguments.rsplit(",", 1)[-1].strip()
        if call.name == "write":
            disk.write(name, _bytes(call.arguments)[0][: call.result], None)
        elif call.name == "pwrite64":
            disk.write(name, _bytes(call.arguments)[0][: call.result], int(last))
        elif call.name == "ftruncate":
            disk.change(name, _Change(int(last), None))
            disk.change(name, _Change(int(last), b""))
        elif call.name in ("fsync", "fdatasync"):
            disk.sync(name)


def _inside(path: str, folder: Path) -> str:
    """Return a path relative to the folder, or nothing where it is elsewhere."""
    base = f"{folder}/"
    return path.removeprefix(base) if path.startswith(base) else ""


def _bytes(arguments: str) -> list[bytes]:
    return [_raw(text) for text in _TEXT.findall(arguments)]


def _raw(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _unescaped(text: str) -> str:
    return _raw(text).decode(errors="replace") if "\\x" in text else text
