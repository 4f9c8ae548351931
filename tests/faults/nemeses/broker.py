"""A broker that forgets, in part or everything, and one that has no room."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import anyio
import nats
from nats.js.errors import NotFoundError

from forebay.testing.waiting import until
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.nemeses.processes import anywhere
from tests.faults.strace import Strace
from tests.faults.system import CORE, System

PROGRESS = 25
"""Requests between the copy that a broker goes back to and the moment when it does."""

PARTITIONS = 8

COPIES = 150
"""Messages that are sent again."""


async def roll_back(system: System) -> None:
    """Its store directory goes back to an older copy, as after a power cut with a lazy sync or from a backup."""
    await system.workload.progress(PROGRESS)  # so that the copy holds something: it will be read twice
    copy = await _copied(system)
    await system.workload.progress(PROGRESS)
    await anywhere(system)
    await _go_back(system, copy)


async def lose_unseen(system: System) -> None:
    """The same, and the core has seen neither what is lost nor what came next; nothing else writes meanwhile."""
    await system.workload.round(PROGRESS)
    # A node that was just started asks before it sends, and could send nothing of what is to be lost.
    await system.arrive({each.number for each in system.workload.writes.values()} - system.lost_with_disk)
    copy = await _copied(system)
    system.links[CORE].cut()
    try:
        await _store_a_round(system)
        await _go_back(system, copy)
        await _store_a_round(system)
    finally:
        system.links[CORE].heal()


async def _store_a_round(system: System) -> None:
    """Let the nodes write, and wait until the broker has acknowledged all of it."""
    await system.workload.round(PROGRESS)
    await system.forwarded()


async def _copied(system: System) -> Path:
    copy = system.folder / "broker-copy"
    system.broker.kill()
    system.copy_broker_store(copy)
    await system.broker.start()
    return copy


async def _go_back(system: System, copy: Path) -> None:
    system.broker.kill()
    system.replace_broker_store(copy)
    await system.broker.start()


async def repeat(system: System) -> None:
    """Everything is sent again, under the ids of retransmissions, in any order: by relays, or by whoever has a copy."""
    last = json.loads(await system.api("STREAM.INFO.EVENTS"))["state"]["last_seq"]
    chosen = system.dice.choices(range(1, last + 1), k=min(last, COPIES))
    client = await nats.connect(system.broker.url)
    try:
        for sequence in chosen:
            try:
                found = await client.jetstream().get_msg("EVENTS", sequence, direct=True)
            except NotFoundError:  # an earlier fault took it
                continue
            headers = dict(found.headers or {})
            suffix = "".join(system.dice.choices("0123456789abcdefghijklmnopqrstuvwxyz", k=12))
            headers = {name: value for name, value in headers.items() if not name.startswith("Nats-")}
            message_id = (found.headers or {})["Nats-Msg-Id"].partition("~")[0]
            place, _, subject = str(found.subject).removeprefix("evt.").partition(".")
            assert place.isdecimal()
            stored = await client.request(
                f"evt.{subject}",
                found.data or b"",
                timeout=10,
                headers={**headers, "Nats-Msg-Id": f"{message_id}~{suffix}"},
            )
            assert b'"error"' not in stored.data, stored.data
    finally:
        await client.close()


async def wipe(system: System) -> None:
    """Its store is gone; the topology is applied again."""
    await anywhere(system)
    system.broker.kill()
    system.replace_broker_store(None)
    await system.broker.start()
    await system.apply()


async def delete_stream(system: System) -> None:
    """Somebody deletes the stream, and applies again."""
    await anywhere(system)
    await system.api("STREAM.DELETE.EVENTS")
    await anywhere(system)
    await system.apply()


async def delete_durables(system: System) -> None:
    """The durables of a random consumer are deleted, and applied again."""
    await anywhere(system)
    name = system.dice.choice(system.consumers)
    for partition in range(PARTITIONS):
        await system.api(f"CONSUMER.DELETE.EVENTS.{name}-{partition}")
    await anywhere(system)
    await system.apply()


async def truncate_block(system: System) -> None:
    await _damage(system, truncate=True)


async def flip_bit(system: System) -> None:
    await _damage(system, truncate=False)


async def _damage(system: System, *, truncate: bool) -> None:
    """Damage a block file of the stream while the broker is down, after a kill or after a clean stop."""
    await anywhere(system)
    if system.dice.random() < 0.5:
        system.broker.kill()
    else:
        await system.broker.stop()
    blocks = sorted(path for path in _messages(system).glob("*.blk") if path.stat().st_size)
    if blocks:
        block = system.dice.choice(blocks)
        content = bytearray(block.read_bytes())
        at = system.dice.randrange(len(content))
        if truncate:
            del content[at:]
        else:
            content[at] ^= 1 << system.dice.randrange(8)
        block.write_bytes(content)
    await system.broker.start()


def _messages(system: System) -> Path:
    return system.broker_store / "jetstream" / "$G" / "streams" / "EVENTS" / "msgs"


async def fill_stream(system: System) -> None:
    """The stream is full and refuses (``discard: new``); later there is room again."""
    info = json.loads(await system.api("STREAM.INFO.EVENTS"))
    config, room = info["config"], info["state"]["bytes"] + 2000
    roomy = config["max_bytes"]
    await _update(system, {**config, "max_bytes": room})
    await system.workload.progress(PROGRESS)
    await anyio.sleep(system.dice.uniform(0.2, 1))
    await _update(system, {**config, "max_bytes": roomy})


async def _update(system: System, config: dict[str, object]) -> None:
    answer = json.loads(await system.api("STREAM.UPDATE.EVENTS", json.dumps(config).encode()))
    assert "error" not in answer, answer


async def fill_disk(system: System) -> None:
    """The broker's disk is full: every write fails, until it is restarted with room."""
    assert system.broker.pid is not None
    strace = Strace.find()
    command = [strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64"]
    tracer = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [*command, "-e", "inject=pwrite64:error=ENOSPC", "-p", str(system.broker.pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        status = Path(f"/proc/{system.broker.pid}/status")
        await until(lambda: "TracerPid:\t0\n" not in status.read_text(), limit=30, what="strace holds the broker")
        await system.workload.progress(PROGRESS)
        await anywhere(system)
    finally:
        tracer.terminate()
        tracer.wait()
    await system.broker.restart()


BROKER = (
    Nemesis("broker-rolled-back", roll_back),
    Nemesis("messages-repeated", repeat),
    Nemesis("broker-wiped", wipe),
    Nemesis("stream-deleted", delete_stream),
    Nemesis("durables-deleted", delete_durables),
    Nemesis("block-truncated", truncate_block),
    Nemesis("bit-flipped", flip_bit),
    Nemesis("stream-full", fill_stream),
    Nemesis("broker-disk-full", fill_disk, traced=True),
)
