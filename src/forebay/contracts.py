"""The contracts of a project: the modules that declare its events and commands, and the folder of their golden files.

That is the package ``contracts`` with ``contracts/golden``, unless the table ``[contracts]`` of ``forebay.toml`` says
otherwise: ``modules`` is a list, ``golden`` a folder.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from forebay.errors import ConfigurationError
from forebay.event import EventMeta
from forebay.project import FILE, Project

_USUAL = ("contracts", "contracts.py")
_HINT = f"name the modules of the events in {FILE}: [contracts]"


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    modules: tuple[str, ...] = ("contracts",)
    golden: str = "contracts/golden"


def load_contracts(project: Project) -> tuple[Path, list[type[Any]]]:
    """Import the modules, packages with all that is in them; return the golden folder and the classes, each once.

    Raises:
        ConfigurationError: the table is wrong, a module cannot be imported, or no event is declared in them.
    """
    try:
        table = msgspec.convert(project.tables.get("contracts", {}), _Table)
    except msgspec.ValidationError as error:
        hint = 'write modules = ["contracts"] and golden = "contracts/golden"'
        raise ConfigurationError(f"{project.folder / FILE}: [contracts]: {error}", hint=hint) from error
    if table.modules == _Table().modules and not any((project.folder / each).exists() for each in _USUAL):
        raise ConfigurationError(f"there is no 'contracts' in {project.folder}", hint=_HINT)  # nor somebody else's
    if str(project.folder) not in sys.path:  # a console script does not have the working directory on its path
        sys.path.insert(0, str(project.folder))
    found = {id(contract): contract for name in table.modules for contract in _declared(name)}
    if not found:
        raise ConfigurationError(f"no event is declared in {', '.join(table.modules)}", hint=_HINT)
    return project.folder / table.golden, list(found.values())


def _declared(name: str) -> Iterator[type[Any]]:
    for module in _modules(name):
        for value in vars(module).values():
            if isinstance(value, EventMeta) and value.__module__ == module.__name__ and "spec" in vars(value):
                yield value


def _modules(name: str) -> Iterator[ModuleType]:
    try:
        module = importlib.import_module(name)
        yield module
        for each in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
            yield importlib.import_module(each.name)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"contracts {name!r} cannot be imported: {error}", hint=_HINT) from error
