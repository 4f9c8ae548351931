"""``forebay``: the commands, and errors of one line.

Exit codes: 0 done; 1 an error; 2 wrong usage; 78 a setting is wrong (EX_CONFIG of sysexits.h); 130 interrupted.
``plan`` and ``apply`` have exit codes of their own: 1 for an error of any kind, 2 where there are changes.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click
from click.core import ParameterSource

from forebay import crash_points
from forebay.cli.archive import archive
from forebay.cli.backup import backup, restore
from forebay.cli.consumers import consumers
from forebay.cli.contracts import contracts
from forebay.cli.followers import followers
from forebay.cli.gaps import gaps
from forebay.cli.health import health_command
from forebay.cli.inbox import inbox
from forebay.cli.nodes import nodes
from forebay.cli.outbox import outbox
from forebay.cli.parked import parked
from forebay.cli.projection import projection
from forebay.cli.run import run
from forebay.cli.sagas import sagas
from forebay.cli.settings import defaults_of
from forebay.cli.topology import DERIVED, apply, plan
from forebay.cli.up import up
from forebay.errors import ConfigurationError, ForebayError
from forebay.project import FILE, derived_consumers, read_project

USAGE = click.UsageError.exit_code
EX_CONFIG = 78
"""The exit code of sysexits.h for a wrong setting."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forebay")
@click.pass_context
def cli(context: click.Context) -> None:
    """Event-driven microservices for the edge: exactly once in effect, end to end.

    Every command works on the project in the folder that it is started in: forebay.toml there names its services.
    Settings come from the command line, then from variables such as FOREBAY_DATA, then from the command's table in
    forebay.toml, such as [run], then from defaults.
    """
    command = cli.commands[str(context.invoked_subcommand)] if context.invoked_subcommand in cli.commands else None
    try:
        project = read_project(Path.cwd())
        defaults = defaults_of(project, command) if command else {}
    except ForebayError as error:
        if command in (plan, apply):
            raise click.ClickException(str(error)) from error
        raise
    _arm_crash_point()
    context.obj = project
    context.meta[DERIVED] = lambda: derived_consumers(project)
    context.default_map = {str(context.invoked_subcommand): defaults}


for _command in (
    up,
    run,
    health_command(),
    plan,
    apply,
    outbox,
    inbox,
    parked,
    gaps,
    projection,
    archive,
    consumers,
    sagas,
    contracts,
    followers,
    nodes,
    backup,
    restore,
):
    cli.add_command(_command)


def _arm_crash_point() -> None:
    """Let a test end this process where it says so."""
    if at := os.environ.get(crash_points.VARIABLE):
        try:
            crash_points.arm(at)
        except crash_points.UnknownCrashPointError as error:
            raise ConfigurationError(str(error)) from error


def main() -> None:
    """Run the command line; every error is one line on standard error."""
    try:
        status = cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.UsageError as error:
        _fail_usage(error)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except ForebayError as error:
        _fail_with(error)
    except BaseExceptionGroup as group:
        ours = _first_of_ours(group)
        if ours is None:
            _fail_unexpectedly(group)
        _fail_with(ours)
    except Exception as error:  # noqa: BLE001 - whatever it is, people get one line
        _fail_unexpectedly(error)
    sys.exit(status if isinstance(status, int) else 0)


def _fail_usage(error: click.UsageError) -> NoReturn:
    """Say where the wrong value stands; one that was not typed on the command line is a wrong setting."""
    hint = f"see {error.ctx.command_path if error.ctx else 'forebay'} --help"
    param = error.param if isinstance(error, click.BadParameter) else None
    if error.ctx and param and param.name:
        match error.ctx.get_parameter_source(param.name):
            case ParameterSource.ENVIRONMENT:
                _fail(f"{param.envvar}: {error.message}", EX_CONFIG if error.exit_code == USAGE else error.exit_code)
            case ParameterSource.DEFAULT_MAP:
                where = f"{FILE}: [{error.ctx.info_name}] {param.opts[0].removeprefix('--')}"
                _fail(f"{where}: {error.message}", EX_CONFIG if error.exit_code == USAGE else error.exit_code)
            case ParameterSource.COMMANDLINE:
                _fail(f"{param.opts[0]}: {error.message.rstrip('.')}; {hint}", error.exit_code)
    _fail(f"{error.format_message().rstrip('.')}; {hint}", error.exit_code)


def _fail_with(error: ForebayError) -> NoReturn:
    _fail(str(error), EX_CONFIG if isinstance(error, ConfigurationError) else 1)


def _fail_unexpectedly(error: BaseException) -> NoReturn:
    """Tell of a bug, or of what the system said no to, and where; the traceback is for who asks for it."""
    if os.environ.get("FOREBAY_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror:
        _fail(f"{error.strerror}{f': {error.filename}' if error.filename else ''}", 1)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    _fail(
        f"unexpected {type(error).__name__} at {where}: {error}; FOREBAY_LOG_LEVEL=debug shows the traceback",
        1,
    )


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"forebay: {' '.join(message.split())}", err=True)
    sys.exit(status)


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> ForebayError | None:
    """Return the error of ours in a task group's errors; None if there is none, or a bug beside it."""
    matched, rest = group.split(ForebayError)
    if matched is None or rest is not None:
        return None
    error: BaseException = matched
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, ForebayError) else None
