"""What a column raises instead of figures."""

from __future__ import annotations


class LeftOutError(Exception):
    """A column cannot be measured here: a program or a package that it needs is not to be had. Says which."""


class EffectsError(Exception):
    """An event was lost, or took effect twice: what was measured is not worth a figure."""
