"""Telling systemd how the process is: ready, alive, stopping (the protocol of sd_notify(3), without its library)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

import anyio

_MICROSECONDS = 1_000_000


class Notifier:
    """Sends states to the socket that systemd named; without one, does nothing.

    A state that cannot be sent is lost in silence: systemd then does what the unit says of a silent service, and that
    is a better answer than to end a process that works.

    Attributes:
        watchdog_interval: seconds between two signs of life, half of what systemd allows; None where it wants none.
    """

    def __init__(self, address: str | None, watchdog_interval: float | None = None) -> None:
        self._address = address
        self.watchdog_interval = watchdog_interval if address else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` as systemd sets them."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):  # a socket of another family, or none
            return cls(None)
        limit = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        interval = int(limit) / _MICROSECONDS / 2 if ours and limit.isdecimal() and int(limit) > 0 else None
        return cls(address, interval)

    def ready(self) -> None:
        """Say that start-up is over and requests are answered."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the process ends in order."""
        self._send("STOPPING=1")

    async def watch(self) -> None:
        """Send signs of life until cancelled; ends at once where systemd wants none.

        They come from the event loop on purpose: a loop that hangs is what the watchdog is to find.
        """
        if self.watchdog_interval is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await anyio.sleep(self.watchdog_interval)

    def _send(self, state: str) -> None:
        if self._address is None:
            return
        # A leading @ stands for the zero byte of Linux' abstract names.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a full socket must not stop the event loop
            sender.sendto(state.encode(), address)
