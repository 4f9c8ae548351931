from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from forebay.compatibility import closed_objects, compare


class Line(msgspec.Struct):
    cents: int


class LineWithMore(msgspec.Struct):
    cents: int
    note: str = ""


class Nothing(msgspec.Struct): ...


class LineWithLess(msgspec.Struct):
    note: str = ""


class Cash(msgspec.Struct, tag=True):
    cents: int


class Card(msgspec.Struct, tag=True):
    number: str


class CardWithMore(msgspec.Struct, tag="Card"):
    number: str
    holder: str = ""


class Voucher(msgspec.Struct, tag=True):
    code: str


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class MoreColours(Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Tree(msgspec.Struct):
    name: str
    children: list[Tree] = []


class Hedge(msgspec.Struct):
    name: str
    children: list[Hedge] = []
    age: int = 0


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    children: list[Closed] = []


class Pair(msgspec.Struct, array_like=True):
    one: int


class Triple(msgspec.Struct, array_like=True):
    one: int
    two: int


def schema_of(kind: Any, default: Any = msgspec.NODEFAULT) -> dict[str, Any]:
    made = msgspec.defstruct("Body", [("field", kind, msgspec.field(default=default))])
    return msgspec.json.schema(made)


def broken(old: Any, new: Any) -> list[str]:
    comparison = compare(schema_of(old), schema_of(new))
    return [f"{path}: {what}" for path, what in comparison.breaking]


@pytest.mark.parametrize(
    ("old", "new", "added"),
    [
        (int, int, []),
        (Line, LineWithMore, ["field.note"]),
        (list[Line], list[LineWithMore], ["field[].note"]),
        (dict[str, Line], dict[str, LineWithMore], ["field.*.note"]),
        (Line | None, LineWithMore | None, ["field.note"]),
        (tuple[int, Line], tuple[int, LineWithMore], ["field[1].note"]),
        (Cash | Card, Cash | CardWithMore, ["field.holder"]),
        (Tree, Hedge, ["field.age"]),
        (int | str, str | int, []),
    ],
)
def test_fields_that_may_be_left_out_can_be_added_anywhere(old: Any, new: Any, added: list[str]) -> None:
    comparison = compare(schema_of(old), schema_of(new))
    assert (comparison.breaking, comparison.added) == ([], added)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (int, str, "field: was integer and is string"),
        (int, int | None, "field: may be null, which older releases cannot read"),
        (int | None, int, "field: may not be null any more, which older releases send"),
        (int, float, "field: was integer and is number"),
        (str, Annotated[str, msgspec.Meta(max_length=3)], "field: maxLength is 3 and was not set"),
        (Annotated[int, msgspec.Meta(ge=0)], int, "field: minimum was 0 and is not set any more"),
        (Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=1)], "field: minimum was 0 and is 1"),
        (Colour, MoreColours, "field: may be 'green', which older releases cannot read"),
        (MoreColours, Colour, "field: may not be 'green' any more, which older releases send"),
        (Literal["a"], Literal["b"], "field: may be 'b', which older releases cannot read; may not be 'a' any more"),
        (str, Colour, "field: was string and is enum"),
        (str, bytes, "field: was string and is string (base64)"),
        (list[int], list[str], "field[]: was integer and is string"),
        (list[int], set[int], "field: uniqueItems is true and was not set"),
        (dict[str, int], dict[str, str], "field.*: was integer and is string"),
        (Line, dict[str, int], "field: was object and is map"),
        (tuple[int, int], tuple[int, int, int], "field: maxItems was 2 and is 3"),
        (tuple[int, int], tuple[int, str], "field[1]: was integer and is string"),
        (LineWithMore, Line, "field.note: was removed, or has another name"),
        (Line, LineWithLess, "field.cents: was removed, or has another name"),
        (Nothing, Line, "field.cents: is required, and older releases do not send it"),
        (Cash | Card, Cash | Card | Voucher, "field: may be object (Voucher), which older releases cannot read"),
        (Pair, Triple, "field: minItems was 1 and is 2"),
        (Any, int, "field: was anything and is integer"),
    ],
)  # fmt: skip
def test_whatever_one_side_could_not_read_is_told_with_its_field(old: Any, new: Any, said: str) -> None:
    assert broken(old, new)
    assert broken(old, new)[0].startswith(said)


def test_a_default_is_part_of_what_was_said() -> None:
    changed = compare(schema_of(int, 1), schema_of(int, 2)).breaking
    assert changed == [("field", "default was 1 and is 2")]
    assert compare(schema_of(int, 1), schema_of(int)).breaking == [
        ("field", "is required, and older releases may leave it out")
    ]
    assert compare(schema_of(int), schema_of(int, 1)).breaking == [
        ("field", "may be left out, and older releases require it")
    ]


def test_names_of_classes_and_their_docstrings_are_of_no_account() -> None:
    class Body(msgspec.Struct):
        """Once it was said so."""

        field: int

    assert compare(msgspec.json.schema(Body), schema_of(int)) == ([], [])


def test_an_object_that_refuses_what_it_does_not_know_is_found_wherever_it_is() -> None:
    for kind, path in [
        (Closed, "field"),
        (list[Closed], "field[]"),
        (dict[str, Closed], "field.*"),
        (Closed | None, "field"),
        (tuple[int, Closed], "field"),
    ]:
        made = msgspec.defstruct("Body", [("field", kind)])
        assert closed_objects(msgspec.json.schema(made)) == [path]
    assert closed_objects(msgspec.json.schema(Closed)) == [""]
    assert closed_objects(msgspec.json.schema(Tree)) == []
