"""The images, built once for all tests of this folder: by ``make test-image`` or ``pytest -m image``, never unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.image.container import Image

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TOOLS = {"buildah": "buildah", "debootstrap": "debootstrap", "unshare": "util-linux", "nsenter": "util-linux"}
PREFIX = "forebay-test"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.image)
        item.add_marker(pytest.mark.timeout(600))
    if "image" not in config.getoption("markexpr"):
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    """What the tests need of the machine; where it is missing they fail, all at once, and say how to get it."""
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        pytest.exit(f"the image tests need {', '.join(missing)}; on Debian: apt-get install {' '.join(missing)}", 1)
    if os.geteuid() != 0:
        pytest.exit("the image tests start containers without an engine and need root; run them as root", 1)
    usable = subprocess.run(["buildah", "info"], capture_output=True, timeout=60, check=False).returncode == 0
    os.environ.setdefault("BUILDAH", "buildah" if usable else "buildah --storage-driver vfs")


def build(source: Path, prefix: str = PREFIX) -> str:
    """Build both images as ``make image`` does, and return what was printed."""
    done = subprocess.run(
        [str(source / "deploy" / "build-images")],
        env={**os.environ, "ENGINE": "buildah", "PREFIX": prefix, "TAG": "test"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


class Built(NamedTuple):
    """The names of the images, and what their build printed."""

    edge: str
    core: str
    output: str


@pytest.fixture(scope="session")
def built() -> Built:
    """The images of this tree."""
    output = build(ROOT)
    return Built(f"localhost/{PREFIX}-edge:test", f"localhost/{PREFIX}-core:test", output)


@pytest.fixture(scope="session")
def edge(built: Built) -> Iterator[Image]:
    """The image `edge`."""
    image = Image(built.edge)
    yield image
    image.remove()


@pytest.fixture(scope="session")
def core(built: Built) -> Iterator[Image]:
    """The image `core`."""
    image = Image(built.core)
    yield image
    image.remove()
