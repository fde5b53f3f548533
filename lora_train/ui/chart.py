"""The curve of a training as SVG: the loss of single steps faint, its smoothed course bold, the learning rate thin,
the loss on held-out pictures with dots, and that of the base model as a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_train.app.snapshot import CurvePoint, Validation
from lora_train.core.curves import ValidationPoint, turning_point
from lora_train.core.smoothing import smoothed
from lora_train.ui.html import value, words

Scale = tuple[float, float]
"""The lowest and the highest value of an axis."""

SMOOTHINGS = (0.0, 0.6, 0.9, 0.98)
SMOOTHING = 0.9
"""Where nobody chose."""

_WIDTH, _HEIGHT = 1000.0, 240.0
_MARGIN = 0.06
"""Of the height, above and below the curves."""


def chart_html(curve: Sequence[CurvePoint], smoothing: float, validations: Sequence[Validation] = ()) -> str:
    """The whole figure with its scales, legend and choice of smoothing; a sentence where there is no point yet."""
    points = [point for point in curve if math.isfinite(point.loss) and math.isfinite(point.lr)]
    if not points:
        return f'<p class="train-tools-line train-tools-quiet">{words("The curve appears after the first steps.")}</p>'
    steps = [float(point.step) for point in points]
    losses = [point.loss for point in points]
    smooth = smoothed(losses, smoothing)
    rates = [point.lr for point in points]
    measured = [number for each in validations for number in (each.loss, each.base_loss)]
    low, high = _loss_scale(losses, [*smooth, *measured])
    top_rate = max(rates) or 1.0
    all_steps = [*steps, *(float(each.step) for each in validations)]
    span = (min(all_steps), max(all_steps))
    lines = (
        _line("rate", steps, rates, (0.0, top_rate), span)
        + _line("raw", steps, losses, (low, high), span)
        + _line("smooth", steps, smooth, (low, high), span)
        + _validation_lines(validations, (low, high), span)
    )
    said = f"{losses[-1]:.4g}; {smooth[-1]:.4g}; {rates[-1]:.3g}"
    return (
        f'<figure class="train-tools-chart">{_legend(smoothing, is_validated=bool(validations))}'
        '<div class="train-tools-plot">'
        f'<div class="train-tools-scale">{value(f"{high:.3g}")}{value(f"{low:.3g}")}</div>'
        f'<svg role="img" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" preserveAspectRatio="none">'
        f"<title>Loss and learning rate over the steps</title>"
        f'<desc class="train-tools-value">{said}</desc>{_grid()}{lines}</svg>'
        f'<div class="train-tools-scale train-tools-rate">{value(f"{top_rate:.3g}")}{value("0")}</div>'
        f'<div class="train-tools-steps">{value(f"{span[0]:.0f}")}{words("Steps")}{value(f"{span[1]:.0f}")}</div>'
        f"</div></figure>{_turn(validations)}"
    )


def _loss_scale(losses: Sequence[float], smooth: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest loss, without the few outliers that would flatten the rest."""
    ordered = sorted(losses)
    outliers = len(ordered) // 50
    low = min(ordered[outliers], *smooth)
    high = max(ordered[len(ordered) - 1 - outliers], *smooth)
    return (low, high) if high > low else (low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9)


def _validation_lines(validations: Sequence[Validation], scale: Scale, span: Scale) -> str:
    """The base model's level, the validations with a dot each, and where it turned to the worse."""
    if not validations:
        return ""
    steps = [float(each.step) for each in validations]
    losses = [each.loss for each in validations]
    level = _line("base", [span[0], span[1]], [validations[-1].base_loss] * 2, scale, span)
    dots = "".join(
        f'<line class="train-tools-dot" x1="{x}" y1="{y}" x2="{x}" y2="{y}"/>'
        for x, y in _places(steps, losses, scale, span)
    )
    turn = _turning_point(validations)
    mark = ""
    if turn is not None:
        x, _ = _places([float(turn.step)], [turn.loss], scale, span)[0]
        mark = f'<line class="train-tools-turn" x1="{x}" x2="{x}" y1="0" y2="{_HEIGHT:.0f}"/>'
    return f"{level}{mark}{_line('validation', steps, losses, scale, span)}{dots}"


def _turning_point(validations: Sequence[Validation]) -> ValidationPoint | None:
    return turning_point([ValidationPoint(each.step, each.loss, each.base_loss) for each in validations])


def _turn(validations: Sequence[Validation]) -> str:
    """The sentence that belongs to the mark."""
    turn = _turning_point(validations)
    if turn is None:
        return ""
    best = f"{words('On held-out pictures it was best at step')} {value(turn.step)}"
    return f'<p class="train-tools-line">{best}{value(";")} {words("since then it is over-trained.")}</p>'


def _places(steps: Sequence[float], numbers: Sequence[float], scale: Scale, span: Scale) -> list[tuple[str, str]]:
    """Where values stand in the drawing, as texts."""
    first, length = span[0], (span[1] - span[0]) or 1.0
    low, high = scale
    room = _HEIGHT * (1 - 2 * _MARGIN)
    shares = [min(max((number - low) / (high - low), 0.0), 1.0) for number in numbers]
    return [
        (f"{(step - first) / length * _WIDTH:.1f}", f"{_HEIGHT * _MARGIN + (1 - share) * room:.1f}")
        for step, share in zip(steps, shares, strict=True)
    ]


def _line(kind: str, steps: Sequence[float], numbers: Sequence[float], scale: Scale, span: Scale) -> str:
    points = [f"{x},{y}" for x, y in _places(steps, numbers, scale, span)]
    if len(points) == 1:
        points *= 2  # a line of no length is drawn as a dot
    return f'<polyline class="train-tools-{kind}" points="{" ".join(points)}"/>'


def _grid() -> str:
    heights = (_HEIGHT * _MARGIN, _HEIGHT / 2, _HEIGHT * (1 - _MARGIN))
    lines = (f'<line x1="0" x2="{_WIDTH:.0f}" y1="{y:.1f}" y2="{y:.1f}"/>' for y in heights)
    return f'<g class="train-tools-grid">{"".join(lines)}</g>'


def _legend(smoothing: float, *, is_validated: bool) -> str:
    validated = (
        f'<span class="train-tools-key train-tools-validation">{words("Held-out pictures")}</span>'
        f'<span class="train-tools-key train-tools-base">{words("Base model on them")}</span>'
        if is_validated
        else ""
    )
    options = "".join(
        f'<option class="train-tools-value" value="{choice:g}"{" selected" if choice == smoothing else ""}>'
        f"{choice:g}</option>"
        for choice in SMOOTHINGS
    )
    return (
        '<figcaption class="train-tools-legend">'
        f'<span class="train-tools-key train-tools-raw">{words("Loss")}</span>'
        f'<span class="train-tools-key train-tools-smooth">{words("Smoothed loss")}</span>'
        f'<span class="train-tools-key train-tools-rate">{words("Learning rate")}</span>{validated}'
        f'<label class="train-tools-smoothing">{words("Smoothing")}'
        f'<select data-param="smoothing" data-key="smoothing">{options}</select></label></figcaption>'
    )
