"""What a durable has delivered and no transaction has taken yet, per partition, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from forebay.identity import PARTITIONS
from forebay.jetstream.pulling import Delivery

BATCH = 1000
"""Deliveries of one transaction."""

BATCH_BYTES = 1024 * 1024
"""Bytes of their bodies, or one delivery: a transaction of many large frames would hold up all others."""

Arrived = tuple[int, Delivery]
"""A partition, and what was delivered of it."""


class Arrivals:
    """The deliveries that wait for their transaction."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Delivery]] = {partition: deque() for partition in range(PARTITIONS)}

    def add(self, partition: int, delivery: Delivery) -> None:
        """Take note of the next delivery of a partition."""
        self._waiting[partition].append(delivery)

    def any_of(self, partition: int) -> bool:
        """Whether something of a partition waits."""
        return bool(self._waiting[partition])

    def clear(self, partition: int) -> None:
        """Forget what waits of a partition: it is delivered again."""
        self._waiting[partition].clear()

    def next_batch(self) -> list[Arrived]:
        """Take what waits, in order per partition, a fair share of each partition."""
        ready = [partition for partition, waiting in self._waiting.items() if waiting]
        count, size = (BATCH // len(ready), BATCH_BYTES // len(ready)) if ready else (0, 0)
        batch: list[Arrived] = []
        for partition in ready:
            waiting, left = self._waiting[partition], size
            for _ in range(min(count, len(waiting))):
                delivery = waiting.popleft()
                batch.append((partition, delivery))
                left -= len(delivery.body)
                if left <= 0:
                    break
        return batch

    def put_back(self, batch: Iterable[Arrived]) -> None:
        """Let what was not taken come first again."""
        for partition, delivery in reversed(list(batch)):
            self._waiting[partition].appendleft(delivery)
