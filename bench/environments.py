"""Python environments of their own for the peers: made on demand with uv, in ``tmp/bench``, never in the project's."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.failures import LeftOutError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tmp" / "bench" / "environments"

NATS_PY = ("nats-py", ("nats-py==2.16.0", "psycopg[binary]==3.3.4"))
FASTSTREAM = ("faststream", ("faststream[nats]==0.7.8", "nats-py==2.16.0", "psycopg[binary]==3.3.4"))
FASTSTREAM_LITESTAR = (
    "faststream-litestar",
    ("faststream[nats]==0.7.8", "nats-py==2.16.0", "litestar==2.25.0", "uvicorn==0.54.0"),
)
NATS_OUTBOX = ("nats-outbox", ("nats-outbox[cli]==0.1.0", "nats-py==2.16.0"))
SQLOUTBOX = ("sqloutbox", ("sqloutbox==0.6.0", "nats-py==2.16.0"))
PROFILER = ("profiler", ("py-spy==0.4.3",))


def find_uv() -> str:
    """Return the program uv: on PATH, or beside this Python.

    Raises:
        LeftOutError: there is none.
    """
    beside = Path(sys.executable).parent / "uv"
    if found := shutil.which("uv") or (str(beside) if beside.is_file() else None):
        return found
    raise LeftOutError("uv is not installed")


async def python_with(
    environment: tuple[str, Sequence[str]], folder: Path = FOLDER, *, fresh: Sequence[str] = ()
) -> str:
    """Return the Python of an environment with these packages; made where it is not there or had others.

    Args:
        environment: its name, and what is installed there.
        folder: where environments are.
        fresh: packages that are installed again each time: those of this very project.

    Raises:
        LeftOutError: it cannot be made, for want of a network, say.
    """
    name, packages = environment
    where = folder / name
    python, made_of = where / "bin" / "python", where / "packages.txt"
    wanted = "\n".join(packages) + "\n"
    if python.exists() and made_of.is_file() and made_of.read_text() == wanted and not fresh:
        return str(python)
    uv = find_uv()
    again = [option for package in fresh for option in ("--reinstall-package", package)]
    where.parent.mkdir(parents=True, exist_ok=True)
    await _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(where))
    await _run(uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *again, *packages)
    made_of.write_text(wanted)
    return str(python)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        raise LeftOutError(f"{' '.join(command[1:3])} failed: {said.decode(errors='replace').strip()[-300:]}")
