"""Sizes on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forebay.errors import ConfigurationError
from forebay.lanes import parse_size

if TYPE_CHECKING:
    IntType = click.ParamType[int]
else:  # click before 8.5 has no generic one
    IntType = click.ParamType


class Size(IntType):
    """Bytes, from a number of them or from a text such as ``64MiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        try:
            size = parse_size(value, "the size")
        except ConfigurationError:
            size = -1
        if size < 0:
            self.fail(f'{value!r} is not a size; write bytes, or for example "64MiB"', param, ctx)
        return size
