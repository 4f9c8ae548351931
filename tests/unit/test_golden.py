from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from forebay import Event, upcasts
from forebay.errors import ConfigurationError
from forebay.event import EventMeta
from forebay.examples import NoExampleError, examples_of
from forebay.golden import Golden, IncompatibleError

Contract = type[Any]


def contract(version: int = 1, *, defaults: dict[str, Any] | None = None, **fields: Any) -> Contract:
    """Declare a version of the event ``shop.sold``; options of the class are given with a trailing underscore."""
    options = {name.removesuffix("_"): fields.pop(name) for name in list(fields) if name.endswith("_")}
    namespace = {"__annotations__": fields or {"basket": str}, "__module__": __name__, **(defaults or {})}
    return EventMeta(
        f"Sold{version}", (Event,), namespace, **{"service": "shop", "kind": "sold", "version": version, **options}
    )


def upcast(old: Contract, new: Contract, function: Callable[[Any], Any]) -> None:
    def convert(event: Any) -> Any:
        return function(event)

    convert.__annotations__ = {"return": new}
    upcasts(old)(convert)


def problems(folder: Path, *contracts: Contract) -> list[str]:
    return [str(each) for each in Golden(folder, contracts).check()]


def accept(folder: Path, *contracts: Contract) -> list[str]:
    return sorted(path.name for path in Golden(folder, contracts).accept())


def examples(folder: Path, version: int = 1) -> list[Any]:
    return list(json.loads((folder / f"shop.sold.v{version}.json").read_text()))


def test_a_new_contract_is_accepted_with_examples_and_its_schema(tmp_path: Path) -> None:
    sold = contract(basket=str, cents=int, key_="basket")
    assert problems(tmp_path, sold) == ["shop.sold.v1: is not on record; run `forebay contracts accept`"]
    assert accept(tmp_path / "golden", sold) == ["shop.sold.v1.json", "shop.sold.v1.schema.json"]
    assert examples(tmp_path / "golden") == [{"basket": "basket", "cents": 1}]
    record = json.loads((tmp_path / "golden" / "shop.sold.v1.schema.json").read_text())
    assert (record["lane"], record["key"]) == ("ledger", "basket")
    assert problems(tmp_path / "golden", sold) == []
    assert accept(tmp_path / "golden", sold) == []


def test_an_added_field_keeps_the_version_and_the_old_examples_stay(tmp_path: Path) -> None:
    accept(tmp_path, contract(basket=str))
    grown = contract(basket=str, note=str, defaults={"note": ""})
    assert problems(tmp_path, grown) == [
        "shop.sold.v1: note: was added, which breaks nothing; run `forebay contracts accept`"
    ]
    accept(tmp_path, grown)
    assert examples(tmp_path) == [
        {"basket": "basket"},
        {"basket": "basket", "note": "note"},
        {"basket": "basket", "note": ""},
    ]
    assert problems(tmp_path, grown) == []


def test_a_broken_version_is_told_with_field_and_remedy_and_nothing_is_accepted(tmp_path: Path) -> None:
    accept(tmp_path, contract(basket=str, cents=int))
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    broken = contract(basket=str, total=int)
    remedy = "undo it, or make it a new version with an upcaster from this one"
    assert problems(tmp_path, broken) == [
        f"shop.sold.v1: cents: was removed, or has another name; {remedy}",
        f"shop.sold.v1: total: is required, and older releases do not send it; {remedy}",
    ]
    with pytest.raises(IncompatibleError, match=r"2 of the contracts' changes") as caught:
        accept(tmp_path, broken, contract(2, basket=str))
    assert [problem.where for problem in caught.value.problems] == ["cents", "total"]
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("option", "said"), [({"lane_": "telemetry"}, "lane was"), ({"key_": "till"}, "key was")])
def test_lane_and_key_of_a_published_version_stay_because_order_rests_on_them(
    tmp_path: Path, option: dict[str, Any], said: str
) -> None:
    accept(tmp_path, contract(basket=str, till=str, key_="basket"))
    (problem,) = problems(tmp_path, contract(basket=str, till=str, **{"key_": "basket"} | option))
    assert said in problem
    assert "another kind of event" in problem


def test_a_published_version_is_never_removed(tmp_path: Path) -> None:
    accept(tmp_path, contract(1))
    (problem, *_) = problems(tmp_path, contract(2))
    assert problem.startswith("shop.sold.v1: was published, and no class declares it; declare it again")


def test_a_new_version_wants_an_upcaster_from_the_ones_before(tmp_path: Path) -> None:
    v1 = contract(1, basket=str)
    accept(tmp_path, v1)
    v2 = contract(2, basket=str, cents=int)
    assert (
        "shop.sold.v1: no upcaster leads to shop.sold.v2; write a function with @upcasts(Sold1)"
        in problems(tmp_path, v1, v2)
    )  # fmt: skip
    upcast(v1, v2, lambda old: v2(basket=old.basket, cents=0))
    assert accept(tmp_path, v1, v2) == ["shop.sold.v2.json", "shop.sold.v2.schema.json"]
    v3 = contract(3, basket=str, cents=int, currency=str)
    upcast(v2, v3, lambda old: v3(basket=old.basket, cents=old.cents, currency="EUR"))
    accept(tmp_path, v1, v2, v3)
    assert problems(tmp_path, v1, v2, v3) == []


def test_an_upcaster_that_fails_on_what_was_sent_is_found_by_the_examples(tmp_path: Path) -> None:
    v1, v2 = contract(1, cents=int), contract(2, euros=float)
    accept(tmp_path, v1)
    (tmp_path / "shop.sold.v1.json").write_text('[{"cents": 1}, {"cents": 0}]')
    upcast(v1, v2, lambda old: v2(euros=1 / old.cents))
    assert problems(tmp_path, v1, v2)[0] == (
        "shop.sold.v1: shop.sold.v1.json, example 2: upcaster convert failed on a shop.sold.v1: "
        "ZeroDivisionError: division by zero; correct the upcaster"
    )


def test_an_upcaster_keeps_the_key_and_makes_what_can_be_written(tmp_path: Path) -> None:
    v1 = contract(1, basket=str, key_="basket")
    v2 = contract(2, basket=str, cents=Annotated[int, msgspec.Meta(ge=0)], key_="basket")
    upcast(v1, v2, lambda _: v2(basket="?", cents=-1))
    found = problems(tmp_path, v1, v2)
    assert any("its key 'basket' becomes '?'" in each and "let the upcaster keep the key" in each for each in found)
    assert any("becomes what cannot be written" in each for each in found)


def test_an_example_that_is_not_read_as_it_was_is_told(tmp_path: Path) -> None:
    accept(tmp_path, contract(basket=str))
    (tmp_path / "shop.sold.v1.json").write_text('[{"basket": 5}, {"basket": "b", "till": {"number": 7}}]')
    first, second = problems(tmp_path, contract(basket=str))
    assert "example 1: the body is not a shop.sold.v1: Expected `str`, got `int`" in first
    assert "example 2: is read, and written again without its till" in second


class Line(msgspec.Struct):
    cents: int


def test_an_example_says_where_it_lost_something(tmp_path: Path) -> None:
    sold = contract(lines=list[Line])
    accept(tmp_path, sold)
    (tmp_path / "shop.sold.v1.json").write_text('[{"lines": [{"cents": 1}, {"cents": 2, "note": "n"}]}]')
    assert "without its lines[1].note" in problems(tmp_path, sold)[0]


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    cents: int


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"forbid_unknown_fields_": True}, "shop.sold.v1: refuses fields that it does not know"),
        ({"line": Closed}, "shop.sold.v1: line: refuses fields that it does not know"),
        ({"at": datetime}, "shop.sold.v1: at: is a time that may have no offset from UTC; annotate"),
        ({"by_door": dict[int, int]}, "shop.sold.v1: by_door: has keys that are no text"),
        ({"thing": object}, "shop.sold.v1: Generating JSON schema for custom types"),
    ],
)
def test_what_no_later_release_could_keep_to_is_refused_from_the_first_version_on(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    found = problems(tmp_path, contract(**fields))
    assert found[0].startswith(said)
    with pytest.raises(IncompatibleError):
        accept(tmp_path, contract(**fields))
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_says_too_little_for_an_example_wants_one_by_hand(tmp_path: Path) -> None:
    sold = contract(code=Annotated[str, msgspec.Meta(pattern="^[0-9]{4}$")])
    with pytest.raises(NoExampleError, match=r"write one into .*shop\.sold\.v1\.json"):
        accept(tmp_path, sold)
    (tmp_path / "shop.sold.v1.json").write_text('[{"code": "0815"}]')
    accept(tmp_path, sold)
    assert examples(tmp_path) == [{"code": "0815"}]
    assert problems(tmp_path, sold) == []


def test_examples_that_were_thrown_away_are_missed(tmp_path: Path) -> None:
    accept(tmp_path, contract())
    (tmp_path / "shop.sold.v1.json").unlink()
    assert "its examples are gone" in problems(tmp_path, contract())[0]
    accept(tmp_path / "other", contract())
    (tmp_path / "other" / "shop.sold.v1.schema.json").unlink()
    with pytest.raises(ConfigurationError, match=r"has no \.schema\.json beside it"):
        problems(tmp_path / "other", contract(kind_="returned"))


@pytest.mark.parametrize("name", ["shop.sold.v1.json", "shop.sold.v1.schema.json"])
def test_a_golden_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    accept(tmp_path, contract())
    (tmp_path / name).write_text("<<<<<<< ours")
    with pytest.raises(ConfigurationError, match=name):
        problems(tmp_path, contract())


def test_two_classes_do_not_declare_one_version(tmp_path: Path) -> None:
    assert "two classes declare it, Sold1 and Sold1" in problems(tmp_path, contract(), contract())[0]


class Everything(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(gt=3, multiple_of=5)]
    low: Annotated[float, msgspec.Meta(lt=0)]
    few: Annotated[list[int], msgspec.Meta(min_length=2)]
    code: Annotated[str, msgspec.Meta(min_length=6, max_length=8)]
    pair: tuple[int, str]
    prices: dict[str, int]
    line: Line | None = None
    tree: list[Everything] = []


def test_examples_keep_to_the_bounds_of_their_type_and_differ() -> None:
    full, sparse = (msgspec.json.decode(each, type=Everything) for each in examples_of(Everything))
    assert (full.number % 5, len(full.few), len(full.code)) == (0, 2, 6)
    assert full.line is not None
    assert full.tree
    assert (sparse.line, sparse.tree, sparse.prices) == (None, [], {})
