"""What becomes of events whose headers are read in one go is what becomes of them where each name is looked up."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forebay import Message, UnitOfWork
from forebay.committing import Committing
from forebay.delivery import Delivery
from forebay.handlers import Handlers
from forebay.headers import Headers
from forebay.identity import Place
from forebay.jetstream.publishing import encode_head
from forebay.plain_event import plain_of
from tests.integration.arrivals import NEW, Core, Stream
from tests.integration.test_intake import Rung, RungTogether, event, opened_at

SEEDS = range(12)
FAILS = 7
"""The handlers fail on numbers that end with it."""

TABLES = (
    "select node, service, epoch, lane, prev, watermark, held, missing from forebay_inbox order by 1, 2, 3",
    "select reason, node, lane, epoch, sequence, message_id, key, alone, detail from forebay_parked order by id",
    "select n, message_id from effect order by id",
    "select node, epoch, sequence, body from forebay_held order by 1, 2, 3",
    "select partition, sequence, message_id from forebay_position order by 1",
    "select node, cause from forebay_cause order by 1, 2",
)


def from_the_wire(delivery: Delivery) -> Delivery:
    """Return a delivery with its headers as a reader gets them."""
    return delivery._replace(headers=Headers(b"NATS/1.0\r\n%b\r\n" % encode_head(delivery.headers)))


def handlers() -> Handlers:
    def rung(tx: UnitOfWork, event: Rung, message: Message) -> None:
        tx.execute("insert into effect (n, message_id) values (:n, :id)", n=event.n, id=message.message_id)
        if event.n % 10 == FAILS:
            raise ZeroDivisionError

    def together(tx: UnitOfWork, events: list[RungTogether], messages: list[Message]) -> None:
        for each, message in zip(events, messages, strict=True):
            tx.execute("insert into effect (n, message_id) values (:n, :id)", n=each.n, id=message.message_id)
        if any(each.n % 10 == FAILS for each in events):
            raise ZeroDivisionError

    known = Handlers()
    known.add(Rung, rung, batch=False)
    known.add(RungTogether, together, batch=True)
    return known


def one(dice: random.Random, stream: Stream, sequence: int, odd: float, **fields: Any) -> Delivery:
    """An event, odd in one way or another as often as ``odd`` says; handlers fail on some."""
    number = sequence * 10 + (FAILS if dice.random() < 0.1 else 1)
    if dice.random() < odd:
        fields["key"] = dice.choice("ab")
    if dice.random() < odd / 2:
        fields["cause"] = f"{NEW}-{dice.randrange(1, 4)}/x/0"
    if dice.random() < odd / 4:
        fields["type"] = dice.choice(["till.rung.v9", "bad"])
    if dice.random() < odd / 8:
        fields["source"] = "/x/y"
    kind = dice.choice(["rung", "rung", "rung-together", "other"])
    made: Delivery = event(stream, sequence, number, kind=kind, **fields)
    return made._replace(body=dice.choice([b"", b"{bad"])) if dice.random() < odd / 8 else made


def arrivals(seed: int) -> list[list[Delivery]]:
    """Batches of events of a few nodes, some out of order, lost or twice; for every second seed as most are."""
    dice, stream = random.Random(seed), Stream()
    odd = 0.4 if seed % 2 else 0.0
    found: list[Delivery] = []
    for node in range(dice.choice([1, 2, 5])):
        prev = None
        for number in range(dice.choice([1, 1, 2])):
            epoch, count = f"{node * 10 + number + 1:032x}", dice.randrange(1, 20)
            fields = {"node": f"store-{node}", "epoch": epoch, "prev": prev}
            found += [one(dice, stream, at, odd, **fields) for at in range(1, count + 1)]
            prev = Place(epoch, count)
    for _ in range(6 if odd else 0):
        at = dice.randrange(len(found))
        found.insert(max(0, at + dice.randrange(-5, 6)), found.pop(at))
    found += dice.choices(found, k=dice.randrange(4))
    if odd:
        del found[dice.randrange(len(found))]
    found = [each._replace(stream_sequence=at) for at, each in enumerate(found, 1)]
    batches, at = [], 0
    while at < len(found):
        size = dice.choice([1, 3, 10, 50])
        batches.append(found[at : at + size])
        at += size
    return batches


async def taken_in(
    folder: Path, batches: list[list[Delivery]], received: Callable[[Delivery], Delivery]
) -> list[list[Any]]:
    """Return all that is in the tables once the batches were committed, and the counts."""
    async with opened_at(folder) as core:
        reader = Committing("sales", handlers(), core.store)
        for batch in batches:
            deliveries = [received(each) for each in batch]
            done = 0
            while done < len(deliveries):
                done += await reader.commit("EVENTS", "2017", deliveries[done:], lambda _first, _end: None)
                reader.retries.suspended = None
        rows = [[tuple(row.values()) for row in await core.rows(table)] for table in TABLES]
        return [*rows, [msgspec.structs.astuple(reader.totals)]]


@pytest.mark.parametrize("seed", SEEDS)
async def test_headers_from_the_wire_and_a_dictionary_of_them_lead_to_the_same_rows(tmp_path: Path, seed: int) -> None:
    batches = arrivals(seed)
    assert any(plain_of(from_the_wire(each).headers) for batch in batches for each in batch)

    folders = tmp_path / "wire", tmp_path / "names"
    for folder in folders:
        folder.mkdir()
    at_once = await taken_in(folders[0], batches, from_the_wire)
    by_name = await taken_in(folders[1], batches, lambda delivery: delivery)

    assert at_once == by_name


@pytest.mark.parametrize("framed", [False, True])
async def test_what_was_given_up_is_forgotten_place_by_place_as_it_comes_again_b3(tmp_path: Path, framed: bool) -> None:
    """A floor would otherwise send the reader back for it for ever."""

    def give_up(work: UnitOfWork) -> None:
        work.execute("update forebay_inbox set given_up = '[2,4,17]'")

    async def given_up(core: Core) -> str | None:
        found: str | None = (await core.rows("select given_up from forebay_inbox"))[0]["given_up"]
        return found

    stream = Stream()
    events = [event(stream, at) for at in range(1, 5)]
    async with opened_at(tmp_path) as core:
        await core.take([from_the_wire(events[0])])
        await core.store.write(give_up)

        await core.take([stream.frame(events[1:3])] if framed else [from_the_wire(each) for each in events[1:3]])
        assert await given_up(core) == "[4,4,17]"
        await core.take([from_the_wire(events[3])])
        assert await given_up(core) is None


def test_the_seeds_bring_what_they_are_about() -> None:
    found = [each for seed in SEEDS for batch in arrivals(seed) for each in batch]
    bodies = [each.body for each in found]
    assert sum(body.endswith(b"7}") for body in bodies) > 10
    assert any("forebay-cause" in each.headers for each in found)
    assert {b"", b"{bad"} <= set(bodies)
