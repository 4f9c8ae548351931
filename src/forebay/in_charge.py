"""What only one process of a service may do at a time: it runs while this process is in charge (rule S7).

On SQLite one process has the file and is always in charge. On PostgreSQL the processes of a service share its database,
and one of them holds the charge, a lock of its writing session; when that session ends another one takes over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
from anyio.abc import TaskStatus

from forebay.errors import StoreError
from forebay.stores import Charge, Part

logger = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between looks whether this process is in charge."""


class InCharge:
    """Runs parts of a service while this process is in charge. Start it with ``run``.

    Args:
        service: its name, in log lines.
        charge: the lock.
        parts: what runs alone.
    """

    def __init__(self, service: str, charge: Charge, parts: Sequence[Part]) -> None:
        self._service = service
        self._charge = charge
        self._parts = parts

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Wait for the charge, run the parts while it lasts, and wait again, until cancelled."""
        task_status.started()
        while True:
            if await self._has():
                logger.info("service.charge_taken", extra={"service": self._service})
                async with anyio.create_task_group() as tasks:
                    for part in self._parts:
                        await tasks.start(part.run)
                    while await self._has():  # noqa: ASYNC110 - a lock that is lost tells nobody
                        await anyio.sleep(LOOK)
                    tasks.cancel_scope.cancel()
                logger.warning("service.charge_lost", extra={"service": self._service})
            await anyio.sleep(LOOK)

    async def _has(self) -> bool:
        try:
            return await self._charge.has()
        except StoreError:
            return False
