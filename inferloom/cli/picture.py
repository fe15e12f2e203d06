"""Line charts as SVG text: enough for a curve over users or over the length of a context, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 120, 36, 44
_COLOURS = ("#2f6fb0", "#c2571a", "#3b8f4a", "#8a4fa3", "#a23b3b", "#6b6b6b", "#b08d1e", "#1e9a9a")


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over a common axis; `log_x` and `log_y` for axes that double."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False

    @staticmethod
    def stacked(charts: Sequence[Chart]) -> str:
        """One SVG with the charts below each other."""
        body = "".join(
            f'<g transform="translate(0 {i * HEIGHT})">{chart._drawn()}</g>' for i, chart in enumerate(charts)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT * len(charts)}" '
            f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
        )

    def svg(self) -> str:
        return Chart.stacked([self])

    def _drawn(self) -> str:
        xs = _Axis([x for line in self.lines for x in line.xs], _LEFT, WIDTH - _RIGHT, log=self.log_x)
        ys = _Axis([y for line in self.lines for y in line.ys], HEIGHT - _BOTTOM, _TOP, log=self.log_y)
        parts = [f'<text x="{_LEFT}" y="20" font-weight="bold">{escape(self.title)}</text>']
        for value in ys.ticks:
            y = ys.at(value)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
        for value in xs.ticks:
            x = xs.at(value)
            parts.append(f'<path d="M{x:.1f} {HEIGHT - _BOTTOM}v4" stroke="#555"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">{_short(value)}</text>'
            )
        parts.append(
            f'<path d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}" fill="none" stroke="#555"/>'
        )
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(self.x_label)}</text>'
            f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(self.y_label)}</text>'
        )
        for number, line in enumerate(self.lines):
            colour = _COLOURS[number % len(_COLOURS)]
            points = [(xs.at(x), ys.at(y)) for x, y in zip(line.xs, line.ys, strict=True)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
            legend = _TOP + 6 + 16 * number
            parts.append(
                f'<path d="M{WIDTH - _RIGHT + 8} {legend}h14" stroke="{colour}" stroke-width="2"/>'
                f'<text x="{WIDTH - _RIGHT + 26}" y="{legend + 4}">{escape(line.name)}</text>'
            )
        return "".join(parts)


class _Axis:
    """From values to pixels. A linear axis begins at zero; a logarithmic one has a tick for every value there is."""

    def __init__(self, values: Sequence[float], first: float, last: float, *, log: bool) -> None:
        self._first, self._last, self._log = first, last, log
        if log:
            self.ticks = sorted(set(values)) if len(set(values)) <= 10 else _powers(min(values), max(values))
            low, high = min(values), max(values)
        else:
            step = _step(max(values, default=1.0))
            high = math.ceil(max(values, default=1.0) / step) * step or 1.0
            self.ticks = [step * i for i in range(round(high / step) + 1)]
            low = 0.0
        self._low, self._high = self._scale(low), self._scale(high)

    def _scale(self, value: float) -> float:
        return math.log2(value) if self._log else value

    def at(self, value: float) -> float:
        span = self._high - self._low or 1.0
        return self._first + (self._last - self._first) * (self._scale(value) - self._low) / span


def _powers(low: float, high: float) -> list[float]:
    """Powers of four between two positive values."""
    first = math.ceil(math.log(low, 4))
    return [4.0**i for i in range(first, math.floor(math.log(high, 4)) + 1)] or [low, high]


def _step(high: float) -> float:
    """1, 2 or 5 times a power of ten, so that about five steps reach `high`."""
    if high <= 0:
        return 1.0
    rough = high / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.4g}"
