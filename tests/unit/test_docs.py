"""What is documented is there, and what is there is documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from forebay.cli.main import cli
from forebay.intake import Taken

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "forebay"
DOCS = ROOT / "docs"

COUNTS = {"I": 8, "O": 6, "S": 7, "B": 7, "C": 5, "F": 3}
RULES = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]

_RULE = re.compile(r"^\*\*([A-Z]\d) · [^·]+ · ([a-z ]+)\.\*\*", re.MULTILINE)
_EVENT = re.compile(r"[a-z]+\.[a-z]+(?:_[a-z]+)*")
_VARIABLE = re.compile(r"FOREBAY_[A-Z0-9]+(?:_[A-Z0-9]+)*")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def is_log_call(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "_log"
    return (
        isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "logger"
    )


def strings(node: ast.AST) -> Iterator[str]:
    return (each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str))


def logged() -> dict[str, set[str]]:
    """The log events of the package, each with the names of the fields that some call gives it."""
    events: dict[str, set[str]] = {}
    for path, tree in sources():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and is_log_call(node)):
            names = {text for argument in call.args for text in strings(argument) if _EVENT.fullmatch(text)}
            extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
            keys = extra.keys if isinstance(extra, ast.Dict) else []
            fields = {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
            forwards = any(isinstance(argument, ast.Name) and argument.id == "event" for argument in call.args)
            assert names or forwards, f"{path.name}:{call.lineno} logs something that is not noun.verb_past"
            for name in names:
                events.setdefault(name, set()).update(fields)
    return events


def metrics() -> set[str]:
    names = set()
    _, tree = next(each for each in sources() if each[0].name == "metrics.py")
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        if call.func.id.endswith("MetricFamily"):  # type: ignore[attr-defined]
            name = ast.literal_eval(call.args[0])
            names.add(f"{name}_total" if call.func.id.startswith("Counter") else name)  # type: ignore[attr-defined]
    return names


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def section(text: str, word: str) -> str:
    """The section, or sections, whose heading names ``word``, without those below that have a heading of their own."""
    parts = re.split(r"^(#+ .*)$", text, flags=re.MULTILINE)
    found = [body for heading, body in zip(parts[1::2], parts[2::2], strict=True) if word in heading]
    assert found, f"no heading names {word!r}"
    return "\n".join(found)


def operating() -> str:
    return (DOCS / "operating.md").read_text(encoding="utf-8")


def first_cells(text: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


def test_every_metric_is_documented_and_every_documented_metric_is_there() -> None:
    assert metrics() == first_cells(section(operating(), "Metrics"))


def test_every_outcome_of_an_event_is_documented() -> None:
    documented = set(re.findall(r"`([a-z]+)`", section(operating(), "Metrics")))
    assert {field.name for field in msgspec.structs.fields(Taken)} <= documented


def test_every_log_event_is_documented_with_its_fields() -> None:
    text = section(operating(), "Log events")
    events = logged()
    assert events.keys() == first_cells(text)
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    missing = {
        f"{event} {field}" for event, fields in events.items() for field in fields if f"`{field}`" not in lines[event]
    }
    assert not missing


def test_every_rule_is_in_the_guarantee_once_and_says_how_far_it_is_built() -> None:
    found = _RULE.findall((DOCS / "guarantee.md").read_text(encoding="utf-8"))
    assert [rule for rule, _ in found] == RULES
    assert {state for _, state in found} <= {"built", "partly", "not yet"}


def test_rules_that_are_not_whole_say_what_is_missing() -> None:
    text = (DOCS / "guarantee.md").read_text(encoding="utf-8")
    paragraphs = [each for each in text.split("\n\n") if _RULE.match(each)]
    assert len(paragraphs) == len(RULES)
    silent = [each[:20] for each in paragraphs if "*Why:*" not in each]
    silent += [each[:20] for each in paragraphs if " · partly.**" in each and "*Missing:*" not in each]
    assert not silent


@pytest.mark.parametrize(("name", "command"), [pytest.param(*each, id=each[0]) for each in commands(cli)])
def test_every_option_of_a_command_is_documented_with_its_variable(name: str, command: click.Command) -> None:
    text = section(operating(), f"`forebay {name.split()[0]}")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for option in parameter.opts:
                assert re.search(rf"`{re.escape(option)}[` ]", text), f"{name} {option}"
            if isinstance(parameter.envvar, str):
                assert f"`{parameter.envvar}`" in text, f"{name} {parameter.envvar}"


def test_every_variable_that_the_package_names_is_documented() -> None:
    named = {found for path, _ in sources() for found in _VARIABLE.findall(path.read_text(encoding="utf-8"))}
    documented = set(_VARIABLE.findall(operating()))
    assert named <= documented, named - documented


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")]), ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_relative_link_resolves(page: Path) -> None:
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(link)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on GitHub."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_decisions_are_numbered_without_a_gap_and_fit_on_a_page() -> None:
    records = sorted((DOCS / "decisions").glob("*.md"))
    assert [record.name[:5] for record in records] == [f"{number:04}-" for number in range(1, len(records) + 1)]
    assert [record.name for record in records if len(record.read_text(encoding="utf-8").splitlines()) > 60] == []
