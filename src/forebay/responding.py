"""Answering questions on subjects, each in a task of its own; none while they cannot be answered (S7, C1, C5)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from forebay.crash_points import reach
from forebay.errors import ForebayError
from forebay.jetstream.connection import Connection, Incoming

logger = logging.getLogger(__name__)

Respond = Callable[[Incoming], Awaitable[object]]
"""Returns what is encoded as the answer; a ``ForebayError`` or what cannot be decoded means that there is none."""


class NotAskedError(ForebayError):
    """The question is for another process of this service, which answers it."""


class Responder:
    """Answers in JSON. Start it with ``run``.

    Args:
        connection: to the broker.
        answers: what answers on which subject; wildcards may stand in it.
        able: whether anything may be answered now; a question that comes while not is not answered, and asked again.
    """

    def __init__(self, connection: Connection, answers: Mapping[str, Respond], able: Callable[[], bool]) -> None:
        self._connection = connection
        self._answers = answers
        self._able = able
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            subscriptions = [
                await self._connection.subscribe(subject, partial(self._start, tasks, respond))
                for subject, respond in self._answers.items()
            ]
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.move_on_after(1, shield=True):
                    for subscription in subscriptions:
                        await subscription.unsubscribe()

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something that an answer gave rise to, beside the answering."""
        if self._tasks is not None:
            self._tasks.start_soon(work)

    def _start(self, tasks: TaskGroup, respond: Respond, request: Incoming) -> None:
        if request.reply and self._able():
            tasks.start_soon(self._respond, respond, request)

    async def _respond(self, respond: Respond, request: Incoming) -> None:
        try:
            body = msgspec.json.encode(await respond(request))
            reach("answer.read")
            await self._connection.publish(request.reply, body)
            reach("answer.sent")
        except (ForebayError, msgspec.DecodeError) as error:  # who asked asks again
            if isinstance(error, NotAskedError):
                return
            logger.warning("question.unanswered", extra={"subject": request.subject[:128], "reason": str(error)})
