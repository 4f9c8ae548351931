"""The examples of the guides and of the docstrings run, so that a reader who copies them is not let down."""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import NamedTuple

import pytest

import forebay

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
SOURCE = Path(forebay.__file__).parent

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_MODULE = "guide"


class Block(NamedTuple):
    """A ``python`` block of a page: where its code begins, the code, and whether it is only compiled."""

    line: int
    code: str
    runs: bool


def blocks(text: str) -> list[Block]:
    """The page's blocks of Python, in order.

    Raises ``ValueError`` for an info string of another form: a block that nobody runs must say so.
    """
    found = []
    for fence in _FENCE.finditer(text):
        language, _, word = fence["info"].strip().partition(" ")
        if language in ("python", "py"):
            line = text.count("\n", 0, fence.start("code")) + 1
            if language == "py" or word not in ("", "no-run"):
                raise ValueError(f"line {line - 1}: ```{fence['info']} is neither ```python nor ```python no-run")
            found.append(Block(line, dedent(fence["code"]), not word))
    return found


@contextmanager
def module(name: str) -> Iterator[ModuleType]:
    """A module of that name for the examples: annotations that are text are looked up there."""
    made = ModuleType(name)
    sys.modules[name] = made
    try:
        yield made
    finally:
        del sys.modules[name]


def run(page: Path) -> int:
    """Run a page's blocks in one namespace and return how many ran; a block may ``await``, all on one event loop."""
    ran = 0
    with module(_MODULE) as namespace, asyncio.Runner() as runner:
        for block in blocks(page.read_text(encoding="utf-8")):
            padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
            code = compile(padded, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            if not block.runs:
                continue
            result = eval(code, namespace.__dict__)
            if inspect.iscoroutine(result):
                runner.run(result)
            ran += 1
    return ran


def documented() -> list[str]:
    """The modules of the engine in which a docstring has an example."""
    files = [path for path in sorted(SOURCE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__") for path in files]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in sorted(GUIDES.glob("*.md"))])
def test_the_examples_of_a_guide_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(page) > 0, "a guide has an example that runs"


@pytest.mark.parametrize("name", documented())
def test_the_examples_in_the_docstrings_of_a_module_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [test for test in doctest.DocTestFinder().find(import_module(name)) if test.examples]
    assert examples, "the examples stand in docstrings"
    for test in examples:
        report: list[str] = []
        with module(_MODULE) as namespace:
            namespace.__dict__.update({**test.globs, "__name__": _MODULE})
            test.globs = namespace.__dict__
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            failed = runner.run(test, out=report.append, clear_globs=False).failed
        assert not failed, "".join(report)


def test_blocks_share_a_namespace_and_an_event_loop_and_may_await(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport asyncio\nx = await asyncio.sleep(0, 1)\n"
        "gate = asyncio.Event()\n```\nand\n```python\nassert x == 1\ngate.set()\nassert await gate.wait()\n```\n"
        "```console\n$ not python\n```\n"
    )
    assert run(page) == 2


def test_types_that_an_example_declares_are_found_by_name(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom __future__ import annotations\nimport msgspec\nclass Line(msgspec.Struct):\n    cents: int\n"
        "class Sale(msgspec.Struct):\n    lines: list[Line]\nmsgspec.json.decode(b'{\"lines\":[]}', type=Sale)\n```\n"
    )
    assert run(page) == 1


def test_a_block_that_does_not_run_is_compiled(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python no-run\nraise SystemExit\n```\n")
    assert run(page) == 0
    page.write_text("```python no-run\nthis is no python\n```\n")
    with pytest.raises(SyntaxError):
        run(page)


def test_a_failing_example_names_its_line_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nok = 1\nassert ok == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run(page)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 5)


@pytest.mark.parametrize("info", ["py", "python norun", "python no-run please"])
def test_a_block_with_another_word_is_refused_because_nothing_would_run_it(info: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        blocks(f"```{info}\n1\n```\n")
