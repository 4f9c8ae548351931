from __future__ import annotations

import asyncio
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay import freeing
from forebay.errors import BudgetSpentError
from forebay.event import Event
from forebay.identity import Place, parse_message_id
from forebay.lanes import Lane
from forebay.outbox import Outbox
from forebay.sqlite import MigrationSet
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore
from tests.outboxes import messages_after
from tests.stores import AnyStore, open_store

BUDGET = 2500
LANES = [Lane("ledger", budget="1MiB"), Lane("telemetry", budget=BUDGET)]


class Sold(Event, service="till", kind="sold", key="text"):
    text: str


class Measured(Event, service="till", kind="measured", lane="telemetry"):
    text: str


class FaultError(Exception):
    """A unit's own failure."""


Unit = tuple[list[tuple[str, int]], bool]
EMISSION = st.tuples(st.sampled_from(["ledger", "telemetry"]), st.integers(0, 400) | st.just(400))
UNITS = st.lists(st.tuples(st.lists(EMISSION, max_size=4), st.booleans()), min_size=1, max_size=5)
STEP: st.SearchStrategy[tuple[str, list[Unit]]] = st.one_of(
    UNITS.map(lambda units: ("write", units)),
    st.just(("reopen", [])),
    st.tuples(st.sampled_from(["free ledger", "free telemetry"]), st.just([])),
)


def emit(tx: UnitOfWork, emissions: list[tuple[str, int]], fail: bool) -> list[str]:
    ids = [tx.emit((Sold if lane == "ledger" else Measured)(text="ü" * size)) for lane, size in emissions]
    if fail:
        raise FaultError
    return ids


class Model:
    """What the outbox must hold: per lane the places in order, each with the place before its epoch."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[Place, Place | None]]] = {"ledger": [], "telemetry": []}
        self.last: dict[str, Place | None] = dict.fromkeys(self.rows)
        self.prev: dict[str, Place | None] = dict.fromkeys(self.rows)
        self.current: dict[str, str | None] = dict.fromkeys(self.rows)
        self.epochs: set[str] = set()

    def reopened(self) -> None:
        self.current = dict.fromkeys(self.rows)

    def wrote(self, lane: str, message_id: str) -> None:
        parsed = parse_message_id(message_id)
        assert parsed is not None
        if self.current[lane] is None:  # I2: a fresh epoch at the first write of an opening
            assert parsed.epoch not in self.epochs
            assert parsed.first == 1
            self.epochs.add(parsed.epoch)
            self.current[lane], self.prev[lane] = parsed.epoch, self.last[lane]
        else:
            last = self.last[lane]
            assert last is not None
            assert parsed.place == Place(last.epoch, last.sequence + 1)  # I3: dense
        self.last[lane] = parsed.place
        self.rows[lane].append((parsed.place, self.prev[lane]))


async def opened(path: Path) -> tuple[AnyStore, Outbox, UnitStore]:
    outbox = Outbox("store-330", "till", LANES)
    store = await open_store(path, [MigrationSet("forebay", files("forebay.migrations"))])
    await store.write(outbox.bind, "s1")
    return store, outbox, UnitStore(store, outbox)


async def check(outbox: Outbox, units: UnitStore, model: Model, page: int) -> None:
    def books(tx: Transaction, lane: str) -> tuple[int, int, int, int, int]:
        origin = tx.execute("select id, bytes, written, confirmed from forebay_origin where lane = :lane", lane=lane)[0]
        rows = tx.execute(
            "select coalesce(sum(bytes), 0) as bytes, count(*) as rows from forebay_outbox"
            " where epoch in (select id from forebay_epoch where origin = :id)",
            id=origin["id"],
        )[0]
        return origin["bytes"], rows["bytes"], origin["written"], origin["confirmed"], rows["rows"]

    for lane, rows in model.rows.items():
        found: list[tuple[Place, Place | None]] = []
        after: Place | None = None
        while messages := await units.read(messages_after, outbox, lane, after, limit=page, max_bytes=page * 400):
            assert len(messages) <= page
            found += [(message.place, message.prev) for message in messages if message.place]
            after = messages[-1].place
        assert found == rows  # nothing lost, nothing left over, in order, with the chain of I5
        counted, stored, written, confirmed, count = await units.read(books, lane)
        assert counted == stored
        assert written - confirmed == count == len(rows)
        if lane == "telemetry":
            assert stored <= BUDGET


async def free(units: UnitStore, model: Model, lane: str) -> None:
    if not model.rows[lane]:
        return
    epoch = model.rows[lane][0][0].epoch
    mine = [place.sequence for place, _ in model.rows[lane] if place.epoch == epoch]
    upto = mine[len(mine) // 2]
    gone = (await units.write(freeing.free, lane, epoch, upto, limit=3)).events
    assert gone == min(3, len(mine) // 2 + 1)
    floor = model.rows[lane][gone - 1][0]
    del model.rows[lane][:gone]
    assert await units.read(freeing.floor, lane) == str(floor)


async def run(path: Path, steps: list[tuple[str, list[Unit]]], page: int) -> None:
    model = Model()
    store, outbox, units = await opened(path)
    try:
        for step, group in steps:
            if step == "reopen":
                await store.close()
                store, outbox, units = await opened(path)
                model.reopened()
            elif step.startswith("free"):
                await free(units, model, step.removeprefix("free "))
            else:  # one group commit, with failing units among the others
                results = await asyncio.gather(*(units.write(emit, *unit) for unit in group), return_exceptions=True)
                for (emissions, fail), result in zip(group, results, strict=True):
                    if isinstance(result, BaseException):
                        assert isinstance(result, FaultError if fail else BudgetSpentError) or (
                            fail and isinstance(result, BudgetSpentError)
                        )
                        continue
                    assert not fail
                    for (lane, _), message_id in zip(emissions, result, strict=True):
                        model.wrote(lane, message_id)
            await check(outbox, units, model, page)
    finally:
        await store.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, min_size=1, max_size=8), page=st.integers(1, 7))
def test_whatever_units_do_and_whenever_the_store_reopens_sequences_are_dense_and_the_books_are_right_i2_i3_i5_o5(
    steps: list[tuple[str, list[Unit]]], page: int
) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "till.db", steps, page))
