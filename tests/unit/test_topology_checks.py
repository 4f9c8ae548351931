from __future__ import annotations

from typing import Any

import pytest

from forebay.jetstream.topology import consumer_spec, desired, durable_problems, stream_notes, stream_problems

SALES = consumer_spec("sales", ["till", "price"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"subjects": ["evt.>"]}, "subjects are"),
        ({"subject_transform": None}, "subject_transform is missing"),
        ({"subject_transform": {"src": "evt.*.*.*", "dest": "evt.{{partition(16,1)}}.x"}}, "8 partitions"),
        ({"discard": "old"}, "discard is 'old' and must be 'new'"),
        ({"retention": "workqueue"}, "retention is 'workqueue' and must be 'limits'"),
        ({"storage": "memory"}, "storage is 'memory' and must be 'file'"),
        ({"duplicate_window": 60 * 10**9}, "duplicate_window is 1m and must be at least 2m"),
        ({"allow_rollup_hdrs": True}, "allow_rollup_hdrs must not be set"),
        ({"allow_msg_ttl": True}, "allow_msg_ttl must not be set"),
        ({"max_msgs_per_subject": 1}, "max_msgs_per_subject must be -1"),
        ({"no_ack": True}, "no_ack must not be set"),
        ({"persist_mode": "async"}, "persist_mode must not be"),
    ],
)
def test_a_stream_that_breaks_the_promise_is_told_in_one_sentence(fields: dict[str, Any], says: str) -> None:
    (problem,) = stream_problems(desired().streams["EVENTS"].config | fields)
    assert says in problem
    assert problem.startswith("stream EVENTS: ")


def test_atomic_batches_are_advice_only() -> None:
    config = desired().streams["EVENTS"].config | {"allow_atomic": False, "max_age": 0}
    assert stream_problems(config) == []
    assert [note.split(" is ")[0] for note in stream_notes(config)] == [
        "stream EVENTS: allow_atomic",
        "stream EVENTS: max_age",
    ]


def test_commands_have_no_partitions() -> None:
    config = desired().streams["COMMANDS"].config
    assert stream_problems(config) == []
    transform = desired().streams["EVENTS"].config["subject_transform"]
    assert "must be absent" in stream_problems(config | {"subject_transform": transform})[0]


def test_a_durable_as_expected_has_no_problems() -> None:
    config = SALES.config(3)
    config["filter_subjects"] = list(reversed(config["filter_subjects"]))
    assert durable_problems(config, SALES, 3) == []
    single = consumer_spec("archive", ["*"])
    config = single.config(0) | {"filter_subject": "evt.0.>"}
    del config["filter_subjects"]
    assert durable_problems(config, single, 0) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"ack_policy": "explicit"}, "ack_policy is 'explicit' and must be 'all'"),
        ({"filter_subjects": ["evt.3.>"]}, "filter_subjects are"),
        ({"max_deliver": 5}, "max_deliver is 5 and must be -1"),
        ({"deliver_policy": "new"}, "deliver_policy is 'new'"),
        ({"deliver_subject": "x"}, "must be a pull consumer"),
        ({"headers_only": True}, "headers_only must not be set"),
        ({"durable_name": "sales-4"}, "is called 'sales-4'"),
    ],
)
def test_a_durable_that_breaks_the_promise_is_told_in_one_sentence(fields: dict[str, Any], says: str) -> None:
    (problem,) = durable_problems(SALES.config(3) | fields, SALES, 3)
    assert says in problem
