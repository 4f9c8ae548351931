"""compose.yaml and the systemd unit, as far as they can be checked without their engines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from forebay.testing.nats_server import find_binary
from tests.faults.fleet import until
from tests.image.conftest import ROOT

UNIT = ROOT / "deploy" / "forebay-edge.service"

CHECK_JSONSCHEMA = "check-jsonschema@0.39.0"
"""From PyPI; the compose schema is in it, so that a check needs no other host."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def test_compose_is_valid_by_its_schema() -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    check = [uv, "tool", "run", CHECK_JSONSCHEMA, "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_has_limits_a_restart_policy_and_a_read_only_root(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert {"mem_limit", "restart", "stop_grace_period"} <= service.keys(), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
    assert {name for name, service in compose["services"].items() if "depends_on" in service} == {
        "apply",
        "register",
        "core",
    }


def test_compose_and_the_docs_name_the_images_that_this_release_builds() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert set(re.findall(r"FOREBAY_VERSION:-([^}]+)", (ROOT / "compose.yaml").read_text())) == {version[1]}
    assert set(re.findall(r"forebay-(?:edge|core):(\S+)", (ROOT / "docs" / "deploy.md").read_text())) == {version[1]}


async def test_the_broker_of_compose_starts_with_the_configuration_of_this_project(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    assert (compose["services"]["nats"]["working_dir"], "nats:/data") == (
        "/",
        compose["services"]["nats"]["volumes"][1],
    )
    here = {
        "/etc/forebay/dev.conf": str(ROOT / "jetstream-config/servers/dev.conf"),
        "0.0.0.0": "127.0.0.1",
        "4222": "-1",  # any port that is free
        "8222": "-1",
    }
    command = [here.get(word, word) for word in compose["services"]["nats"]["command"]]
    log = tmp_path / "log"
    with log.open("wb") as output:
        server = await anyio.open_process([str(find_binary()), *command], cwd=tmp_path, stdout=output, stderr=output)
    try:
        await until(lambda: "Server is ready" in log.read_text(), limit=10, what=lambda: log.read_text())
        port = re.search(r"client connections on 127\.0\.0\.1:(\d+)", log.read_text())
        assert port
        nats = f"nats://127.0.0.1:{port[1]}"
        apply = await anyio.run_process(
            [sys.executable, "-m", "forebay", "apply", "--nats", nats], cwd=ROOT, check=False
        )
        assert apply.returncode == 0, apply.stderr
        assert (tmp_path / "data/nats/jetstream").is_dir()
        assert re.search(r"http monitor on 127\.0\.0\.1:\d+", log.read_text())
    finally:
        if server.returncode is None:
            server.kill()
        await server.aclose()


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there."""
    program = tmp_path / "forebay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/forebay/.venv/bin/forebay", str(program)))
    return copy


def test_the_unit_is_one_that_systemd_understands(unit: Path) -> None:
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_the_unit_is_hardened(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=20", str(unit))
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze: the unit was NOT checked; on Debian: apt-get install systemd")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)
