"""``forebay backup`` and ``forebay restore``: the databases of a data folder, in one archive and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forebay.cli.databases import files
from forebay.cli.settings import data_option, json_option, store_option
from forebay.cli.table import show
from forebay.errors import ConfigurationError
from forebay.urls import without_secrets

if TYPE_CHECKING:
    from forebay.backup import Entry


@click.command()
@data_option("Folder of the databases; their processes may run.")
@store_option("A PostgreSQL database; its server's own tools back it up.")
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The archive, a tar file; it must not be there yet.",
)
@click.option("--node", help="Back up only this node.")
@click.option("--service", help="Back up only this service.")
@json_option
def backup(data: Path, store: str | None, to: Path, node: str | None, service: str | None, as_json: bool) -> None:
    """Copy the databases of a data folder into an archive.

    Each is copied as it stands at one moment, with checksum, while its process goes on.
    """
    from forebay.backup import back_up

    if store is not None:
        raise ConfigurationError(
            f"{without_secrets(store)} is not backed up by this command", hint="use pg_dump, or the server's archiving"
        )
    found = [each.path for each in files(data, node, service)]
    _show(back_up(data, found, to), as_json=as_json)


@click.command()
@data_option("Folder that the databases are put into; their processes must be stopped.")
@click.option(
    "--from",
    "archive",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The archive that `forebay backup` wrote.",
)
@click.option("--node", help="Restore only this node.")
@click.option("--service", help="Restore only this service.")
@json_option
def restore(data: Path, archive: Path, node: str | None, service: str | None, as_json: bool) -> None:
    """Put the databases of an archive back.

    All or none of them; those that were there are set aside, as <name>.replaced-<time>.
    """
    from forebay.backup import restore as restore_backup

    def wanted(entry: Entry) -> bool:
        return node in (None, entry.node) and service in (None, entry.service)

    _show(restore_backup(data, archive, wanted), as_json=as_json)


def _show(entries: Sequence[Entry], *, as_json: bool) -> None:
    rows = [{"node": entry.node, "service": entry.service, "bytes": entry.bytes} for entry in entries]
    show(rows, as_json=as_json, empty="nothing")
