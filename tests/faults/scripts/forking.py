"""Runs a script many times from one process that has loaded everything, each time in a child of its own.

    python -m tests.faults.scripts.forking MODULE

For each line on standard input (a JSON list: the file for what the child says on standard error, then the script's
arguments) it forks a child, prints its process id, waits for a line that lets the child go, and prints how it ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from importlib import import_module

_PR_SET_PTRACER, _ANYBODY = 0x59616D61, -1


def main() -> None:
    # sqlite-utils loads what development tools brought, where it is installed: most of a second.
    for name in ("pandas", "numpy"):
        sys.modules[name] = None  # type: ignore[assignment]
    script = import_module(sys.argv[1])
    import_module("sqlite_utils")  # the migrations load it late
    while line := sys.stdin.readline():
        said, *arguments = json.loads(line)
        child_waits, go = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            _become(said, child_waits)
            sys.argv[1:] = arguments
            script.main()
            return  # it ends as a script does, with the interpreter's own end
        os.close(child_waits)
        print(child, flush=True)
        if sys.stdin.readline():
            os.write(go, b"!")
        os.close(go)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(said: str, waits: int) -> None:
    """Make a child's own of a copy of this process, once whoever traces it is there."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)  # its tracer is no ancestor; fails where all may
    if not os.read(waits, 1):
        os._exit(1)  # nobody is there any more
    os.close(waits)
    sys.stdin.close()
    errors = os.open(said, os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    os.close(errors)


if __name__ == "__main__":
    main()
