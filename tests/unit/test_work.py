from __future__ import annotations

import asyncio

import pytest

from forebay.errors import OutcomeUnknownError, StoreClosedError
from forebay.work import GROUP_LIMIT, Work, WorkQueue


def unit() -> Work:
    return Work(print, (), {}, asyncio.get_running_loop().create_future())


async def test_what_waits_is_taken_in_order_and_in_groups_and_ends_after_the_last() -> None:
    queue, units = WorkQueue(), [unit() for _ in range(GROUP_LIMIT + 2)]
    for each in units:
        queue.submit(each)
    queue.stop()
    assert queue.take() == units[:GROUP_LIMIT]
    assert queue.take() == units[GROUP_LIMIT:]
    assert queue.take() is None


async def test_nothing_is_taken_after_a_while_and_nothing_submitted_after_the_end() -> None:
    queue = WorkQueue()
    assert queue.take(timeout=0.001) == []
    queue.stop()
    queue.stop()
    with pytest.raises(StoreClosedError):
        queue.submit(unit())
    assert queue.take() is None
    assert queue.empty()


async def test_when_the_thread_dies_everybody_who_waits_hears_of_it_and_who_had_begun_that_it_is_not_known() -> None:
    queue, begun, waiting = WorkQueue(), unit(), unit()
    begun.started = True
    queue.submit(waiting)
    works = [begun]
    queue.end(works)
    assert works == [begun, waiting]
    assert isinstance(begun.error, OutcomeUnknownError)
    assert isinstance(waiting.error, StoreClosedError)
    with pytest.raises(StoreClosedError):
        queue.submit(unit())
