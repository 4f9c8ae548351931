from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner, Result

from forebay.cli import topology as cli
from forebay.errors import TopologyError
from forebay.jetstream import requesting
from forebay.jetstream.topology import (
    Kind,
    RefusedChangesError,
    Request,
    StreamSpec,
    Topology,
    apply_topology,
    consumer_spec,
    desired,
    durable_problems,
    plan_topology,
    read_live,
    stream_problems,
)
from forebay.testing.nats_server import NatsServer, free_port
from tests.integration.rig import eventually

CONFIG = Path(__file__).resolve().parents[2] / "jetstream-config"
KEY = "forebay.confirmed-by"
DAY = 86_400 * 10**9


@pytest.fixture
async def request_(nats_server: NatsServer) -> AsyncIterator[Request]:
    link = await nats.connect(nats_server.url, allow_reconnect=False)

    async def request(subject: str, body: bytes) -> bytes:
        return bytes((await link.request(subject, body, timeout=5)).data)

    try:
        yield request
    finally:
        await link.close()


async def call(request: Request, endpoint: str, body: Any = None) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(await request(f"$JS.API.{endpoint}", json.dumps(body).encode() if body else b""))
    assert "error" not in reply
    return reply


async def events(request: Request) -> dict[str, Any]:
    config: dict[str, Any] = (await call(request, "STREAM.INFO.EVENTS"))["config"]
    return config


def with_events(topology: Topology, **fields: Any) -> Topology:
    stream = StreamSpec(config=topology.streams["EVENTS"].config | fields)
    return Topology(streams=topology.streams | {"EVENTS": stream}, consumers=topology.consumers)


async def invoke(command: Any, server: NatsServer, *args: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, command, ["--nats", server.url, *args])


async def test_apply_makes_an_empty_broker_as_described_and_then_has_nothing_to_do(request_: Request) -> None:
    topology = desired(CONFIG)
    done = await apply_topology(request_, topology)
    assert [change.kind for change in done] == [Kind.CREATE] * (2 + 8 * len(topology.consumers))
    assert await plan_topology(request_, topology) == []
    assert await apply_topology(request_, topology) == []
    live = await read_live(request_, topology)
    assert [problem for config in live.streams.values() for problem in stream_problems(config)] == []
    for spec in topology.consumers.values():
        for partition in range(8):
            assert durable_problems(live.durables["EVENTS"][spec.durable(partition)], spec, partition) == []
    listed = json.loads((await events(request_))["metadata"][KEY])
    assert listed["consumers"] == {name: list(needs) for name, needs in topology.confirming("EVENTS").items()}


async def test_the_list_of_a_stream_that_is_made_anew_has_a_higher_version_s3(request_: Request) -> None:
    """Nodes ignore an older one than they have seen."""
    topology = desired(CONFIG)
    await apply_topology(request_, topology)
    before = json.loads((await events(request_))["metadata"][KEY])["version"]
    wider = topology.consumers | {"sales": consumer_spec("sales", ["*"])}
    await apply_topology(request_, Topology(streams=topology.streams, consumers=wider))
    await call(request_, "STREAM.DELETE.EVENTS")

    async def later() -> bool:
        return bool(time.time() > before + 2)

    await eventually(later)
    await apply_topology(request_, topology)
    assert json.loads((await events(request_))["metadata"][KEY])["version"] > before + 1


async def test_a_published_event_reaches_the_durable_of_its_partition(request_: Request) -> None:
    await apply_topology(request_, desired(CONFIG))
    assert "seq" in json.loads(await request_("evt.store-330.till.sale-recorded", b"{}"))
    live = [(await call(request_, f"CONSUMER.INFO.EVENTS.sales-{p}"))["num_pending"] for p in range(8)]
    assert sorted(live) == [0] * 7 + [1]


async def test_changes_in_place_keep_messages_and_all_other_metadata(request_: Request) -> None:
    await apply_topology(request_, desired(CONFIG))
    config = await events(request_)
    known = json.loads(config["metadata"][KEY])
    config["metadata"]["team"] = "retail"
    await call(request_, "STREAM.UPDATE.EVENTS", config)
    durable = (await call(request_, "CONSUMER.INFO.EVENTS.sales-3"))["config"]
    durable["metadata"]["forebay.store"] = "store-id"
    body = {"stream_name": "EVENTS", "config": durable, "action": "update"}
    await call(request_, "CONSUMER.CREATE.EVENTS.sales-3", body)
    await request_("evt.store-330.till.sale-recorded", b"{}")

    wider = consumer_spec("sales", ["till", "price"])
    base = desired(CONFIG)
    topology = with_events(
        Topology(streams=base.streams, consumers=base.consumers | {"sales": wider}), max_age=40 * DAY, max_bytes=2 << 30
    )
    done = await apply_topology(request_, topology)
    assert {change.kind for change in done} == {Kind.IN_PLACE}
    assert await plan_topology(request_, topology) == []
    after = await call(request_, "STREAM.INFO.EVENTS")
    assert after["state"]["messages"] == 1
    assert after["config"]["max_age"] == 40 * DAY
    metadata = after["config"]["metadata"]
    assert metadata["team"] == "retail"
    assert "_nats.ver" in metadata
    listed = json.loads(metadata[KEY])
    assert listed["version"] == known["version"] + 1
    assert listed["consumers"] == {**known["consumers"], "sales": ["price", "till"]}
    changed = (await call(request_, "CONSUMER.INFO.EVENTS.sales-3"))["config"]
    assert changed["metadata"]["forebay.store"] == "store-id"
    assert sorted(changed["filter_subjects"]) == ["evt.3.*.price.*", "evt.3.*.till.*"]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"max_age": DAY}, Kind.DELETES_DATA),
        ({"deny_purge": False}, Kind.REPLACE),
    ],
)
async def test_when_one_change_is_refused_nothing_is_applied(
    request_: Request, fields: dict[str, Any], kind: Kind
) -> None:
    await apply_topology(request_, desired(CONFIG))
    before = await read_live(request_, desired(CONFIG))
    base = desired(CONFIG, [consumer_spec("stock", ["till"])])
    with pytest.raises(RefusedChangesError) as error:
        await apply_topology(request_, with_events(base, max_bytes=2 << 30, **fields))
    assert [change.kind for change in error.value.changes] == [kind]
    assert await read_live(request_, desired(CONFIG)) == before


async def test_another_number_of_partitions_is_refused(request_: Request) -> None:
    await apply_topology(request_, desired(CONFIG))
    transform = desired().streams["EVENTS"].config["subject_transform"]
    other = with_events(desired(), subject_transform=transform | {"dest": transform["dest"].replace("(8", "(16")})
    assert [change.kind for change in await plan_topology(request_, other)] == [Kind.REPLACE]
    with pytest.raises(TopologyError, match="8 partitions"):
        await apply_topology(request_, other)
    assert (await events(request_))["subject_transform"] == transform


async def test_a_stream_that_no_service_accepts_is_not_created(request_: Request) -> None:
    with pytest.raises(TopologyError, match="discard is 'old'"):
        await apply_topology(request_, with_events(desired(), discard="old"))
    assert (await read_live(request_, desired())).streams == {}


async def test_two_runs_at_once_both_succeed_and_agree(request_: Request) -> None:
    topology = desired(CONFIG)
    await asyncio.gather(*(apply_topology(request_, topology) for _ in range(3)))
    assert await plan_topology(request_, topology) == []


async def test_more_durables_than_one_page_are_all_seen(request_: Request) -> None:
    topology = desired(None, [consumer_spec(f"reader-{n}", ["till"]) for n in range(33)])
    await apply_topology(request_, topology)
    assert await plan_topology(request_, topology) == []


async def test_the_commands_tell_by_their_exit_code(nats_server: NatsServer, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    shutil.copytree(CONFIG, folder)
    before = await invoke(cli.plan, nats_server, "--config", str(folder))
    assert before.exit_code == 2
    assert "create  stream EVENTS" in before.output
    done = await invoke(cli.apply, nats_server, "--config", str(folder))
    assert done.exit_code == 0, done.output
    assert done.output.endswith("Applied.\n")
    assert (await invoke(cli.apply, nats_server, "--config", str(folder))).output == "Nothing to do.\n"
    after = await invoke(cli.plan, nats_server, "--config", str(folder), "--json")
    assert after.exit_code == 0
    assert json.loads(after.output) == {"changes": [], "notes": []}

    file = folder / "streams" / "events.yaml"
    file.write_text(file.read_text().replace("max_age: 30d", "max_age: 29d").replace("1GiB", "2GiB"))
    planned = await invoke(cli.plan, nats_server, "--config", str(folder))
    assert planned.exit_code == 2
    assert "deletes data  stream EVENTS  max_age: 30d -> 29d" in planned.output
    assert "max_bytes: 1GiB -> 2GiB" in planned.output
    refused = await invoke(cli.apply, nats_server, "--config", str(folder))
    assert refused.exit_code == 1
    assert "nothing was applied" in refused.output
    again = await invoke(cli.plan, nats_server, "--config", str(folder), "--json")
    assert [change["field"] for change in json.loads(again.output)["changes"]] == ["max_bytes", "max_age"]

    file.write_text("name: EVENTS\nsubject: x\n")
    bad = await invoke(cli.plan, nats_server, "--config", str(folder))
    assert bad.exit_code == 1
    assert bad.output.count("\n") == 1
    assert f"{file}: Object contains unknown field `subject`" in bad.output
    assert (await invoke(cli.plan, nats_server, "--bogus")).exit_code == 1


@pytest.mark.parametrize("command", [cli.plan, cli.apply])
def test_a_broker_that_is_away_is_one_line(command: Any) -> None:
    result = CliRunner().invoke(command, ["--nats", f"nats://user:secret@127.0.0.1:{free_port()}"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no connection to the broker at 127.0.0.1:")
    assert result.output.count("\n") == 1
    assert "secret" not in result.output


@pytest.mark.parametrize("url", ["", "nats://host:port"])
def test_what_is_no_url_is_an_error_of_usage_with_exit_code_1(url: str) -> None:
    result = CliRunner().invoke(cli.plan, ["--nats", url])
    assert result.exit_code == 1
    assert "write nats://host:port" in result.output


async def test_a_broker_that_is_frozen_is_one_line(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requesting, "TIMEOUT", 0.3)
    nats_server.pause()
    result = await invoke(cli.plan, nats_server)
    nats_server.resume()
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
