"""What the images are: their contents, sizes, settings, and how they are built."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

from deploy.layers import MIB, layers_of
from forebay.testing.nats_server import NatsServer
from tests.image.conftest import ROOT, Built, build
from tests.image.container import Container, Image, buildah, started

MOST_ON_TOP = 40.0
"""MiB that the edge image may add to Python."""

MOST_RESIDENT = 60.0
"""MiB of memory that an idle edge node may take."""

ON_A_NODE = ["edge.till", "edge.gateway", "edge.coldchain", "edge.stock", "nats"]
NOT_ON_A_NODE = ["psycopg", "polyfactory", "faker", "pip", "setuptools", "uv", "rich", "httpx", "core"]


def modules(image: Image, names: list[str]) -> list[str]:
    """Those of the modules that the image's Python finds."""
    program = f"import importlib.util as u, json; print(json.dumps([n for n in {names!r} if u.find_spec(n)]))"
    found: list[str] = json.loads(inside(image, "python", "-c", program))
    return found


def inside(image: Image, *command: str) -> str:
    """Run a command on the image's files, as its user."""
    user, group = image.user
    enter = ["chroot", f"--userspec={user}:{group}", "--groups=", str(image.root)]
    environment = [f"{name}={value}" for name, value in image.environment.items()]
    done = subprocess.run(
        [*enter, "env", "-i", "--chdir=/app", *environment, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_a_node_carries_nothing_that_it_never_needs(edge: Image) -> None:
    assert modules(edge, [*NOT_ON_A_NODE, *ON_A_NODE]) == ON_A_NODE
    for tool in ("gcc", "cc", "make", "uv", "pip", "pip3", "git"):
        assert inside(edge, "sh", "-c", f"command -v {tool} || true") == "", tool
    packages = {folder.name for folder in edge.root.glob("app/.venv/lib/python3*/site-packages/*")}
    assert not {name for name in packages if name.lower().startswith(("pyyaml", "_yaml", "faker", "pip-"))}


def test_the_core_has_what_apply_needs_and_no_service_of_the_edge(core: Image) -> None:
    there = ["yaml._yaml", "psycopg", "core.archive", "core.coldwatch", "core.orders", "core.sales"]
    assert modules(core, [*there, "edge", "polyfactory", "faker", "pip"]) == there
    assert (core.root / "app/jetstream-config/streams/events.yaml").is_file()


@pytest.mark.parametrize("name", ["edge", "core"])
def test_everything_is_compiled_and_belongs_to_root(name: str, request: pytest.FixtureRequest) -> None:
    """A read-only root cannot keep bytecode: what is not compiled would be compiled at each start."""
    app = request.getfixturevalue(name).root / "app"
    sources = [path for path in app.rglob("*.py") if "/bin/" not in str(path)]
    assert len(sources) > 300
    assert [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))] == []
    own = [path for path in app.rglob("*") if not path.is_symlink()]
    assert [path for path in own if path.stat().st_uid != 0 or path.stat().st_mode & 0o022] == []


@pytest.mark.parametrize(("name", "port"), [("edge", "8100"), ("core", "8200")])
def test_the_image_says_how_it_is_run(name: str, port: str, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(name).config
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {"/data": {}}
    assert config["ExposedPorts"].keys() == {f"{port}/tcp"}
    assert config["Entrypoint"] == ["forebay"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "forebay.cli.health"]
    labels = config["Labels"]
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert labels["org.opencontainers.image.version"] == version[1]
    assert labels["org.opencontainers.image.title"] == f"forebay {name}"
    for label in ("description", "licenses", "revision"):
        assert labels[f"org.opencontainers.image.{label}"]


async def test_size_and_memory_keep_their_bounds_and_are_as_documented(
    edge: Image, core: Image, nats_server: NatsServer, tmp_path: Path
) -> None:
    nats = {"FOREBAY_NATS": nats_server.url}
    measured = {}
    for image in (edge, core):
        name = image.config["Labels"]["org.opencontainers.image.title"].split()[-1]
        measured[f"{name} size"] = sum(layer.size for layer in layers_of(image.name)[1:]) / MIB
    with started(core, core.volume(tmp_path / "apply"), "apply", settings=nats) as once:
        assert once.wait() == 0
    with (
        started(edge, edge.volume(tmp_path / "1"), settings={**nats, "FOREBAY_NODE": "store-1"}) as node,
        started(core, core.volume(tmp_path / "core"), settings=nats) as center,
    ):
        await node.answers("/readyz")
        await center.answers("/readyz")
        measured["edge idle"], measured["core idle"] = node.resident, center.resident
        for number in range(200):
            assert sell(node, number).status_code == 201
        await node.answers("/metrics")
        await center.answers("/metrics")
        measured["edge busy"], measured["core busy"] = node.resident, center.resident
        node.stop()
        center.stop()
    print(measured)
    assert measured["edge size"] <= MOST_ON_TOP
    assert measured["edge idle"] <= MOST_RESIDENT
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for service, what in (("store-330", "edge busy"), ("store-343", "edge busy"), ("core", "core busy")):
        assert int(services[service]["mem_limit"].removesuffix("m")) >= 1.25 * measured[what], service
    assert differing(measured) == {}


def sell(node: Container, number: int) -> httpx.Response:
    line = {"product": 1, "quantity": 1, "cents": 50}
    sale = {"basket": f"b{number}", "household": 1, "at": "2017-01-01T11:53:26Z", "lines": [line]}
    return httpx.post(f"{node.url}/till/sales", json=sale, timeout=10)


def differing(measured: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What docs/deploy.md says otherwise than it is: by more than a tenth, or not at all."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    rows = re.findall(r"^\| (edge|core) \| ([\d.]+) MiB \| ([\d.]+) MiB \| ([\d.]+) MiB \|", text, re.MULTILINE)
    documented = {
        f"{name} {what}": float(value)
        for name, *values in rows
        for what, value in zip(("size", "idle", "busy"), values, strict=True)
    }
    return {
        name: (value, documented.get(name, 0.0))
        for name, value in measured.items()
        if abs(value - documented.get(name, 0.0)) > value / 10
    }


def test_a_second_build_uses_the_cache_and_a_changed_service_installs_no_package(tmp_path: Path) -> None:
    """A step from the cache leaves the same image; what uv installs anew it says."""
    source = tmp_path / "source"
    for folder in ("deploy", "src", "contracts", "edge", "core", "jetstream-config"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("Dockerfile", ".dockerignore", "pyproject.toml", "uv.lock", "README.md", "LICENSE", "forebay.toml"):
        shutil.copy2(ROOT / file, source / file)
    for folder in ("edge", "core", "src/forebay"):
        (source / folder / "fresh.py").write_text(f"BUILT = {time.time_ns()}\n")
        (source / folder / "fresh.py").chmod(0o660)

    said, first = built_from(source)
    assert "Installed 1 package" in said, "the engine is new"
    said, second = built_from(source)
    assert "Installed" not in said
    assert second == first

    (source / "edge" / "fresh.py").write_text(f"CHANGED = {time.time_ns()}\n")
    said, third = built_from(source)
    assert "Installed" not in said
    assert third["edge"] != second["edge"]
    assert third["core"] == second["core"]

    edge = Image("localhost/forebay-again-edge:test")
    mode = (edge.root / "app/edge/fresh.py").stat().st_mode & 0o777
    edge.remove()
    assert mode == 0o644, "whatever the checkout's umask was"
    for target in third:
        buildah("rmi", "--force", f"localhost/forebay-again-{target}:test")


def built_from(source: Path) -> tuple[str, dict[str, str]]:
    """Build both images from a folder; what was said, and their ids."""
    said = build(source, "forebay-again")
    name = "localhost/forebay-again-{}:test"
    ids = {
        target: str(json.loads(buildah("inspect", "--type", "image", name.format(target)))["FromImageID"])
        for target in ("edge", "core")
    }
    return said, ids


def test_the_build_says_which_way_it_went_and_what_came_out(built: Built) -> None:
    assert "building with buildah" in built.output
    assert "uv-working-container" not in buildah("containers", "--all"), "the build leaves nothing behind but images"
    for name in (built.edge, built.core):
        assert re.search(rf"^==> {re.escape(name)}: [\d.]+ MiB in \d+ layers", built.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([], "there is neither a Docker engine nor buildah; on Debian: apt-get install buildah debootstrap"),
        (["buildah"], "python3 is missing; on Debian: apt-get install python3 python3-venv"),
        (["buildah", "python3"], "debootstrap is missing; on Debian: apt-get install debootstrap"),
    ],
    ids=["nothing", "no python", "no debootstrap"],
)
def test_a_machine_that_cannot_build_is_told_in_one_line_what_to_install(
    tools: list[str], said: str, tmp_path: Path
) -> None:
    for tool in ["bash", "dirname", "env", "git", "grep", "head", "mktemp", "rm", "sed", *tools]:
        found = shutil.which(tool)
        assert found, tool
        (tmp_path / tool).symlink_to(found)
    done = subprocess.run(
        [str(ROOT / "deploy" / "build-images")],
        env={"PATH": str(tmp_path), "BUILDAH": os.environ["BUILDAH"], "DEBIAN_SUITE": "none-that-was-built"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (1, f"make image: {said}")
