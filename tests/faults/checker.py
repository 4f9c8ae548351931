"""Judges a history, with no knowledge of how the engine works: only what was promised.

It reads message ids as ``<epoch>-<sequence>`` and epochs as chained by ``prev``, because order is promised in these
terms. Everything else is the client's view against the consumers' tables.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby

import msgspec

from tests.faults.history import ConsumerState, Effect, History, OutboxState, Write
from tests.faults.services.readings import LATE_EVERY, NOTICE_EVERY

KINDS = ("lost", "doubled", "reordered", "phantom", "half-done", "freed too early", "parked", "books", "corrupt")


class Violation(msgspec.Struct, frozen=True):
    """One thing that must not be; ``kind`` is one of ``KINDS``."""

    kind: str
    detail: str


def check(history: History) -> list[Violation]:
    """Return every violation of a history, the worst kinds first."""
    rules: tuple[Callable[[History], Iterator[Violation]], ...] = (
        _lost,
        _doubled,
        _reordered_in_origin,
        _reordered_in_key,
        _phantom,
        _half_done_on_node,
        _half_done_in_core,
        _freed_early,
        _parked,
        _books,
        _corrupt,
    )
    return [violation for rule in rules for violation in rule(history)]


def summary(violations: list[Violation], limit: int = 12) -> str:
    """Return the counts by kind and the first details."""
    counts = Counter(each.kind for each in violations)
    lines = [", ".join(f"{count} {kind}" for kind, count in counts.most_common())]
    return "\n".join([*lines, *(f"{each.kind}: {each.detail}" for each in violations[:limit])])


def _lost(history: History) -> Iterator[Violation]:
    kept = {row for outbox in history.outboxes for row in outbox.rows}
    for consumer in history.consumers:
        seen = {effect.message_id for effect in consumer.effects}
        for write in history.writes:
            if write.message_id is None or write.message_id in seen or write.number in history.lost_with_disk:
                continue
            where = "still on its node" if write.message_id in kept else "gone from its node"
            yield Violation("lost", f"{write.message_id} (number {write.number}) at {consumer.consumer}, {where}")
    if noticing := _noticing(history):
        due = {effect.number for effect in noticing.effects if _wants_notice(effect)}
        for consumer in history.consumers:
            if _takes_notices(history, consumer):
                there = {effect.number for effect in consumer.effects if effect.service == "audit"}
                for number in sorted(due - there):
                    yield Violation("lost", f"the notice of number {number} at {consumer.consumer}")


def _doubled(history: History) -> Iterator[Violation]:
    for consumer in history.consumers:
        for message_id, count in Counter(effect.message_id for effect in consumer.effects).items():
            if count > 1:
                yield Violation("doubled", f"{message_id} took effect {count} times at {consumer.consumer}")
        ids: dict[tuple[str, int], set[str]] = defaultdict(set)
        for effect in consumer.effects:
            ids[effect.service, effect.number].add(effect.message_id)
        for (service, number), found in ids.items():
            if len(found) > 1 and number not in history.rewritten:
                detail = f"number {number} of {service} took effect as {sorted(found)} at {consumer.consumer}"
                yield Violation("doubled", detail)


def _reordered_in_origin(history: History) -> Iterator[Violation]:
    """Within an epoch sequences rise; an epoch begins after the place that it names as the one before it.

    A key that had to wait by itself is judged by the order of the key alone: all others went on meanwhile.
    """
    prevs = {epoch.epoch: epoch.prev for outbox in history.outboxes for epoch in outbox.epochs}
    for consumer in history.consumers:
        highest: dict[str, int] = {}
        begun: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for effect in consumer.effects:
            if effect.meter in history.waited:
                continue
            epoch, sequence = place(effect.message_id)
            if epoch not in highest:
                before, last = place(prevs.get(epoch, "none"))
                begun[before].append((epoch, last))
            if sequence < highest.get(epoch, 0):
                detail = f"{effect.message_id} took effect after {epoch}-{highest[epoch]} at {consumer.consumer}"
                yield Violation("reordered", detail)
            highest[epoch] = max(sequence, highest.get(epoch, 0))
            for later, last in begun.get(epoch, ()):
                if sequence <= last:
                    yield Violation(
                        "reordered", f"{effect.message_id} took effect after the epoch {later} at {consumer.consumer}"
                    )


def _reordered_in_key(history: History) -> Iterator[Violation]:
    for consumer in history.consumers:
        latest: dict[tuple[str, str, str, str], int] = {}
        for effect in _once_each(consumer.effects):
            if effect.service == "audit" and effect.number % LATE_EVERY == 0:
                continue  # a timer made it: it comes when its time has come
            key = (effect.node, effect.service, effect.lane, effect.meter)
            if effect.number < latest.get(key, 0) and effect.number not in history.rewritten:
                yield Violation(
                    "reordered",
                    f"number {effect.number} of {'/'.join(key)} took effect after {latest[key]} at {consumer.consumer}",
                )
            latest[key] = max(effect.number, latest.get(key, 0))


def _phantom(history: History) -> Iterator[Violation]:
    written = {write.number: write for write in history.writes}
    for consumer in history.consumers:
        for effect in consumer.effects:
            write = written.get(effect.number)
            if write is None:
                yield Violation("phantom", f"{effect.message_id}: nobody wrote number {effect.number}")
            elif effect.service == "audit":
                if effect.number % NOTICE_EVERY or effect.meter != write.meter:
                    yield Violation("phantom", f"{effect.message_id} is a notice that nobody had to make")
            elif wrong := _differences(effect, write, history):
                yield Violation("phantom", f"{effect.message_id} at {consumer.consumer}: {wrong}")


def _differences(effect: Effect, write: Write, history: History) -> str:
    pairs = [
        ("node", effect.node, write.node),
        ("lane", effect.lane, write.lane),
        ("meter", effect.meter, write.meter),
    ]
    if write.message_id is not None and write.number not in history.rewritten:
        pairs.append(("message id", effect.message_id, write.message_id))
    return ", ".join(f"{name} {is_!r} was written as {was!r}" for name, is_, was in pairs if is_ != was)


def _half_done_on_node(history: History) -> Iterator[Violation]:
    """A row without its event, an event without its row, or a part of what one request wrote."""
    domain_of: dict[str, set[str]] = defaultdict(set)
    whole = [outbox for outbox in history.outboxes if outbox.node not in history.damaged]
    for outbox in whole:
        last = {epoch.epoch: epoch.last for epoch in outbox.epochs}
        own = {message_id for _, message_id in outbox.domain}
        domain_of[outbox.node] |= own
        for number, message_id in outbox.domain:
            epoch, sequence = place(message_id)
            if sequence > last.get(epoch, 0):
                yield Violation("half-done", f"number {number} on {outbox.node} has no event {message_id}")
        for row in outbox.rows:
            if row not in own:
                yield Violation("half-done", f"event {row} on {outbox.node} has no row in its service's tables")
    for consumer in history.consumers:
        for effect in consumer.effects:
            known_node = effect.node in domain_of and effect.node not in history.restored
            if known_node and effect.message_id not in domain_of[effect.node]:
                yield Violation("half-done", f"event {effect.message_id} of {effect.node} has no row on its node")
    kept = (write for write in history.writes if write.node not in history.damaged)
    by_unit = sorted(kept, key=lambda write: write.unit)
    known = {number for outbox in whole if outbox.service == "meter" for number, _ in outbox.domain}
    for unit, writes in groupby(by_unit, key=lambda write: write.unit):
        numbers = {write.number for write in writes} - history.lost_with_disk
        there = numbers & known
        if there and there != numbers:
            yield Violation("half-done", f"unit {unit}: {sorted(there)} of {sorted(numbers)} are on the node")


def _half_done_in_core(history: History) -> Iterator[Violation]:
    for consumer in history.consumers:
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for effect in consumer.effects:
            total = sums[f"{effect.node}/{effect.service}/{effect.meter}"]
            total[0] += 1
            total[1] += effect.number
        for key in sorted(sums.keys() | consumer.totals.keys()):
            if tuple(sums[key]) != tuple(consumer.totals.get(key, (0, 0))):
                detail = f"{key} at {consumer.consumer}: effects {sums[key]}, total {consumer.totals.get(key)}"
                yield Violation("half-done", detail)
    if noticing := _noticing(history):
        wanted = Counter(effect.number for effect in noticing.effects if _wants_notice(effect))
        made = Counter(number for outbox in _of(history, noticing) for number, _ in outbox.domain)
        for number in sorted(wanted.keys() ^ made.keys()):
            yield Violation("half-done", f"number {number}: {wanted[number]} effects and {made[number]} notices")


def _freed_early(history: History) -> Iterator[Violation]:
    for each in history.freed_early:
        yield Violation("freed too early", f"{each.message_id} left {each.node} before {each.consumer} had it")


def _parked(history: History) -> Iterator[Violation]:
    for consumer in history.consumers:
        for parked in consumer.parked:
            yield Violation("parked", f"{parked} at {consumer.consumer}")


def _books(history: History) -> Iterator[Violation]:
    for outbox in history.outboxes:
        for lane in outbox.books:
            if lane.written != lane.confirmed + lane.pending + lane.dropped + lane.withheld:
                yield Violation("books", f"{outbox.node}/{outbox.service}: {lane}")


def _corrupt(history: History) -> Iterator[Violation]:
    for outbox in history.outboxes:
        if outbox.integrity != "ok":
            yield Violation("corrupt", f"{outbox.node}/{outbox.service}: {outbox.integrity}")
    for consumer in history.consumers:
        if consumer.integrity != "ok":
            yield Violation("corrupt", f"{consumer.consumer}: {consumer.integrity}")


def place(text: str) -> tuple[str, int]:
    """Return the epoch and sequence of a message id, or ("", 0) for ``none``."""
    epoch, _, sequence = text.partition("-")
    return (epoch, int(sequence)) if sequence else ("", 0)


def _noticing(history: History) -> ConsumerState | None:
    return next((consumer for consumer in history.consumers if consumer.consumer == "audit"), None)


def _takes_notices(history: History, consumer: ConsumerState) -> bool:
    return consumer.consumer == "books" and any(outbox.service == "audit" for outbox in history.outboxes)


def _wants_notice(effect: Effect) -> bool:
    return effect.service == "meter" and effect.lane == "ledger" and effect.number % NOTICE_EVERY == 0


def _of(history: History, consumer: ConsumerState) -> list[OutboxState]:
    return [outbox for outbox in history.outboxes if outbox.service == consumer.consumer]


def _once_each(effects: list[Effect]) -> Iterator[Effect]:
    """Leave repeated effects out: they are told once, as doubled."""
    seen: set[str] = set()
    for effect in effects:
        if effect.message_id not in seen:
            seen.add(effect.message_id)
            yield effect
