"""What the check of contracts accepts really reads both ways, whatever a contract is changed into."""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.compatibility import compare
from forebay.examples import examples_of


class Field(NamedTuple):
    name: str
    shape: Shape
    default: Any  # msgspec.NODEFAULT where it is required


class Shape(NamedTuple):
    """A type: one of ``PLAIN``, or made of other shapes."""

    word: str
    parts: tuple[Shape, ...] = ()
    fields: tuple[Field, ...] = ()


PLAIN: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "int": (int, st.integers(-(2**63), 2**63 - 1)),
    "str": (str, st.text(max_size=8)),
    "bool": (bool, st.booleans()),
    "float": (float, st.floats(allow_nan=False, allow_infinity=False)),
    "one": (Literal["a"], st.just("a")),
    "two": (Literal["a", "b"], st.sampled_from(["a", "b"])),
}
NUMBERS = itertools.count()
NAMES = st.sampled_from("abcd")
plain = st.sampled_from(sorted(PLAIN)).map(Shape)


accepting = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def objects(shapes: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
    return st.lists(fields(shapes), max_size=3, unique_by=lambda field: field.name).map(
        lambda found: Shape("object", (), tuple(found))
    )


@st.composite
def fields(draw: st.DrawFn, shapes: st.SearchStrategy[Shape]) -> Field:
    shape = draw(shapes)
    optional = draw(st.booleans())
    return Field(draw(NAMES), shape, draw(values(shape)) if optional and shape.word in PLAIN else msgspec.NODEFAULT)


def containers(shapes: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
    return st.one_of(
        st.builds(lambda word, part: Shape(word, (part,)), st.sampled_from(["list", "map", "maybe"]), shapes),
        objects(shapes),
    )


shapes = st.recursive(plain, containers, max_leaves=4)
contracts = objects(shapes)


def values(shape: Shape) -> st.SearchStrategy[Any]:
    """JSON values of a shape; fields with a default may be left out."""
    match shape.word:
        case "list":
            return st.lists(values(shape.parts[0]), max_size=2)
        case "map":
            return st.dictionaries(st.text(max_size=3), values(shape.parts[0]), max_size=2)
        case "maybe":
            return st.none() | values(shape.parts[0])
        case "object":
            required = {each.name: values(each.shape) for each in shape.fields if each.default is msgspec.NODEFAULT}
            others = {each.name: values(each.shape) for each in shape.fields if each.default is not msgspec.NODEFAULT}
            return st.fixed_dictionaries(required, optional=others)
    return PLAIN[shape.word][1]


def annotation(shape: Shape) -> Any:
    match shape.word:
        case "list":
            return list[annotation(shape.parts[0])]  # type: ignore[misc]
        case "map":
            return dict[str, annotation(shape.parts[0])]  # type: ignore[misc]
        case "maybe":
            return annotation(shape.parts[0]) | None
        case "object":
            return declared(shape)
    return PLAIN[shape.word][0]


def declared(shape: Shape) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        f"Body{next(NUMBERS)}",  # msgspec tells the classes in a schema apart by their names
        [(each.name, annotation(each.shape), msgspec.field(default=each.default)) for each in shape.fields],
        kw_only=True,
    )


@st.composite
def changed(draw: st.DrawFn, shape: Shape, *, harmless: bool = False) -> Shape:
    """A shape after some release's changes; harmless ones only add fields that may be left out."""
    parts = tuple(draw(changed(part, harmless=harmless)) for part in shape.parts)
    kept = [each._replace(shape=draw(changed(each.shape, harmless=harmless))) for each in shape.fields]
    if not harmless and draw(st.integers(0, 3)) == 0:
        match draw(st.sampled_from(["remove", "rename", "default", "required", "type"])):
            case "type":
                return draw(contracts if shape.word == "object" else shapes)
            case "remove":
                kept = kept[1:]
            case "rename":
                kept = [each._replace(name=each.name + "x") for each in kept[:1]] + kept[1:]
            case "required":
                kept = [each._replace(default=msgspec.NODEFAULT) for each in kept]
            case "default":
                kept = [
                    each._replace(default=draw(values(each.shape))) if each.shape.word in PLAIN else each
                    for each in kept
                ]
    if shape.word == "object" and draw(st.booleans()):
        new = draw(fields(plain))
        if new.default is msgspec.NODEFAULT and harmless:
            new = new._replace(default=draw(values(new.shape)))
        if new.name not in {each.name for each in kept}:
            kept.append(new)
    return Shape(shape.word, parts, tuple(kept))


def kept_in(said: Any, again: Any) -> bool:
    """Whether everything that was said is said again; floats may have become whole numbers on the way, and back."""
    if isinstance(said, dict):
        return isinstance(again, dict) and all(name in again and kept_in(said[name], again[name]) for name in said)
    if isinstance(said, list):
        return len(said) == len(again) and all(kept_in(one, other) for one, other in zip(said, again, strict=True))
    return bool(said == again)


def without(said: Any, like: Any) -> Any:
    """Return what is said without the fields that ``like`` does not have."""
    if isinstance(said, dict) and isinstance(like, dict):
        return {name: without(value, like[name]) for name, value in said.items() if name in like}
    if isinstance(said, list) and isinstance(like, list):
        return [without(one, other) for one, other in zip(said, like, strict=True)]
    return said


def read(body: bytes, kind: type[msgspec.Struct]) -> Any:
    """Return a body as a release reads it and writes it again."""
    return msgspec.json.decode(msgspec.json.encode(msgspec.json.decode(body, type=kind)))


@accepting
@given(st.data())
def test_a_change_that_is_accepted_reads_both_ways(data: st.DataObject) -> None:
    before = data.draw(contracts)
    after = data.draw(changed(before))
    old, new = declared(before), declared(after)
    if compare(msgspec.json.schema(old), msgspec.json.schema(new)).breaking:
        return
    said = data.draw(values(before))
    written = read(msgspec.json.encode(said), old)
    assert kept_in(written, read(msgspec.json.encode(written), new))
    written = read(msgspec.json.encode(data.draw(values(after))), new)
    again = read(msgspec.json.encode(written), old)
    assert kept_in(without(written, again), again)


@accepting
@given(st.data())
def test_fields_that_may_be_left_out_are_always_accepted(data: st.DataObject) -> None:
    before = data.draw(contracts)
    after = data.draw(changed(before, harmless=True))
    old, new = msgspec.json.schema(declared(before)), msgspec.json.schema(declared(after))
    assert compare(old, new).breaking == []
    assert compare(old, old) == ([], [])
    if compare(old, new).added:
        assert compare(new, old).breaking


@accepting
@given(contracts)
def test_examples_are_what_their_type_reads_and_writes(shape: Shape) -> None:
    kind = declared(shape)
    for body in examples_of(kind):
        assert msgspec.json.encode(msgspec.json.decode(body, type=kind)) == body
