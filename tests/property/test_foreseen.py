"""An inbox that reads at once what a batch will ask for is the inbox that reads it one by one."""

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forebay.delivery import Delivery
from forebay.epoch_rows import COLUMNS
from forebay.foreseen import foreseen
from forebay.identity import Place
from forebay.inbox import Ahead, Inbox, look_ahead
from tests.integration.arrivals import as_it_came
from tests.property.test_intake import NODES, Core, Piece, arrivals

TABLES = {
    "effect": "node, at",
    "forebay_inbox": f"node, service, {COLUMNS}",
    "forebay_held": "*",
    "forebay_gap": "node, service, lane, epoch, first, last, kind, reason",
    "forebay_parked": "digest, reason, detail, node, service, message_id, key, alone, wanted",
    "forebay_position": "*",
}

Said = tuple[str, str, str, int, int]
"""What is said of places: how they are closed, the node, the epoch, first and last place."""


said = st.tuples(
    st.sampled_from(["drop", "withhold", "skip", "abandon", "give up"]),
    st.sampled_from(NODES),
    st.integers(1, 2).flatmap(lambda node: st.integers(1, 3).map(lambda life: f"{node:016x}{life:016x}")),
    st.integers(1, 6),
    st.integers(0, 3),
).map(lambda each: (*each[:4], each[3] + each[4]))


class Twin(Core):
    """A core that is told things of places as well, and shows all that it has written."""

    def say(self, said: Said) -> None:
        how, node, epoch, first, last = said
        self._connection.execute("BEGIN IMMEDIATE")
        inbox = Inbox(self.transaction())
        known = inbox.whole(node, "till")
        if how == "drop":
            known.drop([(epoch, first, last)], "ledger", {})
        elif how == "withhold":
            known.withhold([(epoch, first, "a key")], "ledger", {})
        else:
            state = known.take_on(epoch, "ledger", None)
            watermark = state.passed.watermark
            if how == "abandon":
                state.abandoned_after = first
            elif how == "give up" and last > watermark:
                state.given_up = max(first, watermark + 1), last, 1
            elif how == "skip" and last > watermark and not state.passed.ranges:
                known.skip(epoch, last)
            state.changed = True
        inbox.save()
        self._connection.execute("COMMIT")

    def look_ahead(self, deliveries: list[Delivery]) -> Ahead:
        self._connection.execute("BEGIN")
        try:
            return look_ahead(self.transaction(), deliveries)
        finally:
            self._connection.execute("ROLLBACK")

    def written(self) -> dict[str, list[tuple[Any, ...]]]:
        return {
            table: sorted((tuple(row) for row in self._connection.execute(f"select {columns} from {table}")), key=str)
            for table, columns in TABLES.items()
        }


def one_by_one(*_: Any) -> None:
    """Foresee nothing."""


@settings(max_examples=200, deadline=None)
@given(arrivals(), st.lists(st.tuples(st.integers(0, 30), said), max_size=8), st.booleans())
def test_what_is_foreseen_changes_nothing(
    known: tuple[dict[str, list[Delivery]], list[list[Piece]]], statements: list[tuple[int, Said]], raw: bool
) -> None:
    _, batches = known
    one, before, other = twins = Twin(), Twin(), Twin()
    try:
        for number, batch in enumerate(batches):
            for _, each in (each for each in statements if each[0] % len(batches) == number):
                for twin in twins:
                    twin.say(each)
            deliveries = [as_it_came(piece.delivery) if raw else piece.delivery for piece in batch]
            with patch("forebay.inbox.FEW", 0):
                one.take(deliveries)
            before.take(deliveries, ahead=before.look_ahead(deliveries))
            with patch.object(Inbox, "expect", one_by_one):
                other.take(deliveries)
            assert one.written() == before.written() == other.written()
    finally:
        for twin in twins:
            twin.close()


texts = st.text(st.characters(codec="utf-8"), max_size=80)


@given(st.sampled_from(["evt.3.store-330.till.rung", "cmd.store-330.till.ring", "evt"]), texts, texts, st.booleans())
@example("evt.3.store-330.till.rung", "\0" * 32 + "-1", "none", True)
@example("evt.3.store-330.till.rung", f"{1:032x}-1", "\0" * 32, False)
def test_a_glance_at_whatever_comes_names_only_what_a_database_can_be_asked_for(
    subject: str, message_id: str, prev: str, raw: bool
) -> None:
    headers = {"Nats-Msg-Id": message_id, "forebay-prev": prev}
    delivery = Delivery(3, 1, 1, subject, headers, b"{}")
    if raw:
        delivery = as_it_came(delivery)
    for met in foreseen([delivery]):
        assert met[:2] == ("store-330", "till")
        assert all(part.isalnum() for part in met[2:] if part)


@pytest.mark.parametrize("raw", [False, True])
def test_a_glance_sees_the_epoch_and_the_one_before_it(raw: bool) -> None:
    epoch, before = f"{2:032x}", f"{1:032x}"
    headers = {"Nats-Msg-Id": f"{epoch}-7~ab", "forebay-lane": "ledger", "forebay-prev": str(Place(before, 3))}
    first = Delivery(3, 1, 1, "evt.3.store-330.till.rung", {**headers, "forebay-prev": "none"}, b"{}")
    second = Delivery(3, 2, 1, "evt.3.store-331.till.rung", headers, b"{}")
    deliveries = [as_it_came(each) if raw else each for each in (first, second, first)]
    assert foreseen(deliveries) == {("store-330", "till", epoch, ""), ("store-331", "till", epoch, before)}
