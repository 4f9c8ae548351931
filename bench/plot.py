"""Bars with whiskers as SVG, one for each column: the median, and from the least to the most."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from bench.spread import Spread

WIDTH, LABEL, VALUE, BAR, STEP, TOP = 760, 250, 120, 16, 26, 34
"""Pixels: of the picture, for names, for values, of a bar, from bar to bar, and above the first."""

OURS, OTHERS, INK = "#2f6f9f", "#b9b4a7", "#57606a"
"""Colours that are seen on white and on black."""


def bars(title: str, unit: str, columns: Mapping[str, Spread], ours: str = "forebay") -> str:
    """Return a picture of one measure; columns whose name begins with ``ours`` stand out.

    Raises:
        ValueError: there are no columns.
    """
    if not columns:
        raise ValueError("nothing to draw")
    largest = max(each.most for each in columns.values()) or 1.0
    room = WIDTH - LABEL - VALUE
    height = TOP + STEP * len(columns) + 6
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f'<g role="img" font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<text x="0" y="16" font-weight="bold">{escape(title)} ({escape(unit)})</text>',
    ]
    for at, (name, each) in enumerate(columns.items()):
        y = TOP + STEP * at
        middle = y + BAR / 2
        left, right, end = (LABEL + room * value / largest for value in (each.least, each.most, each.median))
        colour = OURS if name.startswith(ours) else OTHERS
        lines += [
            f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{end - LABEL:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<path d="M{left:.1f} {middle}H{right:.1f}M{left:.1f} {y + 4}v8M{right:.1f} {y + 4}v8" stroke="{INK}"/>',
            f'<text x="{right + 8:.1f}" y="{middle + 4}">{number(each.median)}</text>',
        ]
    return "\n".join([*lines, "</g>", "</svg>"]) + "\n"


def number(value: float) -> str:
    """Return a figure with as many digits as mean something: three, and never less than the whole number."""
    if value and abs(value) < 100:
        digits = 2 if abs(value) < 10 else 1
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}"
