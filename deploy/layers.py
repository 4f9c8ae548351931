"""Print the layers of an image that buildah keeps, and their sizes: ``python3 deploy/layers.py IMAGE``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

MIB = 1024 * 1024


class Layer(NamedTuple):
    """A layer: its digest, its bytes before compression, and the instruction that made it."""

    digest: str
    size: int
    made_by: str


def layers_of(image: str) -> list[Layer]:
    """Return the layers of an image, the base image's first.

    Raises:
        subprocess.CalledProcessError: there is no such image.
    """
    with tempfile.TemporaryDirectory() as folder:
        push = [
            *os.environ.get("BUILDAH", "buildah").split(),
            "push",
            "--quiet",
            "--disable-compression",
            image,
            f"dir:{folder}",
        ]
        subprocess.run(push, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        config = json.loads((Path(folder) / manifest["config"]["digest"].partition(":")[2]).read_text())
    made = [each.get("created_by", "") for each in config["history"] if not each.get("empty_layer")]
    digests = config["rootfs"]["diff_ids"]
    sizes = [layer["size"] for layer in manifest["layers"]]
    return [Layer(*each) for each in zip(digests, sizes, made, strict=True)]


def main(image: str) -> None:
    """Print a table of the layers."""
    layers = layers_of(image)
    total = sum(layer.size for layer in layers) / MIB
    on_top = sum(layer.size for layer in layers[1:]) / MIB
    print(f"==> {image}: {total:.1f} MiB in {len(layers)} layers, {on_top:.1f} MiB on top of the first")  # noqa: T201
    for layer in layers:
        made_by = " ".join(layer.made_by.removeprefix("/bin/sh -c #(nop) ").removeprefix("/bin/sh -c ").split())
        print(f"    {layer.size / MIB:8.1f} MiB  {made_by[:90]}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
