"""Foreign ids are forgotten while a consumer runs, not only when it begins (I7)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from forebay import forgetting
from forebay.testing.nats_server import NatsServer
from forebay.transaction import Transaction
from tests.integration.rig import apply, connected, eventually, rows
from tests.integration.test_confirmation import reading

DAY = 24 * 3600 * 1000


def remember(tx: Transaction, name: str, sequence: int, days: float) -> None:
    tx.execute(
        "insert into forebay_foreign (node, service, message_id, stream_sequence, seen_at)"
        " values ('house-1', 'door', :name, :sequence, :at)",
        name=name,
        sequence=sequence,
        at=int(time.time() * 1000 - days * DAY),
    )


async def test_i7_old_foreign_ids_that_the_stream_has_passed_go_while_the_consumer_runs(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "INTERVAL", 0.05)
    async with connected(nats_server.url, node="admin") as admin:
        await apply(admin, "audit")
        async with reading(nats_server, tmp_path) as audit:
            await admin.request("evt.house-1.door.door-opened", b"{}", timeout=5)  # the stream begins at 1
            await audit.store.write(remember, "in-the-stream", 10, 8)
            await audit.store.write(remember, "young", 0, 6.9)
            await audit.store.write(remember, "old", 0, 7.1)

            async def gone() -> bool:
                left = await rows(audit.store, "select message_id from forebay_foreign order by message_id")
                return left == [("in-the-stream",), ("young",)]

            await eventually(gone)
