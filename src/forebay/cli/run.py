"""``forebay run``: one process with services of one node, as a container does."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import anyio
import click
from click.core import ParameterSource

from forebay.cli.settings import DEFAULT_NATS, BrokerUrls, Duration, data_option, store_option
from forebay.cli.size import Size
from forebay.errors import ConfigurationError
from forebay.identity import CORE
from forebay.project import Project, load_services

GARBAGE_THRESHOLD = 10_000
"""Objects made, less those freed, before the youngest are looked at for cycles."""

LEVELS = ("debug", "info", "warning", "error")


@click.command()
@click.argument("services", nargs=-1, required=True, metavar="SERVICE...")
@click.option(
    "--node",
    envvar="FOREBAY_NODE",
    show_envvar=True,
    help="Name of the node, such as store-330: 1 to 63 of a-z, 0-9 and '-'.  [default: core, where all services are"
    " core services of forebay.toml]",
)
@click.option(
    "--core",
    default=CORE,
    show_default=True,
    envvar="FOREBAY_CORE",
    show_envvar=True,
    help="Name of the core's node: it alone sends commands, and other nodes take them from it alone.",
)
@data_option("Folder of the databases: nodes/<node>/<service>.db, or core/<service>.db for the node core.")
@store_option(
    "A PostgreSQL database for core services, postgresql://user@host:5432/database: each has a schema of its own in it,"
    " and several processes may share it. The password is better in PGPASSWORD, ~/.pgpass or FOREBAY_STORE, where no"
    " list of processes shows it.  [default: SQLite files in --data]"
)
@click.option(
    "--nats",
    type=BrokerUrls(),
    default=DEFAULT_NATS,
    show_default=True,
    envvar="FOREBAY_NATS",
    show_envvar=True,
    help="URLs of the broker, by comma. It may be away: writes are accepted all the same.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar="FOREBAY_HOST",
    show_envvar=True,
    help="Address that HTTP listens on; 0.0.0.0 for all.",
)
@click.option(
    "--port",
    default=8100,
    show_default=True,
    envvar="FOREBAY_PORT",
    show_envvar=True,
    help="Port of HTTP; 0 takes a free one.",
)
@click.option(
    "--grace",
    type=Duration(),
    default="24h",
    show_default=True,
    envvar="FOREBAY_GRACE",
    show_envvar=True,
    help="How long confirmed events stay on disk: 24h, 90s, or a number of seconds; less, where they take more than"
    " 20 % of a lane's budget.",
)
@click.option(
    "--disk-reserve",
    type=Size(),
    envvar="FOREBAY_DISK_RESERVE",
    show_envvar=True,
    help="What stays free on the disk: below it writes are answered with 507.  [default: 5 % of the disk, at least"
    " 64MiB and at most 1GiB]",
)
@click.option(
    "--max-database",
    type=Size(),
    envvar="FOREBAY_MAX_DATABASE",
    show_envvar=True,
    help="The most that one database may take.  [default: for a service that only emits, 8 times its lanes' budgets and"
    " at least 1GiB; else no limit]",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    envvar="FOREBAY_LOG_LEVEL",
    show_envvar=True,
    help="Least level of the lines that are logged to standard error.",
)
@click.pass_obj
def run(
    project: Project,
    services: tuple[str, ...],
    node: str | None,
    core: str,
    data: Path,
    store: str | None,
    nats: str,
    host: str,
    port: int,
    grace: float,
    disk_reserve: int | None,
    max_database: int | None,
    log_level: str,
) -> None:
    """Run services of one node in one process.

    It runs until SIGTERM or Ctrl-C. Each SERVICE is a module below the folder that the command is started in:
    edge.till is edge/till/app.py. The options can stand in the table [run] of forebay.toml as well.
    """
    from forebay.logs import configure_logging
    from forebay.process import ProcessConfig, run_process
    from forebay.sqlite import DiskConfig
    from forebay.supervisor import PARENT, die_with

    if parent := os.environ.pop(PARENT, None):
        die_with(int(parent))
    configure_logging(log_level)
    if node is None:
        if not set(services) <= set(project.core):
            raise ConfigurationError(
                f"{', '.join(services)} need{'s' if len(services) == 1 else ''} a node's name",
                hint="give --node or FOREBAY_NODE, such as store-330",
            )
        node = core
    if store is not None and not set(services) <= set(project.core):
        if click.get_current_context().get_parameter_source("store") is not ParameterSource.DEFAULT_MAP:
            raise ConfigurationError(
                "an edge node keeps its events in SQLite files: --store (FOREBAY_STORE) is for core services",
                hint="run the services that forebay.toml names as core in a process of their own",
            )
        store = None  # [run] speaks to all processes of the project
    config = ProcessConfig(
        node=node,
        core=core,
        data=data,
        store=store,
        nats=nats,
        host=host,
        port=port,
        grace=grace,
        disk=DiskConfig(reserve=disk_reserve),
        max_database=max_database,
    )
    loaded = load_services(project, services)
    _keep_what_is_loaded()
    anyio.run(run_process, config, project, loaded, backend_options={"use_uvloop": find_spec("uvloop") is not None})


def _keep_what_is_loaded() -> None:
    """Let the garbage collector pass over what lives as long as the process, and look for cycles less often.

    A batch makes tens of thousands of objects that reference counting frees, and each look at all of them is for
    nothing: it cost a tenth of a consumer's time (bench/consumption.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
