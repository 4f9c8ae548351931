"""``forebay contracts``: whether events and commands still are what was published."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from forebay.cli.settings import json_option
from forebay.cli.table import show
from forebay.contracts import load_contracts
from forebay.golden import Golden, IncompatibleError
from forebay.project import Project


@click.group()
def contracts() -> None:
    """Keep events and commands readable for every release that may still send or read them.

    The project's contracts are compared with the golden files beside them, which say what was published.
    """


@contracts.command()
@json_option
@click.pass_context
def check(context: click.Context, as_json: bool) -> None:
    """Say what a change to a contract breaks, and what is not on record yet.

    Exit code 0: nothing; 1: something, or any error.
    """
    golden = _golden(context.find_object(Project))
    problems = golden.check()
    if as_json:
        show([msgspec.structs.asdict(problem) for problem in problems], as_json=True, empty="")
    for problem in () if as_json else problems:
        click.echo(str(problem))
    if not problems and not as_json:
        click.echo("Nothing that was published is broken.")
    context.exit(1 if problems else 0)


@contracts.command()
@click.pass_context
def accept(context: click.Context) -> None:
    """Put new versions and added fields on record: write their golden files, to be committed with the change.

    Nothing at all is written where something that was published is broken.
    """
    golden = _golden(context.find_object(Project))
    try:
        written = golden.accept()
    except IncompatibleError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        raise click.ClickException("nothing was accepted: what was published has to stay readable") from error
    for path in written:
        click.echo(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    if not written:
        click.echo("Nothing to accept.")


def _golden(project: Project | None) -> Golden:
    project = project or Project(folder=Path.cwd())
    folder, found = load_contracts(project)
    return Golden(folder, found)
