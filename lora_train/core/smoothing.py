"""The smoothed course of a noisy curve."""

from __future__ import annotations

from collections.abc import Sequence


def smoothed(values: Sequence[float], smoothing: float) -> list[float]:
    """Exponential mean with the bias of its start taken out: m = s·m + (1-s)·x, shown as m / (1 - s^n).

    `smoothing` is 0 (the values themselves) up to, not including, 1. The correction is the one of Adam
    (Kingma & Ba 2015, section 3).
    """
    mean, weight, result = 0.0, 0.0, list[float]()
    for number in values:
        mean = smoothing * mean + (1 - smoothing) * number
        weight = smoothing * weight + (1 - smoothing)
        result.append(mean / weight)
    return result
