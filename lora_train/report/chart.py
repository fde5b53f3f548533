"""The curves of a training as one SVG with its scales, for a page that has no script and no style but its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_train.core.curve_table import CurveRow
from lora_train.core.curves import ValidationPoint, turning_point
from lora_train.core.smoothing import smoothed

_WIDTH, _HEIGHT = 900.0, 320.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 12.0, 34.0
_SMOOTHING = 0.9
_MOST_POINTS = 1200
_TICKS = 5


def chart_svg(rows: Sequence[CurveRow]) -> str:
    """Loss faint, smoothed loss bold, validation loss with dots and where it turned, the base model's as a level; ""
    without any loss.
    """
    losses = thinned([(row.step, row.loss) for row in rows if row.loss is not None])
    validations = [(row.step, row.validation_loss) for row in rows if row.validation_loss is not None]
    levels = [(row.step, row.base_loss) for row in rows if row.base_loss is not None]
    if not losses:
        return ""
    smooth = list(zip((step for step, _ in losses), smoothed([loss for _, loss in losses], _SMOOTHING), strict=True))
    low, high = _scale([loss for _, loss in losses], [*smooth, *validations, *levels])
    last = max(step for step, _ in (*losses, *validations))
    first = min(step for step, _ in (*losses, *validations))
    place = _Places(first, last, low, high)
    turn = turned_at(rows)
    mark = "" if turn is None else place.mark(turn.step)
    return (
        f'<svg role="img" aria-label="Loss over the steps" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}">'
        f"{_axes(place)}{place.line('raw', losses)}{place.line('smooth', smooth)}"
        f"{place.line('base', levels)}{mark}{place.line('validation', validations)}{place.dots(validations)}</svg>"
    )


def turned_at(rows: Sequence[CurveRow]) -> ValidationPoint | None:
    """Where over-training begins (see `core.curves.turning_point`); None as long as it doesn't."""
    return turning_point(
        [
            ValidationPoint(row.step, row.validation_loss, row.base_loss or 0.0)
            for row in rows
            if row.validation_loss is not None
        ]
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many points as a screen can show: each the mean of neighbours, at the step of their last."""
    size = -(-len(points) // _MOST_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


class _Places:
    """Where steps and losses lie in the picture."""

    def __init__(self, first: int, last: int, low: float, high: float) -> None:
        self.first, self.last, self.low, self.high = first, last, low, high

    def x(self, step: float) -> float:
        return _LEFT + (step - self.first) / ((self.last - self.first) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, loss: float) -> float:
        share = min(max((loss - self.low) / (self.high - self.low), 0.0), 1.0)
        return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)

    def line(self, kind: str, points: Sequence[tuple[int, float]]) -> str:
        if not points:
            return ""
        placed = [f"{self.x(step):.1f},{self.y(loss):.1f}" for step, loss in points]
        if kind == "base":  # a level: over the whole width
            y = self.y(points[-1][1])
            placed = [f"{_LEFT:.1f},{y:.1f}", f"{_WIDTH - _RIGHT:.1f},{y:.1f}"]
        elif len(placed) == 1:
            placed *= 2  # a line of no length is drawn as a dot
        return f'<polyline class="{kind}" points="{" ".join(placed)}"/>'

    def mark(self, step: int) -> str:
        x = self.x(step)
        return f'<line class="turn" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'

    def dots(self, points: Sequence[tuple[int, float]]) -> str:
        return "".join(
            f'<circle class="dot" cx="{self.x(step):.1f}" cy="{self.y(loss):.1f}" r="3">'
            f"<title>Step {step}: {loss:.4g}</title></circle>"
            for step, loss in points
        )


def _axes(place: _Places) -> str:
    parts: list[str] = []
    for number in range(_TICKS):
        loss = place.low + (place.high - place.low) * number / (_TICKS - 1)
        y = place.y(loss)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
    steps = sorted({round(place.first + (place.last - place.first) * n / (_TICKS - 1)) for n in range(_TICKS)})
    for step in steps:
        anchor = "end" if step == place.last else "middle"
        parts.append(f'<text x="{place.x(step):.1f}" y="{_HEIGHT - 12}" text-anchor="{anchor}">{step}</text>')
    return "".join(parts)


def _scale(losses: Sequence[float], others: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """From the lowest to the highest, without the few outliers of single steps that would flatten the rest."""
    ordered = sorted(losses)
    outliers = len(ordered) // 50
    numbers = [ordered[outliers], ordered[-1 - outliers], *(loss for _, loss in others)]
    low, high = min(numbers), max(numbers)
    if math.isclose(low, high):
        return low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9
    return low, high
