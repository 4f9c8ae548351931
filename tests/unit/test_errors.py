from __future__ import annotations

import inspect

import pytest

from forebay import errors
from forebay.errors import BudgetSpentError, ForebayError, MessageError, PublishRefusedError

TREE = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, ForebayError)]


def test_every_failure_has_one_base_and_ends_in_error() -> None:
    assert all(one.__name__.endswith("Error") for one in TREE)
    assert len(TREE) > 15


def test_the_module_docstring_draws_the_whole_tree() -> None:
    drawn = errors.__doc__ or ""
    assert [one.__name__ for one in TREE if f" {one.__name__} " not in drawn.replace("\n", " ")] == []


def test_an_error_tells_its_hint_after_its_message() -> None:
    assert str(ForebayError("the disk is full", hint="free some")) == "the disk is full; free some"
    assert str(ForebayError("the disk is full")) == "the disk is full"


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (errors.ConfigurationError, False),
        (errors.TopologyError, True),
        (errors.HeaderError, False),
        (errors.StoreFullError, True),
        (errors.StoreBusyError, True),
        (errors.OutcomeUnknownError, False),
        (errors.ConstraintError, False),
        (errors.EventTooLargeError, False),
        (errors.LinkError, True),
        (errors.NotPermittedError, True),
    ],
)
def test_an_error_says_whether_the_same_call_can_succeed_later(error: type[ForebayError], retryable: bool) -> None:
    assert error.retryable is retryable


def test_every_message_error_is_parked_under_a_word_of_its_own() -> None:
    words = [one.reason for one in TREE if issubclass(one, MessageError)]
    assert len(set(words)) == len(words)


def test_a_spent_budget_says_which_lane_and_when_to_come_back() -> None:
    error = BudgetSpentError("ledger", 4096, 5.0)
    assert (error.lane, error.retry_after, error.retryable) == ("ledger", 5.0, True)
    assert str(error) == "the budget of lane 'ledger' (4096 bytes) is spent"


def test_a_refused_publish_carries_the_code_of_the_broker() -> None:
    error = PublishRefusedError(10077, "maximum bytes exceeded")
    assert error.code == 10077
    assert "maximum bytes exceeded (10077)" in str(error)
