"""Which answer belongs to which request: one inbox, one token for each answer that is awaited."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from forebay.errors import LinkError, NotPermittedError


class Incoming(NamedTuple):
    """A message from the broker as a subscription gets it."""

    subject: str
    reply: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def status(self) -> int:
        """The status the broker put in place of a message (503: nobody listens, 408: expired, ...); else 0."""
        text = self.headers.get("Status", "") if not self.body else ""
        return int(text) if text.isdigit() else 0


Reply = Incoming


class _Awaited(NamedTuple):
    answer: asyncio.Future[Incoming | LinkError]
    subjects: frozenset[str]
    timer: asyncio.TimerHandle


class Replies:
    """The answers that are awaited under one inbox, ``<inbox>.<token>``.

    Every answer is settled in the end: by a message, by its time-out, by the loss of the connection, or by the
    broker's word that the subject is not permitted. Settled answers leave the table at once, so no slot can leak
    (futures of ``publish_async`` in nats-py leak on errors and disconnects). Not thread-safe: one event loop.
    """

    def __init__(self, inbox_prefix: str) -> None:
        self._inbox = f"{inbox_prefix}.{secrets.token_hex(8)}"
        self._awaited: dict[str, _Awaited] = {}
        self._next = 0
        self._barred = False

    def __len__(self) -> int:
        return len(self._awaited)

    @property
    def pattern(self) -> str:
        """The subject to subscribe to, with ``receive`` as its callback."""
        return f"{self._inbox}.*"

    def expect(self, subjects: Iterable[str], timeout: float) -> tuple[str, asyncio.Future[Incoming | LinkError]]:
        """Return a fresh reply subject and its answer.

        Args:
            subjects: what is published under it; a permission violation on one of them settles the answer.
            timeout: seconds after which the answer is a ``LinkError``.
        """
        loop = asyncio.get_running_loop()
        self._next += 1
        reply = f"{self._inbox}.{self._next:x}"
        answer: asyncio.Future[Incoming | LinkError] = loop.create_future()
        timer = loop.call_later(timeout, self._expire, reply, timeout)
        self._awaited[reply] = _Awaited(answer, frozenset(subject.lower() for subject in subjects), timer)
        if self._barred:
            self.settle(reply, _not_permitted(self.pattern))
        return reply, answer

    def settle(self, reply: str, result: Incoming | LinkError) -> None:
        """Give the answer under ``reply`` its result; late and unknown ones are ignored."""
        awaited = self._awaited.pop(reply, None)
        if awaited is not None:
            awaited.timer.cancel()
            if not awaited.answer.done():
                awaited.answer.set_result(result)

    def forget(self, reply: str) -> None:
        """Stop waiting for an answer: nobody is interested any more."""
        awaited = self._awaited.pop(reply, None)
        if awaited is not None:
            awaited.timer.cancel()
            awaited.answer.cancel()

    def receive(self, message: Incoming) -> None:
        """Settle the answer that this message is."""
        self.settle(message.subject, message)

    def lost(self, why: str) -> None:
        """Settle everything: the connection that would have brought the answers is gone."""
        self._barred = False
        for reply in list(self._awaited):
            self.settle(reply, LinkError(why))

    def denied(self, subject: str) -> None:
        """Settle what was published to ``subject`` (lower case, as the broker's word is delivered)."""
        if subject == self.pattern.lower():
            self._barred = True
        for reply, awaited in list(self._awaited.items()):
            if self._barred or subject in awaited.subjects or subject == reply.lower():
                self.settle(reply, _not_permitted(subject))

    def _expire(self, reply: str, timeout: float) -> None:
        self.settle(reply, LinkError(f"no answer within {timeout:g} s"))


def _not_permitted(subject: str) -> NotPermittedError:
    return NotPermittedError(f"the credentials do not permit {subject!r}")
