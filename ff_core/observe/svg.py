"""Just enough SVG for the report: shapes, text, axes. Colours may be CSS variables, to suit light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


class Svg:
    """A picture of width x height user units that scales to the page. `label` is what a screen reader says."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, title: str = "", radius: float = 0
    ) -> None:
        """title: shown when the pointer rests on it."""
        self._shape(
            f'rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" rx="{radius:g}" '
            f'style="{escape(style)}"',
            title,
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str, title: str = "") -> None:
        self._shape(f'line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{escape(style)}"', title)

    def polyline(self, points: Sequence[tuple[float, float]], style: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline points="{path}" style="fill:none;{escape(style)}"/>')

    def cross(self, x: float, y: float, size: float, style: str, title: str = "") -> None:
        self._shape(
            f'path d="M{x - size:.1f} {y - size:.1f}L{x + size:.1f} {y + size:.1f}M{x - size:.1f} {y + size:.1f}'
            f'L{x + size:.1f} {y - size:.1f}" style="fill:none;{escape(style)}"',
            title,
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", style: str = "") -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{escape(style)}">{escape(text)}</text>'
        )

    def _shape(self, tag: str, title: str) -> None:
        name = tag.split(" ", 1)[0]
        self._parts.append(f"<{tag}><title>{escape(title)}</title></{name}>" if title else f"<{tag}/>")

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.label)}">'
            + "".join(self._parts)
            + "</svg>"
        )


class Scale:
    """Maps data [low, high] linearly to user units [start, stop]. An empty range is widened."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        if not high > low:
            low, high = low - 0.5, low + 0.5
        self.low, self.high, self.start, self.stop = low, high, start, stop

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Round values (1, 2 or 5 times a power of ten apart) within the range, about `count` of them."""
        raw = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[float, float]], most: int = 1200) -> list[tuple[float, float]]:
    """At most about `most` points that keep each stretch's extremes, so that spikes stay visible."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float]] = []
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept
