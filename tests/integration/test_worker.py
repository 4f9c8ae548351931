"""A service's work outside its store: when it is called, and how a call that fails is repeated."""

from __future__ import annotations

import anyio
import pytest

from forebay.backoff import Backoff
from forebay.testing.waiting import until
from forebay.worker import Worker


async def test_work_that_fails_is_repeated_after_a_pause_that_begins_anew_after_a_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    def pause(_: Backoff) -> float:
        happened.append("pause")
        return 0.0

    monkeypatch.setattr(Backoff, "next", pause)
    monkeypatch.setattr(Backoff, "reset", lambda _: happened.append("anew"))
    outcomes: list[bool | Exception] = [True, ZeroDivisionError(), ZeroDivisionError(), False]

    async def work() -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with anyio.create_task_group() as tasks:
        await tasks.start(Worker("orders.paying", work, every=3600.0).run)
        await until(lambda: not outcomes)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert happened == ["anew", "pause", "pause", "anew"]


async def test_work_is_called_again_when_it_is_woken_also_while_it_works() -> None:
    calls = 0

    async def work() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            worker.wake()
        return False

    worker = Worker("orders.paying", work, every=3600.0)
    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        await until(lambda: calls == 2)
        await anyio.wait_all_tasks_blocked()
        assert calls == 2
        worker.wake()
        await until(lambda: calls == 3)
        tasks.cancel_scope.cancel()
