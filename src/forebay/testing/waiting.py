"""Waiting for a condition with a limit; a sleep is too long on most days and too short on one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import anyio

T = TypeVar("T")

POLL_INTERVAL = 0.02
"""Seconds between two looks at a condition."""


@overload
async def until(
    condition: Callable[[], Awaitable[T]],
    *,
    limit: float = ...,
    what: Callable[[], str] | str = ...,
    every: float = ...,
) -> T: ...


@overload
async def until(
    condition: Callable[[], T], *, limit: float = ..., what: Callable[[], str] | str = ..., every: float = ...
) -> T: ...


async def until(
    condition: Callable[[], Any],
    *,
    limit: float = 10.0,
    what: Callable[[], str] | str = "the condition holds",
    every: float = POLL_INTERVAL,
) -> Any:
    """Wait for a condition and return what it returned when it was true.

    Args:
        condition: a plain or an asynchronous function.
        limit: seconds; be generous, a test that passes never waits for it.
        what: what is waited for, said in the failure; a function is called only then.
        every: seconds between two looks.

    Raises:
        AssertionError: the condition was not true within the limit.
    """
    deadline = time.monotonic() + limit
    while True:
        result = condition()
        found = await result if inspect.isawaitable(result) else result
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit:g} s: {what() if callable(what) else what}")
        await anyio.sleep(every)
