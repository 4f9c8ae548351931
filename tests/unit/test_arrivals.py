from __future__ import annotations

from forebay.arrivals import BATCH, BATCH_BYTES, Arrivals
from forebay.jetstream.pulling import Delivery


def delivery(sequence: int, size: int = 1) -> Delivery:
    return Delivery("evt.1.n.s.k", {}, bytes(size), sequence, sequence, 0, "", 0, 1)


def test_what_was_not_taken_comes_first_again_and_in_its_order() -> None:
    arrivals = Arrivals()
    for sequence in range(1, 6):
        arrivals.add(2, delivery(sequence))
    batch = arrivals.next_batch()
    arrivals.add(2, delivery(6))
    arrivals.put_back(batch[2:])
    assert [each.stream_sequence for _, each in arrivals.next_batch()] == [3, 4, 5, 6]
    assert not arrivals.any_of(2)


def test_a_batch_is_bounded_in_bytes_and_in_deliveries_with_a_share_for_each_partition() -> None:
    arrivals = Arrivals()
    for sequence in range(1, 9):
        arrivals.add(0, delivery(sequence, BATCH_BYTES // 4))
    for sequence in range(1, BATCH + 1):
        arrivals.add(1, delivery(sequence))
    batch = arrivals.next_batch()
    assert [partition for partition, _ in batch] == [0, 0] + [1] * (BATCH // 2)
    arrivals.clear(1)
    assert len(arrivals.next_batch()) == 4
    assert len(arrivals.next_batch()) == 2


def test_one_delivery_goes_whatever_its_size() -> None:
    arrivals = Arrivals()
    arrivals.add(0, delivery(1, 2 * BATCH_BYTES))
    arrivals.add(0, delivery(2))
    assert len(arrivals.next_batch()) == 1
