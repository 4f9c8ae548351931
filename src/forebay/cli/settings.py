"""The settings that commands share, and where they come from.

In this order: the command line, a variable ``FOREBAY_<SETTING>``, the command's table in ``forebay.toml`` (``[run]``,
``[up]``, ``[plan]``, ``[apply]``), a default. The commands that only read a data folder take ``data`` from their own
table, else from ``[up]``, else from ``[run]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from forebay.errors import ConfigurationError
from forebay.jetstream.topology.units import SECOND, parse_duration
from forebay.project import FILE, Project
from forebay.urls import is_postgres, without_secrets

if TYPE_CHECKING:
    FloatType = click.ParamType[float]
    TextType = click.ParamType[str]
else:  # click before 8.5 has no generic one
    FloatType = TextType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_NATS = "nats://127.0.0.1:8300"
"""The broker that ``forebay up`` starts unless told otherwise."""

_SCHEMES = ("nats", "tls", "ws", "wss")


class Duration(FloatType):
    """Seconds, from a number of them or from a text such as ``24h``, ``90s`` or ``1h30m``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = parse_duration(str(value)) / SECOND
            except ValueError as error:
                self.fail(f"{error}, or a number of seconds", param, ctx)
        if not (math.isfinite(seconds) and seconds >= 0):
            self.fail(f"{value!r} is not a duration; it must be 0 or more", param, ctx)
        return seconds


class BrokerUrls(TextType):
    """URLs of brokers, by comma; kept as they were written."""

    name = "urls"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the URLs, each of a scheme that NATS clients know and with a host."""
        urls = [url.strip() for url in str(value).split(",") if url.strip()]
        for url in urls:
            if not _is_broker(url):
                self.fail(f"{without_secrets(url)!r} is not a broker's URL; write nats://host:port", param, ctx)
        if not urls:
            self.fail("no broker is named; write nats://host:port", param, ctx)
        return ",".join(urls)


class StoreUrl(TextType):
    """The URL of a PostgreSQL database; never shown with its password."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the URL as it was written."""
        if not is_postgres(str(value)):
            shown = without_secrets(str(value))
            self.fail(f"{shown!r} is not a PostgreSQL URL; write postgresql://user@host:5432/database", param, ctx)
        return str(value)


def store_option(text: str) -> Callable[[F], F]:
    """Return the option ``--store``. Its default is not shown in the help: there may be a password in it."""
    return click.option(
        "--store", type=StoreUrl(), envvar="FOREBAY_STORE", show_envvar=True, show_default=False, help=text
    )


def data_option(text: str) -> Callable[[F], F]:
    """Return the option ``--data``."""
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("data"),
        show_default=True,
        envvar="FOREBAY_DATA",
        show_envvar=True,
        help=text,
    )


def json_option(command: F) -> F:
    """Add the option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")(command)


def defaults_of(project: Project, command: click.Command) -> dict[str, Any]:
    """Return what ``forebay.toml`` says for a command, by parameter name, as click's ``default_map`` wants it.

    Raises:
        ConfigurationError: the command's table is none, or names a setting that the command does not have.
    """
    name = command.name or ""
    if isinstance(command, click.Group):
        known: dict[str, Any] = {}
        for setting in ("data", "store"):
            said = [_table(project, table).get(setting) for table in (name, "up", "run")]
            value = next((each for each in said if each is not None), None)
            if value is not None:
                known[setting] = value
        return {each: dict(known) for each in command.commands} if known else {}
    table = _table(project, name)
    settings = {
        option.removeprefix("--"): parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("help", "as_json")
        for option in parameter.opts
    }
    for setting in table:
        if setting.replace("_", "-") not in settings:
            raise ConfigurationError(
                f"{project.folder / FILE}: [{name}] has no setting {setting!r}",
                hint=f"its settings are {', '.join(sorted(settings))}",
            )
    return {str(settings[setting.replace("_", "-")]): _joined(value) for setting, value in table.items()}


def _table(project: Project, name: str) -> dict[str, Any]:
    table = project.tables.get(name, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{project.folder / FILE}: {name!r} must be a table", hint=f"write [{name}]")
    return table


def _joined(value: Any) -> Any:
    """Let a list stand where the command line has commas."""
    return ",".join(str(each) for each in value) if isinstance(value, list) else value


def _is_broker(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in _SCHEMES and bool(parts.hostname) and " " not in url and port != 0
