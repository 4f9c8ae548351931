"""What is public says what it does, what it raises and in which unit; ruff asks for the rest of it."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import pytest

import forebay

SOURCE = Path(forebay.__file__).parent

WITH_EXAMPLES = [
    "Event",
    "Lane",
    "Message",
    "Service",
    "Service.on",
    "UnitOfWork.emit",
    "UnitOfWork.execute",
    "UnitStore",
    "upcasts",
]
"""What users call; the examples run in ``test_guides``."""


_MISTAKES = {"RuntimeError", "AssertionError"}
"""Raised where the caller's code is wrong; nobody handles them."""


class Definition(NamedTuple):
    """A public function or method of the source; ``docs`` are its docstring and its class's."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    docs: str


def modules() -> Iterator[ModuleType]:
    yield forebay
    for found in pkgutil.walk_packages(forebay.__path__, "forebay."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public classes and functions that a module declares."""
    for name, value in vars(module).items():
        declared = value.callback if isinstance(value, click.Command) else value
        if not name.startswith("_") and getattr(declared, "__module__", None) == module.__name__:
            yield f"{module.__name__}.{name}", declared


def parts(owner: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A class or a function, and the public methods and properties of a class."""
    yield owner, value
    for name, member in vars(value).items() if inspect.isclass(value) else ():
        plain = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(plain):
            yield f"{owner}.{name}", plain


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name != "__main__.py":
            yield ".".join(path.relative_to(SOURCE).with_suffix("").parts), ast.parse(path.read_text(encoding="utf-8"))


def definitions() -> Iterator[Definition]:
    for module, tree in trees():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield Definition(f"{module}.{node.name}", node, ast.get_docstring(node) or "")
            elif isinstance(node, ast.ClassDef):
                said = ast.get_docstring(node) or ""
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                        docs = f"{ast.get_docstring(inner) or ''}\n{said}"
                        yield Definition(f"{module}.{node.name}.{inner.name}", inner, docs)


def is_number(value: ast.expr) -> bool:
    """Whether an expression is a number, or a product, a sum or a power of numbers."""
    if isinstance(value, ast.BinOp):
        return is_number(value.left) and is_number(value.right)
    return isinstance(value, ast.Constant) and type(value.value) in (int, float)


def is_public(name: str) -> bool:
    return not any(part.startswith("_") and part != "__init__" for part in name.split("."))


def raised(node: ast.AST) -> Iterator[str]:
    """The errors that a function raises by name, outside of functions in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            yield ast.unparse(child.exc.func).rpartition(".")[2]
        yield from raised(child)


def test_every_fixture_has_an_example() -> None:
    text = (SOURCE / "testing" / "fixtures.py").read_text(encoding="utf-8")
    made = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    silent = [each.name for each in made if not doctest.DocTestParser().get_examples(ast.get_docstring(each) or "")]
    assert made
    assert not silent


def test_every_public_class_function_and_method_says_what_it_does() -> None:
    silent = [
        name
        for module in modules()
        for owner, value in own(module)
        for name, part in parts(owner, value)
        if not (vars(part).get("__doc__") if inspect.isclass(part) else part.__doc__)
    ]
    assert not silent


def test_every_name_that_forebay_exports_is_there_and_says_what_it_is() -> None:
    for name in forebay.__all__:
        assert inspect.getdoc(getattr(forebay, name)), name
    assert sorted(forebay.__all__) == sorted(forebay._HOMES)


def test_what_a_public_function_raises_is_in_its_docstring() -> None:
    silent = [
        f"{each.name}: {error}"
        for each in definitions()
        if is_public(each.name) and not each.name.startswith("cli.")
        for error in raised(each.node)
        if error.endswith("Error") and not error.startswith("_") and error not in _MISTAKES
        if error not in each.docs and "aises as" not in each.docs  # "raises as ``read`` does" says it
    ]
    assert not silent


def test_a_public_number_says_its_unit() -> None:
    silent = []
    for module, tree in trees():
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.Assign):
                name = ast.unparse(node.targets[0])
                number = is_number(node.value)
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if number and not name.startswith("_") and not said:
                    silent.append(f"{module}.{name}")
    assert not silent


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_what_users_call_has_an_example(name: str) -> None:
    found: Any = forebay
    for part in name.split("."):
        found = getattr(found, part)
    assert doctest.DocTestParser().get_examples(found.__doc__), f"{name} has no example"
