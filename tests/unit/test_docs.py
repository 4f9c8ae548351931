"""What is documented is there, and what is there is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from forebay.cli.main import cli

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "forebay"
DOCS = ROOT / "docs"

COUNTS = {"I": 8, "O": 6, "S": 7, "B": 7, "C": 5, "F": 3}
RULES = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]

_RULE = re.compile(r"^\*\*([A-Z]\d) · [^·]+ · ([a-z ]+)\.\*\*", re.MULTILINE)
_VARIABLE = re.compile(r"FOREBAY_[A-Z0-9]+(?:_[A-Z0-9]+)*")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


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
    named = {found for path in SOURCE.rglob("*.py") for found in _VARIABLE.findall(path.read_text(encoding="utf-8"))}
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
