from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forebay.errors import TopologyError
from forebay.jetstream.topology import consumer_spec, default_streams, desired, stream_problems
from forebay.jetstream.topology.units import format_duration, format_size, parse_duration, parse_size

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "jetstream-config"
CONSUMER = """
stream: EVENTS
durable_name: "sales-{partition}"
filter_subjects: ["evt.{partition}.*.till.*"]
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("2m", 120_000_000_000), ("30d", 30 * 86_400 * 10**9), ("1h30m", 5_400 * 10**9), ("250ms", 250_000_000), (7, 7)],
)
def test_durations_are_read_as_nanoseconds(text: int | str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(("text", "size"), [("64MiB", 64 << 20), ("1GiB", 1 << 30), ("10B", 10), (5, 5)])
def test_sizes_are_read_as_bytes(text: int | str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("name", ["events.yaml", "commands.yaml"])
def test_the_projects_stream_files_equal_the_packaged_ones(name: str) -> None:
    packaged = ROOT / "src/forebay/jetstream/topology/defaults" / name
    assert (CONFIG / "streams" / name).read_bytes() == packaged.read_bytes()


def test_the_packaged_streams_pass_the_services_own_checks() -> None:
    assert [problem for stream in default_streams() for problem in stream_problems(stream.config)] == []


def test_a_project_without_files_gets_the_packaged_streams() -> None:
    topology = desired(None, [consumer_spec("sales", ["till"])])
    assert set(topology.streams) == {"EVENTS", "COMMANDS"}
    assert topology.streams["EVENTS"].partitions == 8
    names = [durable["durable_name"] for durable in topology.durables("EVENTS")]
    assert names == [f"sales-{partition}" for partition in range(8)]


def test_a_consumer_file_equals_the_spec_that_is_derived_from_its_services() -> None:
    topology = desired(CONFIG)
    assert topology.consumers["sales"] == consumer_spec("sales", ["till"])
    assert topology.consumers["archive"] == consumer_spec("archive", ["*"])
    assert topology.consumers["coldwatch"] == consumer_spec("coldwatch", ["coldchain"])
    confirming = topology.confirming("EVENTS")
    assert confirming == {**confirming, "sales": ("till",), "coldwatch": ("coldchain",), "archive": ("*",)}


def test_a_file_wins_over_a_derived_consumer_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "consumers/sales.yaml", CONSUMER + "ack_wait: 2m\n")
    topology = desired(tmp_path, [consumer_spec("sales", ["price"]), consumer_spec("stock", ["till", "price"])])
    assert topology.consumers["sales"].services == ("till",)
    assert topology.consumers["sales"].settings["ack_wait"] == 120 * 10**9
    assert topology.consumers["sales"].settings["ack_policy"] == "all"
    assert topology.consumers["stock"].services == ("price", "till")


def test_a_command_durable_is_one_per_file(tmp_path: Path) -> None:
    text = 'stream: COMMANDS\ndurable_name: store-330\nfilter_subjects: ["cmd.store-330.>"]\n'
    topology = desired(write(tmp_path, "consumers/store-330.yaml", text))
    assert [one["durable_name"] for one in topology.durables("COMMANDS")] == ["store-330"]
    assert topology.confirming("COMMANDS") == {}


STREAM = 'name: EVENTS\nsubjects: ["evt.*.*.*"]\n'


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("streams/e.yaml", STREAM + "max_bites: 1\n", "unknown field `max_bites`"),
        ("streams/e.yaml", STREAM + "max_bytes: [1]\n", "max_bytes: Expected"),
        ("streams/e.yaml", STREAM + "max_bytes: 64 megs\n", "max_bytes: '64 megs' is not a size"),
        ("streams/e.yaml", STREAM + "max_age: soon\n", "max_age: 'soon' is not a duration"),
        ("streams/e.yaml", STREAM + "deny_purge: 1\n", "deny_purge: Expected `bool`"),
        ("streams/e.yaml", STREAM + "discard: none\n", "discard: Invalid enum value 'none'"),
        ("streams/e.yaml", STREAM + "metadata: {a: 1}\n", "Expected `str`, got `int`"),
        ("streams/e.yaml", STREAM + "subject_transform: {src: a, dst: b}\n", "subject_transform: "),
        ("streams/e.yaml", "name: a.b\nsubjects: []\n", "name: 'a.b'"),
        ("streams/e.yaml", "name: [\n", "line 2"),
        ("streams/e.yaml", "", "Expected `object`"),
        ("streams/e.yaml", "subjects: []\n", "missing required field `name`"),
        ("consumers/c.yaml", CONSUMER.replace("EVENTS", "NOPE"), "stream: no file describes a stream 'NOPE'"),
        ("consumers/c.yaml", CONSUMER.replace("sales-{partition}", "sales"), "durable_name: 'sales' must be"),
        ("consumers/c.yaml", CONSUMER.replace("sales-", "Sales-"), "durable_name 'Sales' is not a name"),
        ("consumers/c.yaml", CONSUMER.replace("{partition}.*.till.*", "{partition}.*.till.sold"), "never finer"),
        ("consumers/c.yaml", CONSUMER.replace("evt.{partition}.*.till.*", "evt.store-330.>"), "never finer"),
        ("consumers/c.yaml", CONSUMER.replace("evt.{partition}.*.till.*", "evt.0.>"), "never finer"),
        ("consumers/c.yaml", CONSUMER.replace('till.*"]', 'till.*", "evt.{partition}.>"]'), "overlap"),
        ("consumers/c.yaml", CONSUMER.replace('["evt.{partition}.*.till.*"]', "[]"), "filter_subjects is empty"),
        ("consumers/c.yaml", CONSUMER + "ack_policy: al\n", "ack_policy: Invalid enum value"),
        ("consumers/c.yaml", CONSUMER + "backoff: [1x]\n", "backoff: '1x' is not a duration"),
    ],
)
def test_a_bad_file_gives_one_line_with_file_and_field(tmp_path: Path, name: str, text: str, says: str) -> None:
    write(tmp_path, name, text)
    with pytest.raises(TopologyError) as error:
        desired(tmp_path)
    message = str(error.value)
    assert str(tmp_path / name) in message
    assert says in message
    assert "\n" not in message


def test_two_files_for_one_consumer_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "consumers/a.yaml", CONSUMER)
    write(tmp_path, "consumers/b.yaml", CONSUMER)
    with pytest.raises(TopologyError, match=r"described by .*a\.yaml already"):
        desired(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="is not a folder"):
        desired(tmp_path / "nope")


def test_a_consumer_that_needs_nothing_is_refused() -> None:
    with pytest.raises(TopologyError, match="no service"):
        consumer_spec("sales", [])


def test_the_checks_load_no_yaml() -> None:
    code = "import sys, forebay.jetstream.topology.checks; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["dev", "hub", "cluster"])
def test_servers_sync_every_message_and_listen_on_loopback(name: str) -> None:
    text = (CONFIG / "servers" / f"{name}.conf").read_text()
    assert "sync_interval: always" in text
    assert "0.0.0.0" not in text
    assert '"127.0.0.1' in text
