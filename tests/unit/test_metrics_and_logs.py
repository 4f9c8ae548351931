"""docs/metrics-and-logs.md says what the code says: metrics with labels, log events with levels and fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

import forebay
from forebay.taken import Taken

SOURCE = Path(forebay.__file__).parent
PAGE = SOURCE.parents[1] / "docs" / "metrics-and-logs.md"

_EVENT = re.compile(r"[a-z]+\.[a-z]+(?:_[a-z]+)*")
_LEVELS = {"debug", "info", "warning", "error"}


class Logged(NamedTuple):
    """What the calls of one event have in common or add up to."""

    levels: set[str]
    fields: set[str]


class Module:
    """One module's log calls, read from its source."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.functions = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def events(self) -> Iterator[tuple[str, Logged]]:
        for function in self.functions:
            for call in calls(function):
                if is_log_call(call):
                    names = {text for argument in call.args for text in strings(argument) if _EVENT.fullmatch(text)}
                    forwards = any(isinstance(argument, ast.Name) and argument.id == "event" for argument in call.args)
                    assert names or forwards, (
                        f"{self.path.name}:{call.lineno} logs something that is not noun.verb_past"
                    )
                    for name in names:
                        yield name, Logged(levels(call, function), self.fields(call, function))

    def fields(self, call: ast.Call, function: ast.AST) -> set[str]:
        if isinstance(call.func, ast.Name):  # a function of this module that forwards an event to the logger
            (forwarding,) = (each for each in self.functions if each.name == call.func.id)
            return {
                field for inner in calls(forwarding) for field in self.fields(inner, forwarding) if is_log_call(inner)
            }
        found = set()
        for keyword in call.keywords:
            if keyword.arg == "extra":
                found |= keys(keyword.value, function)
            elif keyword.arg == "exc_info":  # the formatter makes a field of it
                found.add("error")
        return found | ({"error"} if isinstance(call.func, ast.Attribute) and call.func.attr == "exception" else set())


def calls(function: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Call))


def is_log_call(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "_log"
    return (
        isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "logger"
    )


def levels(call: ast.Call, function: ast.AST) -> set[str]:
    if isinstance(call.func, ast.Attribute) and call.func.attr in _LEVELS:
        return {call.func.attr}
    if isinstance(call.func, ast.Attribute) and call.func.attr == "exception":
        return {"error"}
    level = call.args[0]
    given = assigned(level.id, function) if isinstance(level, ast.Name) else [level]
    named = {node.attr.lower() for value in given for node in ast.walk(value) if isinstance(node, ast.Attribute)}
    return named & _LEVELS


def assigned(name: str, function: ast.AST) -> list[ast.expr]:
    """What a name of the function stands for."""
    assignments = (node for node in ast.walk(function) if isinstance(node, ast.Assign))
    values = [each.value for each in assignments for to in each.targets if ast.unparse(to) == name]
    assert values, f"where does {name} come from?"
    return values


def keys(value: ast.expr, function: ast.AST) -> set[str]:
    """The keys of a dict, of those that it takes in with ``**``, and of one that has a name in the function."""
    if isinstance(value, ast.Name):
        return {key for each in assigned(value.id, function) for key in keys(each, function)}
    if isinstance(value, ast.IfExp):
        return keys(value.body, function) | keys(value.orelse, function)
    assert isinstance(value, ast.Dict), ast.unparse(value)
    found = set()
    for key, of in zip(value.keys, value.values, strict=True):
        found |= keys(of, function) if key is None else {str(ast.literal_eval(key))}
    return found


def strings(node: ast.AST) -> Iterator[str]:
    return (each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str))


def logged() -> dict[str, Logged]:
    """Every log event of the package."""
    found: dict[str, Logged] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for name, event in Module(path).events():
            known = found.setdefault(name, Logged(set(), set()))
            known.levels.update(event.levels)
            known.fields.update(event.fields)
    return found


def metrics() -> dict[str, set[str]]:
    """Every metric with its labels."""
    found = {}
    for function in Module(SOURCE / "metrics.py").functions:
        named = {
            ast.unparse(node.targets[0]): ast.literal_eval(node.value)
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and is_plain_list(node.value)
        }
        for call in calls(function):
            kind = call.func.id if isinstance(call.func, ast.Name) else ""
            if kind.endswith("MetricFamily"):
                name = ast.literal_eval(call.args[0])
                given = next((ast.unparse(each.value) for each in call.keywords if each.arg == "labels"), "[]")
                found[f"{name}_total" if kind.startswith("Counter") else name] = set(eval(given, {}, named))
    return found


def is_plain_list(value: ast.expr) -> bool:
    return isinstance(value, ast.List) and all(isinstance(each, ast.Constant) for each in value.elts)


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of a section's table by their first cell, which is code."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = dict(zip(parts[1::2], parts[2::2], strict=True))[heading]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    names = [line.split("`")[1] for line in lines]
    assert [name for name in names if names.count(name) > 1] == [], "a row stands twice"
    return {name: [cell.strip() for cell in line.split(" | ")] for name, line in zip(names, lines, strict=True)}


def in_code(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", cell))


def test_every_metric_is_documented_with_its_labels_and_nothing_else_is() -> None:
    assert {name: in_code(cells[1]) for name, cells in rows("Metrics").items()} == metrics()


def test_every_outcome_of_an_event_is_documented() -> None:
    documented = in_code(rows("Metrics")["forebay_consumer_events_total"][2])
    assert {field.name for field in msgspec.structs.fields(Taken)} == documented


def test_every_log_event_is_documented_with_its_levels_and_fields_and_nothing_else_is() -> None:
    documented = {
        name: Logged(set(cells[1].split(", ")), in_code(cells[2])) for name, cells in rows("Log events").items()
    }
    assert documented == logged()


def test_log_events_are_in_the_order_of_the_alphabet() -> None:
    assert list(rows("Log events")) == sorted(rows("Log events"))


@pytest.mark.parametrize(
    ("source", "event", "expected"),
    [
        ("logger.info('a.b', extra={'x': 1})", "a.b", Logged({"info"}, {"x"})),
        ("extra = {'x': 1}\n    logger.error('a.b', extra={**extra, 'y': 2})", "a.b", Logged({"error"}, {"x", "y"})),
        ("logger.info('a.b', extra={'x': 1, **({'y': 2} if z else {})})", "a.b", Logged({"info"}, {"x", "y"})),
        ("logger.log(logging.INFO if x else logging.DEBUG, 'a.b')", "a.b", Logged({"info", "debug"}, set())),
        ("logger.exception('a.b_c')", "a.b_c", Logged({"error"}, {"error"})),
        ("logger.info('a.b' if x else 'c.d', exc_info=error)", "c.d", Logged({"info"}, {"error"})),
    ],
)
def test_the_reader_of_sources_sees_a_call(tmp_path: Path, source: str, event: str, expected: Logged) -> None:
    (tmp_path / "module.py").write_text(f"def function():\n    {source}\n")
    assert dict(Module(tmp_path / "module.py").events())[event] == expected


def test_the_reader_of_sources_refuses_a_line_that_is_no_event(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def function():\n    logger.info(f'sold {x}')\n")
    with pytest.raises(AssertionError, match=r"module\.py:2 logs something"):
        list(Module(tmp_path / "module.py").events())
