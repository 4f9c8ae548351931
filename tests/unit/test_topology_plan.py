from __future__ import annotations

import json
from typing import Any

import pytest

from forebay.jetstream.topology import (
    Change,
    ConsumerSpec,
    Kind,
    Live,
    StreamSpec,
    Topology,
    applied,
    consumer_spec,
    desired,
    diff,
    notes,
    refused,
)

DAY = 86_400 * 10**9
KEY = "forebay.confirmed-by"
Config = dict[str, Any]


def topology(*consumers: ConsumerSpec, **fields: Any) -> Topology:
    """The packaged EVENTS, some of its fields changed; None takes a field out."""
    config = desired().streams["EVENTS"].config | fields
    stream = StreamSpec(config={field: value for field, value in config.items() if value is not None})
    return Topology(streams={"EVENTS": stream}, consumers={one.name: one for one in consumers})


def live_of(wanted: Topology) -> Live:
    return applied(Live(), diff(wanted, Live()))


def transform(partitions: int) -> Config:
    config: Config = desired().streams["EVENTS"].config["subject_transform"]
    return config | {"dest": config["dest"].replace("partition(8", f"partition({partitions}")}


def confirmed(live: Live) -> Config:
    value: Config = json.loads(live.streams["EVENTS"]["metadata"][KEY])
    return value


@pytest.mark.parametrize(
    ("live", "wanted", "kind"),
    [
        ({"max_bytes": 1000}, {"max_bytes": 2000}, Kind.IN_PLACE),
        ({"max_bytes": 2000}, {"max_bytes": 1000}, Kind.IN_PLACE),
        ({"max_bytes": 2000, "discard": "old"}, {"max_bytes": 1000, "discard": "old"}, Kind.DELETES_DATA),
        ({"max_bytes": 1000, "discard": "old"}, {"max_bytes": -1, "discard": "old"}, Kind.IN_PLACE),
        ({"max_bytes": -1, "discard": "old"}, {"max_bytes": 1000, "discard": "old"}, Kind.DELETES_DATA),
        ({"max_msgs": -1, "discard": "old"}, {"max_msgs": 10, "discard": "old"}, Kind.DELETES_DATA),
        ({"max_msgs": -1}, {"max_msgs": 10}, Kind.IN_PLACE),
        ({"discard": "new"}, {"discard": "old"}, Kind.DELETES_DATA),
        ({"discard": "old"}, {"discard": "new"}, Kind.IN_PLACE),
        ({"max_age": 30 * DAY}, {"max_age": DAY}, Kind.DELETES_DATA),
        ({"max_age": 0}, {"max_age": DAY}, Kind.DELETES_DATA),
        ({"max_age": DAY}, {"max_age": 30 * DAY}, Kind.IN_PLACE),
        ({"max_age": DAY}, {"max_age": 0}, Kind.IN_PLACE),
        ({"max_msgs_per_subject": -1}, {"max_msgs_per_subject": 1}, Kind.DELETES_DATA),
        ({"max_msgs_per_subject": 5}, {"max_msgs_per_subject": -1}, Kind.IN_PLACE),
        ({"retention": "limits"}, {"retention": "interest"}, Kind.DELETES_DATA),
        ({"retention": "interest"}, {"retention": "limits"}, Kind.IN_PLACE),
        ({"retention": "limits"}, {"retention": "workqueue"}, Kind.REPLACE),
        ({"retention": "workqueue"}, {"retention": "limits"}, Kind.REPLACE),
        ({"storage": "memory"}, {"storage": "file"}, Kind.REPLACE),
        ({"deny_delete": True}, {"deny_delete": False}, Kind.REPLACE),
        ({"deny_delete": False}, {"deny_delete": True}, Kind.IN_PLACE),
        ({"deny_purge": True}, {"deny_purge": False}, Kind.REPLACE),
        ({"allow_msg_ttl": True}, {"allow_msg_ttl": False}, Kind.REPLACE),
        ({"allow_rollup_hdrs": True}, {"allow_rollup_hdrs": False}, Kind.IN_PLACE),
        ({"duplicate_window": 120 * 10**9}, {"duplicate_window": 600 * 10**9}, Kind.IN_PLACE),
        ({"allow_atomic": None}, {"allow_atomic": True}, Kind.IN_PLACE),
        ({"subject_transform": None}, {"subject_transform": transform(8)}, Kind.REPLACE),
        ({"subject_transform": transform(8)}, {"subject_transform": None}, Kind.REPLACE),
        ({"subject_transform": transform(8)}, {"subject_transform": transform(16)}, Kind.REPLACE),
    ],
)
def test_a_stream_change_is_classified_by_what_the_server_does(live: Config, wanted: Config, kind: Kind) -> None:
    (change,) = diff(topology(**wanted), live_of(topology(**live)))
    assert change.kind is kind
    assert change.field in wanted
    assert change.desired == wanted[change.field]
    assert change.reason
    assert refused([change]) == ([] if kind is Kind.IN_PLACE else [change])


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("ack_policy", "explicit", Kind.REPLACE),
        ("deliver_policy", "new", Kind.REPLACE),
        ("opt_start_seq", 5, Kind.REPLACE),
        ("replay_policy", "original", Kind.REPLACE),
        ("max_waiting", 5, Kind.REPLACE),
        ("ack_wait", 60 * 10**9, Kind.IN_PLACE),
        ("max_ack_pending", 30_000, Kind.IN_PLACE),
        ("max_deliver", 5, Kind.IN_PLACE),
    ],
)
def test_a_durable_change_is_classified_by_what_the_server_does(field: str, value: Any, kind: Kind) -> None:
    before = consumer_spec("sales", ["till"])
    after = ConsumerSpec(name="sales", filters=before.filters, settings=before.settings | {field: value})
    changes = diff(topology(after), live_of(topology(before)))
    assert {change.durable for change in changes} == {f"sales-{p}" for p in range(8)}
    assert {(change.field, change.kind) for change in changes} == {(field, kind)}


def test_filters_change_in_place_and_raise_the_version() -> None:
    before, after = topology(consumer_spec("sales", ["till"])), topology(consumer_spec("sales", ["till", "price"]))
    live = live_of(before)
    changes = diff(after, live)
    assert {change.kind for change in changes} == {Kind.IN_PLACE}
    assert {change.field for change in changes} == {f"metadata.{KEY}", "filter_subjects"}
    assert confirmed(applied(live, changes)) == {"version": 2, "consumers": {"sales": ["price", "till"]}}


def test_the_servers_own_defaults_and_orders_are_no_differences() -> None:
    wanted = topology(consumer_spec("sales", ["till", "price"]), max_msgs=0)
    live = live_of(wanted)
    config = live.streams["EVENTS"]
    config |= {"max_msgs": -1, "max_consumers": -1, "compression": "none", "consumer_limits": {}, "sealed": False}
    for field in ("allow_rollup_hdrs", "allow_msg_ttl"):
        del config[field]
    for durable in live.durables["EVENTS"].values():
        durable["filter_subjects"].reverse()
        durable |= {"max_waiting": 512, "name": durable["durable_name"], "num_replicas": 0}
    assert diff(wanted, live) == []


def test_metadata_that_is_not_in_the_file_stays() -> None:
    wanted = topology(consumer_spec("sales", ["till"]))
    live = live_of(wanted)
    live.streams["EVENTS"]["metadata"] |= {"_nats.ver": "2.15.1", "team": "retail"}
    live.durables["EVENTS"]["sales-0"]["metadata"] = {"forebay.store": "abc"}
    assert diff(wanted, live) == []
    after = applied(live, diff(topology(consumer_spec("stock", ["*"]), max_age=40 * DAY), live))
    assert after.streams["EVENTS"]["metadata"].items() >= {"_nats.ver": "2.15.1", "team": "retail"}.items()
    assert after.durables["EVENTS"]["sales-0"]["metadata"] == {"forebay.store": "abc"}


def test_names_are_added_to_the_confirming_consumers_and_never_removed() -> None:
    live = live_of(topology(consumer_spec("sales", ["till"])))
    assert confirmed(live) == {"version": 1, "consumers": {"sales": ["till"]}}
    live = applied(live, diff(topology(consumer_spec("archive", ["*"])), live))
    assert confirmed(live) == {"version": 2, "consumers": {"sales": ["till"], "archive": ["*"]}}


def test_a_recreated_stream_goes_on_from_the_version_that_its_file_carries() -> None:
    carried = {"metadata": {KEY: json.dumps({"version": 7, "consumers": {"archive": ["*"]}})}}
    assert confirmed(live_of(topology(consumer_spec("archive", ["*"]), **carried)))["version"] == 7
    live = live_of(topology(consumer_spec("sales", ["till"]), **carried))
    assert confirmed(live) == {"version": 8, "consumers": {"archive": ["*"], "sales": ["till"]}}
    assert diff(topology(consumer_spec("sales", ["till"]), **carried), live) == []


def test_a_list_that_cannot_be_read_is_written_anew() -> None:
    wanted = topology(consumer_spec("sales", ["till"]))
    live = live_of(wanted)
    live.streams["EVENTS"]["metadata"][KEY] = "{"
    (change,) = diff(wanted, live)
    assert change.kind is Kind.IN_PLACE
    assert "cannot be read" in change.reason


def test_without_consumers_there_is_no_list() -> None:
    assert "metadata" not in live_of(topology()).streams["EVENTS"]


def test_what_nobody_describes_is_a_note_and_no_change() -> None:
    live = live_of(topology(consumer_spec("sales", ["till"])))
    assert diff(topology(), live) == []
    said = " ".join(notes(topology(), live))
    assert "durable sales-7 of EVENTS is not described" in said
    assert "consumer sales must confirm" in said


def test_a_consumer_of_single_nodes_is_awaited_by_no_node() -> None:
    spec = ConsumerSpec(name="audit", filters=("evt.{partition}.store-330.>",))
    live = live_of(topology(spec))
    assert "metadata" not in live.streams["EVENTS"]
    assert any("audit reads single nodes" in note for note in notes(topology(spec), live))


def test_what_is_missing_is_created_whole() -> None:
    changes = diff(topology(consumer_spec("sales", ["till"])), Live())
    assert [change.kind for change in changes] == [Kind.CREATE] * 9
    assert isinstance(changes[0], Change)
    assert changes[0].target == "stream EVENTS"
    assert changes[1].target == "durable sales-0 of EVENTS"
