"""``forebay health``: whether the process on this machine does its work, in one line and an exit code.

Containers ask it every half minute: as ``python -m forebay.cli.health`` it loads nothing but the standard library, and
takes a few hundredths of a second of a small machine rather than whole ones.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import click

READY, LIVE = "/readyz", "/livez"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8100
TIMEOUT = 4.0
"""Seconds for the whole answer; less than the container engine waits for this command."""

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is asked, not listened on
_MOST = 64 * 1024


class Health(NamedTuple):
    """Whether all is well, and a line about it."""

    well: bool
    line: str


def check(host: str, port: int, path: str = READY, *, timeout: float = TIMEOUT) -> Health:
    """Ask a process of this machine; never raises.

    Args:
        host: the address that the process listens on; one that means all addresses is asked on loopback.
        port: of HTTP.
        path: ``READY`` or ``LIVE``.
        timeout: seconds for each step of the exchange.
    """
    host = _ANY.get(host, host)
    try:
        status, body = _get(host, port, path, timeout)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Health(well=False, line=f"no answer from {host}:{port}: {reason}")
    said = _told(body)
    return Health(well=status == 200, line=said if status == 200 else f"{status}: {said}")


def main() -> int:
    """Check as the variables say, print the line and return the exit code: what ``HEALTHCHECK`` runs."""
    host = os.environ.get("FOREBAY_HOST") or DEFAULT_HOST
    port = os.environ.get("FOREBAY_PORT") or str(DEFAULT_PORT)
    found = check(host, int(port)) if port.isdecimal() else Health(well=False, line=f"FOREBAY_PORT: {port!r} is none")
    print(found.line, file=sys.stdout if found.well else sys.stderr)
    return 0 if found.well else 1


def health_command() -> click.Command:
    """Return ``forebay health``; made on demand, as click takes longer to load than the check takes."""
    import click

    @click.command("health")
    @click.option(
        "--host",
        default=DEFAULT_HOST,
        show_default=True,
        envvar="FOREBAY_HOST",
        show_envvar=True,
        help="Address that the process listens on; 0.0.0.0 is asked on loopback.",
    )
    @click.option(
        "--port",
        type=click.IntRange(1, 65535),
        default=DEFAULT_PORT,
        show_default=True,
        envvar="FOREBAY_PORT",
        show_envvar=True,
        help="Port of its HTTP.",
    )
    @click.option("--live", is_flag=True, help="Ask whether it answers at all, not whether it is ready.")
    @click.pass_context
    def health(context: click.Context, host: str, port: int, live: bool) -> None:
        """Tell whether the process on this machine is ready.

        Exit code 0: it is; 1: it is not, or does not answer. A container's HEALTHCHECK is `python -m
        forebay.cli.health`, which does the same and loads less.
        """
        found = check(host, port, LIVE if live else READY)
        click.echo(found.line, err=not found.well)
        context.exit(0 if found.well else 1)

    return health


def _get(host: str, port: int, path: str, timeout: float) -> tuple[int, str]:
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n"
    answer = b""
    with socket.create_connection((host, port), timeout) as connection:
        connection.sendall(request.encode("ascii"))
        while len(answer) < _MOST and (more := connection.recv(_MOST)):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("it does not speak HTTP")
    return int(words[1]), body.decode(errors="replace")


def _told(body: str) -> str:
    """Put what the process says about itself into one line."""
    try:
        said = json.loads(body)
        problems = "; ".join(map(str, said["problems"]))
        link = "connected" if said["connected"] else "no link"
    except (ValueError, TypeError, KeyError):
        return " ".join(body.split())[:200]
    return problems or f"ready, {link}"


if __name__ == "__main__":
    sys.exit(main())
