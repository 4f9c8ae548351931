"""A project: the folder with ``forebay.toml`` that names its services, and how they are loaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from forebay.errors import ConfigurationError

if TYPE_CHECKING:
    from forebay.jetstream.topology.spec import ConsumerSpec
    from forebay.service import Service

FILE = "forebay.toml"

LINK_KBIT = "FOREBAY_LINK_KBIT"
"""The variable that caps the link, in kilobits per second."""


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """What ``forebay.toml`` says.

    Attributes:
        folder: where the file is, or would be; services are imported from it.
        edge: the modules of the services of an edge node, such as ``edge.till``.
        core: those of the central services.
        tables: every other table: a service's own under its name, defaults of commands under ``up`` and ``run``.
    """

    folder: Path
    edge: tuple[str, ...] = ()
    core: tuple[str, ...] = ()
    tables: Mapping[str, Any] = {}

    @property
    def jetstream_config(self) -> Path | None:
        """The folder of the streams' and consumers' files, where the project has one."""
        folder = self.folder / "jetstream-config"
        return folder if folder.is_dir() else None

    def link_kbit(self, environment: Mapping[str, str]) -> float | None:
        """Return the cap on the link in kilobits per second: ``FOREBAY_LINK_KBIT``, else ``[link] kbit``, else None.

        Raises:
            ConfigurationError: it is no number above 0, or the table has another setting.
        """
        table = self.tables.get("link", {})
        if not isinstance(table, dict) or set(table) - {"kbit"}:
            raise ConfigurationError(f"{self.folder / FILE}: [link] has one setting, kbit")
        where = LINK_KBIT if environment.get(LINK_KBIT) else f"{self.folder / FILE}: [link] kbit"
        value = environment.get(LINK_KBIT) or table.get("kbit")
        try:
            kbit = None if value is None else float(value)
        except (TypeError, ValueError):
            kbit = 0.0
        if kbit is not None and not 0 < kbit < float("inf"):
            raise ConfigurationError(f"{where}: {value!r} is not a number of kilobits per second above 0")
        return kbit

    def settings(self, service: str) -> Mapping[str, Any]:
        """The service's own table; empty where there is none."""
        table = self.tables.get(service, {})
        return table if isinstance(table, dict) else {}


class LoadedService(NamedTuple):
    """A service's declaration and the folder of its migrations, where it has any."""

    declared: Service
    migrations: Path | None


class _Services(msgspec.Struct, forbid_unknown_fields=True):
    edge: list[str] = []
    core: list[str] = []


def read_project(folder: Path) -> Project:
    """Read ``forebay.toml`` in a folder; a folder without one is an empty project.

    Raises:
        ConfigurationError: the file cannot be read, or its table ``services`` is not as it should be.
    """
    file = folder / FILE
    if not file.exists():
        return Project(folder=folder)
    try:
        tables = tomllib.loads(file.read_text())
        services = msgspec.convert(tables.pop("services", {}), _Services)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{file}: [services]: {error}", hint='write edge = ["edge.till"]') from error
    return Project(folder=folder, edge=tuple(services.edge), core=tuple(services.core), tables=tables)


def load_services(project: Project, modules: Sequence[str]) -> list[LoadedService]:
    """Import services: ``edge.till`` is ``edge/till/app.py`` (or ``edge/till.py``) with one ``Service`` in it.

    Raises:
        ConfigurationError: a module is missing, fails on import, or does not hold exactly one service; two modules
            declare services of the same name; or a service of the core has a lane that drops events.
    """
    if str(project.folder) not in sys.path:  # a console script does not have the working directory on its path
        sys.path.insert(0, str(project.folder))
    loaded = [_load(project, module) for module in modules]
    for module, service in zip(modules, loaded, strict=True):
        for lane in service.declared.lanes:
            if module in project.core and lane.drops:  # its handlers' effects would be half done (O3)
                raise ConfigurationError(
                    f"service {service.declared.name!r} of the core has lane {lane.name!r} that drops",
                    hint="leave out when_full: a lane of the core blocks",
                )
    names = [each.declared.name for each in loaded]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two services are called {name!r}")
    return loaded


def derived_consumers(project: Project) -> list[ConsumerSpec]:
    """Return the consumers that the project's core services declare by their handlers; files win over them.

    Raises:
        ConfigurationError: a service cannot be loaded.
    """
    from forebay.jetstream.topology.spec import consumer_spec

    declared = [service.declared for service in load_services(project, project.core)]
    return [consumer_spec(each.name, each.handlers.services) for each in declared if each.handlers]


def _load(project: Project, name: str) -> LoadedService:
    from forebay.service import Service

    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(f"{name!r} is not a module's name", hint="write edge.till for edge/till/app.py")
    try:
        module = _import(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no service {name!r} in {project.folder}",
                hint=f"it is expected in {name.replace('.', '/')}/app.py",
            ) from None
        raise ConfigurationError(f"service {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"service {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    services = {id(value): value for value in vars(module).values() if isinstance(value, Service)}
    if len(services) != 1:
        raise ConfigurationError(f"{module.__name__} holds {len(services)} services and must hold one")
    migrations = Path(str(module.__file__)).parent / "migrations"
    return LoadedService(next(iter(services.values())), migrations if migrations.is_dir() else None)


def _import(name: str) -> ModuleType:
    """Import ``<name>.app``, or ``<name>`` itself where that is a module without one."""
    try:
        found = importlib.util.find_spec(f"{name}.app")
    except ModuleNotFoundError as error:
        if error.name != f"{name}.app" and not f"{name}.".startswith(f"{error.name}."):
            raise  # the package is there, and imports something that is not
        found = None
    return importlib.import_module(f"{name}.app" if found else name)
