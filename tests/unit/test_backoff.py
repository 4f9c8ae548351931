from __future__ import annotations

from forebay.backoff import Backoff


def test_delays_stay_below_a_bound_that_doubles_up_to_the_most() -> None:
    for _ in range(200):
        backoff = Backoff(first=1.0, most=8.0)
        for bound in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0):
            assert bound / 10 <= backoff.next() <= bound


def test_delays_never_spin_and_are_spread() -> None:
    delays = {Backoff(first=1.0).next() for _ in range(100)}
    assert min(delays) >= 0.1
    assert len(delays) > 90


def test_success_begins_with_the_first_delay_again() -> None:
    backoff = Backoff(first=1.0, most=60.0)
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 1.0
