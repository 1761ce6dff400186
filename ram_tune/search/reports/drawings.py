"""Curves and intervals as SVG that stands in a page: no script, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from ram_tune.search.statistics import Interval

# Okabe and Ito's colours that show on white, told apart with any colour vision; from the eighth on they come again, dashed.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"
DASHES = "", "6 4", "2 3"
WIDTH = 940  # units of a drawing; as wide as the page


@dataclass(frozen=True)
class Curve:
    """One arm's metric by epoch."""

    name: str
    epochs: Sequence[float]
    middle: Sequence[float]  # mean over seeds
    low: Sequence[float]  # the lowest seed
    high: Sequence[float]


@dataclass(frozen=True)
class Apart:
    """One arm's difference to the reference."""

    name: str
    seeds: Interval | None  # with or without ends
    images: Interval | None


def curve(
    name: str, histories: Sequence[Sequence[Mapping[str, float]]], metric: str, scale: float = 100
) -> Curve | None:
    """Of one arm's runs, over the epochs that any has; None where none has the metric."""
    values: dict[float, list[float]] = {}
    for history in histories:
        for epoch in history:
            if math.isfinite(epoch.get(metric, math.nan)):
                values.setdefault(epoch["epoch"], []).append(scale * epoch[metric])
    if not values:
        return None
    epochs = sorted(values)
    means = [math.fsum(values[epoch]) / len(values[epoch]) for epoch in epochs]
    return Curve(name, epochs, means, [min(values[one]) for one in epochs], [max(values[one]) for one in epochs])


def curves(found: Sequence[Curve], label: str, height: int = 420) -> str:
    """Lines with a band from the lowest seed to the highest, their names at their ends."""
    left, right, top, bottom = 46, 150, 14, 40
    x = _Scale([value for one in found for value in one.epochs], left, WIDTH - right)
    y = _Scale([value for one in found for value in (*one.low, *one.high)], height - bottom, top)
    parts = [_grid(x, y, left, WIDTH - right, top, height - bottom)]
    for number, one in enumerate(found):
        colour, _ = _style(number)
        if one.low != one.high:
            there = [(x(epoch), y(value)) for epoch, value in zip(one.epochs, one.high, strict=True)]
            back = [(x(epoch), y(value)) for epoch, value in zip(one.epochs, one.low, strict=True)][::-1]
            parts.append(f'<polygon points="{_points([*there, *back])}" fill="{colour}" fill-opacity="0.10"/>')
    for number, one in enumerate(found):
        colour, dash = _style(number)
        line = [(x(epoch), y(value)) for epoch, value in zip(one.epochs, one.middle, strict=True)]
        parts.append(
            f'<polyline points="{_points(line)}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"'
            f"{dash}><title>{escape(one.name)}</title></polyline>"
        )
        if len(line) == 1:
            parts.append(f'<circle cx="{line[0][0]:.1f}" cy="{line[0][1]:.1f}" r="3" fill="{colour}"/>')
    ends = _spread_out([y(one.middle[-1]) for one in found], 16, height - bottom)
    for number, (one, at) in enumerate(zip(found, ends, strict=True)):
        colour, dash = _style(number)
        end = x(one.epochs[-1]), y(one.middle[-1])
        parts.append(
            f'<path d="M{end[0] + 3:.1f} {end[1]:.1f} L{WIDTH - right + 14} {at:.1f}" stroke="{colour}" stroke-opacity="0.5" '
            f'fill="none"/><text x="{WIDTH - right + 18}" y="{at + 4:.1f}" style="fill:{colour};font-weight:600">'
            f"{escape(_short(one.name))} <tspan style='font-weight:400'>{one.middle[-1]:.1f}</tspan></text>"
        )
    parts.append(
        f'<text x="{(left + WIDTH - right) / 2}" y="{height - 6}" text-anchor="middle" class="axis">epoch</text>'
    )
    return _svg(parts, height, label)


def forest(found: Sequence[Apart], label: str) -> str:
    """A row for each arm: its difference to the reference with the interval over images (broad) and over seeds (thin)."""
    row, left, right, top, bottom = 34, 150, 150, 10, 44
    height = top + row * len(found) + bottom
    ends = [
        value
        for one in found
        for interval in (one.seeds, one.images)
        if interval
        for value in (interval.mean, interval.low, interval.high)
    ]
    x = _Scale([0.0, *filter(math.isfinite, ends)], left, WIDTH - right)
    parts = []
    for tick in x.ticks():
        strong = ' stroke="#555"' if tick == 0 else ' stroke="#e4e4e4"'
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - bottom}"{strong}/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - bottom + 16}" text-anchor="middle">{_signed(tick)}</text>')
    for number, one in enumerate(found):
        at = top + row * (number + 0.5)
        parts.append(
            f'<text x="{left - 12}" y="{at + 4:.1f}" text-anchor="end" class="name">{escape(_short(one.name))}</text>'
        )
        if one.images and one.images.known:
            low, high = x(one.images.low), x(one.images.high)
            parts.append(
                f'<rect x="{low:.1f}" y="{at - 6:.1f}" width="{high - low:.1f}" height="12" rx="2" fill="#9ecae9"/>'
            )
        if one.seeds and one.seeds.known:
            parts.append(
                f'<line x1="{x(one.seeds.low):.1f}" x2="{x(one.seeds.high):.1f}" y1="{at:.1f}" y2="{at:.1f}" '
                'stroke="#12395b" stroke-width="2"/>'
            )
        middle = one.seeds or one.images
        if middle:
            parts.append(f'<circle cx="{x(middle.mean):.1f}" cy="{at:.1f}" r="4.5" fill="#12395b"/>')
            parts.append(f'<text x="{WIDTH - right + 16}" y="{at + 4:.1f}">{_signed(middle.mean)}</text>')
    parts.append(
        f'<text x="{(left + WIDTH - right) / 2}" y="{height - 6}" text-anchor="middle" class="axis">points</text>'
    )
    return _svg(parts, height, label)


class _Scale:
    """Values → units of the drawing, with a little room at either end."""

    def __init__(self, values: Sequence[float], start: float, end: float):
        low, high = min(values), max(values)
        room = 0.03 * (high - low) or 1.0
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 6) -> list[float]:
        """Round values, about so many."""
        raw = (self.high - self.low) / about
        power = 10 ** math.floor(math.log10(raw))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
        first = math.ceil(self.low / step)
        return [round(number * step, 10) for number in range(first, math.floor(self.high / step) + 1)]


def _grid(x: _Scale, y: _Scale, left: float, right: float, top: float, bottom: float) -> str:
    lines = []
    for tick in y.ticks():
        lines.append(f'<line x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e4e4e4"/>')
        lines.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x.ticks(12):
        if tick == round(tick):
            lines.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    return "".join(lines)


def _spread_out(places: Sequence[float], room: float, high: float) -> list[float]:
    """The places, moved so that no two are nearer than `room`, in their order and none beyond `high`."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + room)
    moved[order[-1]] = min(moved[order[-1]], high)
    for after, before in pairwise(order[::-1]):
        moved[before] = min(moved[before], moved[after] - room)
    return moved


def _style(number: int) -> tuple[str, str]:
    """Colour and dashes of the line of that number."""
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return COLOURS[number % len(COLOURS)], f' stroke-dasharray="{dash}"' if dash else ""


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _short(name: str, letters: int = 18) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−") if value else "0"


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
