from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from forebay.jetstream.topology import Live, StreamSpec, Topology, applied, consumer_spec, diff
from forebay.jetstream.topology.confirmed_by import KEY, parse

DEST = "evt.{{{{partition({},1)}}}}.{{{{wildcard(1)}}}}"
NAMES = st.sampled_from(["sales", "stock", "archive", "loyalty"])
SERVICES = st.lists(st.sampled_from(["till", "price", "sensor", "*"]), min_size=1, max_size=3)
LIMIT = st.sampled_from([-1, 0, 1, 10**9, 2**40])


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    fields: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {"subject_transform": st.builds(lambda p: {"src": "a", "dest": DEST.format(p)}, st.sampled_from([2, 3]))},
            optional={
                "max_bytes": LIMIT,
                "max_age": LIMIT,
                "max_msgs": LIMIT,
                "max_msgs_per_subject": LIMIT,
                "discard": st.sampled_from(["old", "new"]),
                "retention": st.sampled_from(["limits", "interest", "workqueue"]),
                "deny_delete": st.booleans(),
                "allow_direct": st.booleans(),
                "subjects": st.permutations(["a.*", "b.*"]),
                "metadata": st.dictionaries(st.sampled_from(["team", "x.y"]), st.text(max_size=3)),
            },
        )
    )
    consumers = draw(st.dictionaries(NAMES, SERVICES, max_size=3))
    return Topology(
        streams={"EVENTS": StreamSpec(config={"name": "EVENTS", **fields})},
        consumers={name: consumer_spec(name, services) for name, services in consumers.items()},
    )


@given(before=topologies(), after=topologies())
def test_after_its_changes_a_plan_is_empty_and_nothing_was_taken_away(before: Topology, after: Topology) -> None:
    live = applied(Live(), diff(before, Live()))
    assert diff(before, live) == []
    changed = applied(live, diff(after, live))
    assert diff(after, changed) == []
    assert changed.durables.get("EVENTS", {}).keys() >= live.durables.get("EVENTS", {}).keys()
    old = live.streams["EVENTS"].get("metadata", {})
    new = changed.streams["EVENTS"].get("metadata", {})
    assert new.keys() >= old.keys()
    known, listed = parse(old.get(KEY)), parse(new.get(KEY))
    if known is not None:
        assert listed is not None
        assert listed.consumers.keys() >= known.consumers.keys()
        assert listed.version == known.version + (listed.consumers != known.consumers)
