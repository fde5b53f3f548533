"""The curve of a training as SVG: the loss of single steps faint, its smoothed course bold, the learning rate thin."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_train.app.snapshot import CurvePoint
from lora_train.core.smoothing import smoothed
from lora_train.ui.html import value, words

SMOOTHINGS = (0.0, 0.6, 0.9, 0.98)
SMOOTHING = 0.9
"""Where nobody chose."""

_WIDTH, _HEIGHT = 1000.0, 240.0
_MARGIN = 0.06
"""Of the height, above and below the curves."""


def chart_html(curve: Sequence[CurvePoint], smoothing: float) -> str:
    """The whole figure with its scales, legend and choice of smoothing; a sentence where there is no point yet."""
    points = [point for point in curve if math.isfinite(point.loss) and math.isfinite(point.lr)]
    if not points:
        return f'<p class="train-tools-line train-tools-quiet">{words("The curve appears after the first steps.")}</p>'
    steps = [float(point.step) for point in points]
    losses = [point.loss for point in points]
    smooth = smoothed(losses, smoothing)
    rates = [point.lr for point in points]
    low, high = _loss_scale(losses, smooth)
    top_rate = max(rates) or 1.0
    lines = (
        _line("rate", steps, rates, 0.0, top_rate)
        + _line("raw", steps, losses, low, high)
        + _line("smooth", steps, smooth, low, high)
    )
    said = f"{losses[-1]:.4g}; {smooth[-1]:.4g}; {rates[-1]:.3g}"
    return (
        f'<figure class="train-tools-chart">{_legend(smoothing)}<div class="train-tools-plot">'
        f'<div class="train-tools-scale">{value(f"{high:.3g}")}{value(f"{low:.3g}")}</div>'
        f'<svg role="img" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none">'
        f"<title>Loss and learning rate over the steps</title>"
        f'<desc class="train-tools-value">{said}</desc>{_grid()}{lines}</svg>'
        f'<div class="train-tools-scale train-tools-rate">{value(f"{top_rate:.3g}")}{value("0")}</div>'
        f'<div class="train-tools-steps">{value(f"{steps[0]:.0f}")}{words("Steps")}{value(f"{steps[-1]:.0f}")}</div>'
        "</div></figure>"
    )


def _loss_scale(losses: Sequence[float], smooth: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest loss, without the few outliers that would flatten the rest."""
    ordered = sorted(losses)
    outliers = len(ordered) // 50
    low = min(ordered[outliers], *smooth)
    high = max(ordered[len(ordered) - 1 - outliers], *smooth)
    return (low, high) if high > low else (low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9)


def _line(kind: str, steps: Sequence[float], numbers: Sequence[float], low: float, high: float) -> str:
    first, span = steps[0], (steps[-1] - steps[0]) or 1.0
    room = _HEIGHT * (1 - 2 * _MARGIN)
    points: list[str] = []
    for step, number in zip(steps, numbers, strict=True):
        share = min(max((number - low) / (high - low), 0.0), 1.0)
        points.append(f"{(step - first) / span * _WIDTH:.1f},{_HEIGHT * _MARGIN + (1 - share) * room:.1f}")
    if len(points) == 1:
        points *= 2  # a line of no length is drawn as a dot
    return f'<polyline class="train-tools-{kind}" points="{" ".join(points)}"/>'


def _grid() -> str:
    heights = (_HEIGHT * _MARGIN, _HEIGHT / 2, _HEIGHT * (1 - _MARGIN))
    lines = (f'<line x1="0" x2="{_WIDTH:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in heights)
    return f'<g class="train-tools-grid">{"".join(lines)}</g>'


def _legend(smoothing: float) -> str:
    options = "".join(
        f'<option class="train-tools-value" value="{choice:g}"{" selected" if choice == smoothing else ""}>'
        f"{choice:g}</option>"
        for choice in SMOOTHINGS
    )
    return (
        '<figcaption class="train-tools-legend">'
        f'<span class="train-tools-key train-tools-raw">{words("Loss")}</span>'
        f'<span class="train-tools-key train-tools-smooth">{words("Smoothed loss")}</span>'
        f'<span class="train-tools-key train-tools-rate">{words("Learning rate")}</span>'
        f'<label class="train-tools-smoothing">{words("Smoothing")}'
        f'<select data-param="smoothing" data-key="smoothing">{options}</select></label></figcaption>'
    )
