from __future__ import annotations

import anyio
import pytest
from anyio.abc import TaskStatus

from forebay import in_charge
from forebay.errors import StoreError
from forebay.in_charge import InCharge
from forebay.testing.waiting import until


class Held:
    """A charge that the test gives and takes; while it is ``broken`` the database does not answer."""

    def __init__(self) -> None:
        self.mine = self.broken = False

    async def has(self) -> bool:
        if self.broken:
            raise StoreError("no session")
        return self.mine

    def require(self) -> None: ...


class Sending:
    """A part that counts its starts and knows whether it runs."""

    def __init__(self) -> None:
        self.starts = 0
        self.runs = False

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        self.starts += 1
        self.runs = True
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            self.runs = False


@pytest.mark.parametrize("ends", ["taken", "broken"])
async def test_parts_run_only_while_the_process_is_in_charge_s7(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    monkeypatch.setattr(in_charge, "LOOK", 0.005)
    charge, part = Held(), Sending()
    async with anyio.create_task_group() as tasks:
        await tasks.start(InCharge("audit", charge, [part]).run)
        assert not part.runs
        charge.mine = True
        await until(lambda: part.runs)
        if ends == "taken":
            charge.mine = False
        else:
            charge.broken = True
        await until(lambda: not part.runs)
        charge.mine, charge.broken = True, False
        await until(lambda: part.runs)
        assert part.starts == 2
        tasks.cancel_scope.cancel()
    assert not part.runs
