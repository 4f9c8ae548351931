"""Where the settings of `forebay run` and `forebay up` come from: command line, FOREBAY_*, forebay.toml, defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from forebay.cli.main import cli
from forebay.demo import DemoConfig
from forebay.errors import ConfigurationError
from forebay.process import ProcessConfig
from forebay.sqlite import DiskConfig

Told = dict[str, Any]

TOML = """
[services]
edge = ["edge.door"]
core = ["core.audit"]

[run]
node = "from-file"
data = "file-data"
nats = ["nats://file-1:4222", "nats://file-2:4222"]
host = "10.0.0.1"
port = 9001
grace = "2h"
log-level = "warning"

[up]
data = "file-data"
nodes = ["file-1", "file-2"]
port = 9002
nats = "nats://file:4222"
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    """What the commands hand on, in place of what they would start."""
    kept: Told = {}

    async def run_process(config: ProcessConfig, *_: object) -> None:
        kept["run"] = config

    class Demo:
        def __init__(self, _: object, config: DemoConfig, _report: Callable[[str], None]) -> None:
            kept["up"] = config

        async def run(self) -> None: ...

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("forebay.process.run_process", run_process)
    monkeypatch.setattr("forebay.demo.Demo", Demo)
    monkeypatch.setattr("forebay.cli.run.load_services", lambda *_: [])
    monkeypatch.setattr("forebay.logs.configure_logging", lambda level: kept.update(level=level))
    monkeypatch.setattr("os.umask", lambda _: 0)
    return kept


def call(*arguments: str, **variables: str) -> None:
    CliRunner().invoke(cli, arguments, env=variables, catch_exceptions=False, standalone_mode=False)


VARIABLES = {
    "FOREBAY_NODE": "from-env",
    "FOREBAY_DATA": "env-data",
    "FOREBAY_NATS": "nats://env:4222",
    "FOREBAY_HOST": "10.0.0.2",
    "FOREBAY_PORT": "9003",
    "FOREBAY_NODES": "env-1,env-2",
    "FOREBAY_GRACE": "90s",
    "FOREBAY_DISK_RESERVE": "64MiB",
    "FOREBAY_MAX_DATABASE": "2GiB",
    "FOREBAY_CORE": "center",
    "FOREBAY_LOG_LEVEL": "error",
}


def test_run_has_defaults(told: Told) -> None:
    call("run", "edge.door", "--node", "house-1")
    assert told["run"] == ProcessConfig(
        node="house-1", data=Path("data"), nats="nats://127.0.0.1:8300", port=8100, host="127.0.0.1", grace=86400
    )
    assert told["level"] == "info"


def test_run_takes_the_file_before_the_defaults(told: Told) -> None:
    Path("forebay.toml").write_text(TOML)
    call("run", "edge.door")
    assert told["run"] == ProcessConfig(
        node="from-file",
        data=Path("file-data"),
        nats="nats://file-1:4222,nats://file-2:4222",
        port=9001,
        host="10.0.0.1",
        grace=7200,
    )
    assert told["level"] == "warning"


def test_run_takes_the_environment_before_the_file(told: Told) -> None:
    Path("forebay.toml").write_text(TOML)
    call("run", "edge.door", **VARIABLES)
    assert told["run"] == ProcessConfig(
        node="from-env",
        data=Path("env-data"),
        nats="nats://env:4222",
        port=9003,
        host="10.0.0.2",
        grace=90,
        disk=DiskConfig(reserve=64 * 1024**2),
        max_database=2 * 1024**3,
        core="center",
    )
    assert told["level"] == "error"


def test_run_takes_the_command_line_before_everything(told: Told) -> None:
    Path("forebay.toml").write_text(TOML)
    typed = "--node typed --data typed-data --nats nats://typed:4222 --host 10.0.0.3 --port 9004 --grace 5"
    typed += " --disk-reserve 0 --max-database 512MiB --core hub"
    call("run", "edge.door", *typed.split(), "--log-level", "DEBUG", **VARIABLES)
    assert told["run"] == ProcessConfig(
        node="typed",
        data=Path("typed-data"),
        nats="nats://typed:4222",
        port=9004,
        host="10.0.0.3",
        grace=5,
        disk=DiskConfig(reserve=0),
        max_database=512 * 1024**2,
        core="hub",
    )
    assert told["level"] == "debug"


def test_core_services_are_the_node_core_unless_told_otherwise(told: Told) -> None:
    Path("forebay.toml").write_text('[services]\ncore = ["core.audit"]\n')
    call("run", "core.audit")
    assert told["run"].node == "core"
    call("run", "core.audit", FOREBAY_NODE="core-2")
    assert told["run"].node == "core-2"


def test_up_has_defaults_and_takes_file_environment_and_command_line(told: Told) -> None:
    Path("forebay.toml").write_text(TOML.partition("[run]")[0])
    call("up")
    assert settings(told) == (Path("data"), 8100, ["store-330"], None)
    Path("forebay.toml").write_text(TOML)
    call("up")
    assert settings(told) == (Path("file-data"), 9002, ["file-1", "file-2"], "nats://file:4222")
    call("up", **VARIABLES)
    assert settings(told) == (Path("env-data"), 9003, ["env-1", "env-2"], "nats://env:4222")
    call("up", "--data", "d", "--port", "9004", "--nodes", "a, b", "--nats", "nats://typed", **VARIABLES)
    assert settings(told) == (Path("d"), 9004, ["a", "b"], "nats://typed")


def settings(told: Told) -> tuple[Path, int, list[str], str | None]:
    config: DemoConfig = told["up"]
    return config.data.relative_to(Path.cwd()), config.port, list(config.nodes), config.nats


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("90s", 90), ("1h30m", 5400), ("90", 90), ("0", 0), ("0.5", 0.5), ("7d", 604800)],
)
def test_grace_is_a_duration_or_a_number_of_seconds(told: Told, text: str, seconds: float) -> None:
    call("run", "edge.door", "--node", "a", "--grace", text)
    assert told["run"].grace == seconds


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("text", ["", "soon", "5x", "-1", "nan", "inf", "1 h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="duration"):
        call("run", "edge.door", "--node", "a", f"--grace={text}")


@pytest.mark.parametrize(
    "url", ["nats://a:4222", "tls://a", "a:4222", "nats://u:p@a:4222, nats://b", "nats://[::1]:4222"]
)
def test_broker_urls_are_accepted(told: Told, url: str) -> None:
    call("run", "edge.door", "--node", "a", "--nats", url)
    assert told["run"].nats.split(",") == [each.strip() for each in url.split(",")]


@pytest.mark.parametrize(
    "url", ["", ",", "http://a", "nats://", "nats://a:port", "nats://a:99999", "nats://u:secret@:1", "a b"]
)
def test_what_is_no_broker_url_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(click.BadParameter, match="nats://host:port") as caught:
        call("run", "edge.door", "--node", "a", f"--nats={url}")
    assert "secret" not in caught.value.message


def commands(group: click.Command, path: str = "forebay") -> list[tuple[str, click.Command]]:
    """All commands, by what is typed."""
    inner = group.commands.items() if isinstance(group, click.Group) else ()
    return [(path, group), *(each for name, command in inner for each in commands(command, f"{path} {name}"))]


@pytest.mark.parametrize(("path", "command"), commands(cli))
def test_every_command_and_option_says_what_it_is_in_a_sentence(path: str, command: click.Command) -> None:
    assert command.help, path
    assert command.help.partition("\n")[0].rstrip().endswith((".", ":")), command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{path} {option.name}"
            assert option.help.partition("  [")[0].endswith("."), f"{path} {option.name}: {option.help}"
            assert option.help[0].isupper()


def test_every_setting_of_run_and_up_has_its_variable() -> None:
    found = {
        str(option.envvar)
        for name in ("run", "up")
        for option in cli.commands[name].params
        if isinstance(option, click.Option)
    }
    assert found == {*VARIABLES, "FOREBAY_STORE"}


STORE = "postgresql://core:s3cret@db.example/core"


def test_a_store_is_for_core_services_and_an_edge_node_refuses_it(told: Told) -> None:
    Path("forebay.toml").write_text('[services]\nedge = ["edge.door"]\ncore = ["core.audit"]\n')
    call("run", "core.audit", FOREBAY_STORE=STORE)
    assert told["run"].store == STORE
    assert "s3cret" not in repr(told["run"])
    with pytest.raises(ConfigurationError, match="an edge node keeps its events in SQLite"):
        call("run", "edge.door", "--node", "house-1", FOREBAY_STORE=STORE)


def test_a_store_in_the_projects_file_is_its_core_services_alone(told: Told) -> None:
    Path("forebay.toml").write_text(
        f'[services]\nedge = ["edge.door"]\ncore = ["core.audit"]\n[run]\nstore = "{STORE}"\n'
    )
    call("run", "core.audit")
    assert told["run"].store == STORE
    call("run", "edge.door", "--node", "house-1")
    assert told["run"].store is None


def test_a_wrong_store_is_told_without_its_password(told: Told) -> None:
    with pytest.raises(click.BadParameter) as raised:
        call("run", "core.audit", "--store", "mysql://core:s3cret@db.example/core")
    assert "s3cret" not in str(raised.value)
    assert "mysql://core@db.example/core" in str(raised.value)
    assert "run" not in told
