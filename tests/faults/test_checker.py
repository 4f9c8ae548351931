"""The checker finds every kind of planted violation, names it rightly, and finds nothing where nothing is."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.faults.checker import KINDS, check, summary
from tests.faults.history import Books, ConsumerState, Effect, Epoch, FreedEarly, History, OutboxState, Write, load

FIRST, SECOND, NOTICES = "a" * 32, "b" * 32, "c" * 32
"""Two epochs of the node's lane, and one of the audit's."""

EACH = 12
"""Events of each epoch of the node."""


def sound() -> History:
    """A run of one node with two meters, in two epochs, whose notices reach the books; nothing is wrong with it."""
    writes = []
    for number in range(1, 2 * EACH + 1):
        epoch, sequence = (FIRST, number) if number <= EACH else (SECOND, number - EACH)
        meter = f"meter-{number % 2}"
        writes.append(Write(number, "house-1", meter, "ledger", (number + 1) // 2, f"{epoch}-{sequence}"))
    effects = [
        Effect(str(write.message_id), "house-1", "meter", "ledger", write.meter, write.number) for write in writes
    ]
    due = [write for write in writes if write.number % 5 == 0]
    notices = [
        Effect(f"{NOTICES}-{at}", "core", "audit", "ledger", write.meter, write.number, f"{write.message_id}/audit/0")
        for at, write in enumerate(due, 1)
    ]
    node = OutboxState(
        node="house-1",
        service="meter",
        domain=[(write.number, str(write.message_id)) for write in writes],
        rows=[str(write.message_id) for write in writes[-4:]],
        epochs=[Epoch(FIRST, "ledger", "none", EACH), Epoch(SECOND, "ledger", f"{FIRST}-{EACH}", EACH)],
        books=[Books("ledger", 2 * EACH, 2 * EACH - 4, 4)],
    )
    audit = OutboxState(
        node="core",
        service="audit",
        domain=[(notice.number, notice.message_id) for notice in notices],
        rows=[],
        epochs=[Epoch(NOTICES, "ledger", "none", len(notices))],
        books=[Books("ledger", len(notices), len(notices), 0)],
    )
    return History(
        seed=1,
        scenario="made up",
        writes=writes,
        outboxes=[node, audit],
        consumers=[consumer("books", [*effects, *notices]), consumer("audit", effects)],
    )


def consumer(name: str, effects: list[Effect]) -> ConsumerState:
    totals: dict[str, tuple[int, int]] = {}
    for effect in effects:
        key = f"{effect.node}/{effect.service}/{effect.meter}"
        count, total = totals.get(key, (0, 0))
        totals[key] = count + 1, total + effect.number
    return ConsumerState(name, effects, totals)


def with_effects(history: History, change: Callable[[list[Effect]], object], at: int = 0) -> None:
    """Change the effects of a consumer; its totals follow."""
    effects = list(history.consumers[at].effects)
    change(effects)
    history.consumers[at] = consumer(history.consumers[at].consumer, effects)


def with_outbox(history: History, at: int = 0, **changes: object) -> None:
    history.outboxes[at] = msgspec.structs.replace(history.outboxes[at], **changes)


# --- what is planted; each returns the kind that must be told


def an_effect_is_missing(history: History) -> str:
    with_effects(history, lambda effects: effects.__delitem__(6))
    return "lost"


def an_effect_is_missing_while_its_row_is_still_on_the_node(history: History) -> str:
    row = history.outboxes[0].rows[0]
    with_effects(history, lambda effects: effects.remove(next(each for each in effects if each.message_id == row)))
    return "lost"


def a_notice_never_arrived(history: History) -> str:
    with_effects(history, lambda effects: effects.pop())
    return "lost"


def an_event_took_effect_twice(history: History) -> str:
    with_effects(history, lambda effects: effects.insert(9, effects[4]))
    return "doubled"


def a_reading_took_effect_under_two_ids(history: History) -> str:
    with_effects(
        history, lambda effects: effects.append(msgspec.structs.replace(effects[3], message_id=f"{'d' * 32}-1"))
    )
    return "doubled"


def a_notice_was_emitted_twice(history: History) -> str:
    with_effects(
        history, lambda effects: effects.append(msgspec.structs.replace(effects[-1], message_id=f"{NOTICES}-9"))
    )
    return "doubled"


def two_events_of_one_epoch_changed_places(history: History) -> str:
    def swap(effects: list[Effect]) -> None:
        effects[2], effects[3] = effects[3], effects[2]

    with_effects(history, swap)
    return "reordered"


def an_epoch_took_effect_before_the_end_of_the_one_before(history: History) -> str:
    with_effects(history, lambda effects: effects.insert(EACH - 2, effects.pop(EACH)))
    return "reordered"


def a_meters_readings_changed_places_between_epochs_that_do_not_name_each_other(history: History) -> str:
    epochs = [history.outboxes[0].epochs[0], Epoch(SECOND, "ledger", "none", EACH)]
    with_outbox(history, epochs=epochs)
    with_effects(history, lambda effects: effects.insert(EACH - 1, effects.pop(EACH + 1)))
    return "reordered"


def an_effect_that_nobody_wrote(history: History) -> str:
    with_effects(history, lambda effects: effects.append(msgspec.structs.replace(effects[0], number=999)))
    return "phantom"


def an_effect_under_another_node(history: History) -> str:
    with_effects(history, lambda effects: effects.__setitem__(0, msgspec.structs.replace(effects[0], node="house-2")))
    return "phantom"


def an_effect_under_another_id_than_was_acknowledged(history: History) -> str:
    history.writes[3] = msgspec.structs.replace(history.writes[3], message_id=f"{FIRST}-11")
    return "phantom"


def a_notice_that_nobody_had_to_make(history: History) -> str:
    with_effects(history, lambda effects: effects.append(msgspec.structs.replace(effects[-1], number=7)))
    return "phantom"


def a_row_without_its_event(history: History) -> str:
    with_outbox(history, domain=[*history.outboxes[0].domain, (25, f"{SECOND}-{EACH + 1}")])
    return "half-done"


def an_event_without_its_row(history: History) -> str:
    with_outbox(history, rows=[*history.outboxes[0].rows, f"{SECOND}-{EACH + 1}"])
    return "half-done"


def an_effect_whose_node_has_no_row_of_it(history: History) -> str:
    with_outbox(history, domain=history.outboxes[0].domain[2:])
    return "half-done"


def half_of_a_request(history: History) -> str:
    with_outbox(history, domain=history.outboxes[0].domain[1:])
    return "half-done"


def an_effect_without_its_total(history: History) -> str:
    totals = dict(history.consumers[0].totals)
    totals["house-1/meter/meter-0"] = (1, 2)
    history.consumers[0] = msgspec.structs.replace(history.consumers[0], totals=totals)
    return "half-done"


def an_effect_without_what_it_emits(history: History) -> str:
    with_outbox(history, at=1, domain=history.outboxes[1].domain[1:])
    return "half-done"


def a_row_that_was_freed_too_early(history: History) -> str:
    history.freed_early.append(FreedEarly("house-1", f"{FIRST}-3", "audit"))
    return "freed too early"


def an_event_that_was_parked(history: History) -> str:
    history.consumers[1] = msgspec.structs.replace(history.consumers[1], parked=[f"{FIRST}-3: undecodable"])
    return "parked"


def books_that_do_not_balance(history: History) -> str:
    with_outbox(history, books=[Books("ledger", 2 * EACH, 2 * EACH - 5, 4)])
    return "books"


def a_database_that_fails_its_integrity_check(history: History) -> str:
    with_outbox(history, integrity="row 7 missing from index")
    return "corrupt"


PLANTED = [
    an_effect_is_missing,
    an_effect_is_missing_while_its_row_is_still_on_the_node,
    a_notice_never_arrived,
    an_event_took_effect_twice,
    a_reading_took_effect_under_two_ids,
    a_notice_was_emitted_twice,
    two_events_of_one_epoch_changed_places,
    an_epoch_took_effect_before_the_end_of_the_one_before,
    a_meters_readings_changed_places_between_epochs_that_do_not_name_each_other,
    an_effect_that_nobody_wrote,
    an_effect_under_another_node,
    an_effect_under_another_id_than_was_acknowledged,
    a_notice_that_nobody_had_to_make,
    a_row_without_its_event,
    an_event_without_its_row,
    an_effect_whose_node_has_no_row_of_it,
    half_of_a_request,
    an_effect_without_its_total,
    an_effect_without_what_it_emits,
    a_row_that_was_freed_too_early,
    an_event_that_was_parked,
    books_that_do_not_balance,
    a_database_that_fails_its_integrity_check,
]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    violations = check(sound())
    assert not violations, summary(violations)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_violation_is_found(plant: Callable[[History], str]) -> None:
    history = sound()
    kind = plant(history)
    found = check(history)
    assert kind in {violation.kind for violation in found}, summary(found) or "nothing was found"


def test_every_kind_is_planted() -> None:
    planted = {plant(sound()) for plant in PLANTED}
    assert planted == set(KINDS)


def test_what_went_with_a_disk_is_not_called_lost() -> None:
    """Point 1 ends where the node's disk does."""
    history = sound()
    gone = history.writes[-2:]
    history.lost_with_disk = {write.number for write in gone}
    history.restored = {"house-1"}
    with_outbox(history, domain=history.outboxes[0].domain[:-2], rows=history.outboxes[0].rows[:-2], books=[])
    for at in range(2):
        with_effects(
            history,
            lambda effects: effects.__setitem__(
                slice(None), [each for each in effects if each.number not in history.lost_with_disk]
            ),
            at,
        )
    assert not check(history), summary(check(history))


def test_what_a_restored_node_had_emitted_may_have_no_row_on_it() -> None:
    """An effect of an event that went with the disk is no phantom and not half-done; the same without a restore is."""
    history = sound()
    history.lost_with_disk = {write.number for write in history.writes[-2:]}
    with_outbox(history, domain=history.outboxes[0].domain[:-2], rows=history.outboxes[0].rows[:-2], books=[])
    assert {violation.kind for violation in check(history)} == {"half-done"}
    history.restored = {"house-1"}
    assert not check(history), summary(check(history))


def test_an_unanswered_request_may_be_there_or_not() -> None:
    """Without an answer nothing is promised, but for the rest: once, in order, as a whole."""
    history = sound()
    history.writes[-2:] = [msgspec.structs.replace(write, message_id=None) for write in history.writes[-2:]]
    assert not check(history), summary(check(history))


def test_any_effect_taken_away_added_or_moved_is_found() -> None:
    """Not only the planted ones: random damage to the order of effects never passes."""
    dice = random.Random(7)
    for _ in range(200):
        history = copy.deepcopy(sound())
        before = list(history.consumers[1].effects)
        effects = list(before)
        at = dice.randrange(len(effects))
        action = dice.choice(("remove", "repeat", "move"))
        effect = effects[at]
        if action != "repeat":
            del effects[at]
        if action != "remove":
            effects.insert(dice.randrange(len(effects) + 1), effect)
        if effects != before:
            history.consumers[1] = consumer("audit", effects)
            assert check(history), f"{action} at {at}"


def test_a_history_can_be_kept_and_read_again(tmp_path: Path) -> None:
    history = sound()
    history.save(tmp_path / "history.json")
    assert load(tmp_path / "history.json") == history
