"""The curve of a training: smoothing by hand-worked numbers, and drawings of few, many and bad points."""

from __future__ import annotations

import re

import pytest

from lora_train.app.snapshot import CurvePoint
from lora_train.ui.chart import chart_html, smoothed


def point(step: int, loss: float, lr: float = 1e-4) -> CurvePoint:
    return CurvePoint(step=step, loss=loss, lr=lr)


def lines_of(html: str) -> dict[str, list[tuple[float, float]]]:
    found = re.findall(r'<polyline class="train-tools-(\w+)" points="([^"]+)"', html)
    return {kind: [tuple(map(float, pair.split(","))) for pair in points.split()] for kind, points in found}  # pyright: ignore[reportReturnType]


def test_smoothing_by_hand() -> None:
    """With s = 0.6 and 1, 2, 4: m = 0.4, 1.04, 2.224; divided by 0.4, 0.64, 0.784."""
    assert smoothed([1.0, 2.0, 4.0], 0.6) == pytest.approx([1.0, 1.625, 2.836734694])


def test_no_smoothing_is_the_values_themselves() -> None:
    assert smoothed([3.0, 1.0, 2.0], 0.0) == [3.0, 1.0, 2.0]


def test_a_constant_stays_what_it_is() -> None:
    assert smoothed([0.25] * 50, 0.98) == pytest.approx([0.25] * 50)


def test_no_point_is_a_sentence() -> None:
    html = chart_html([], 0.9)
    assert "after the first steps" in html
    assert "<svg" not in html


def test_one_point_is_a_dot() -> None:
    lines = lines_of(chart_html([point(7, 0.2)], 0.9))
    assert {len(set(points)) for points in lines.values()} == {1}
    assert {len(points) for points in lines.values()} == {2}


def test_many_points_stay_inside_the_picture() -> None:
    curve = [point(4 * number, 0.1 + (number % 7) / 50, 1e-4 / number) for number in range(1, 401)]
    lines = lines_of(chart_html(curve, 0.6))
    assert set(lines) == {"raw", "smooth", "rate"}
    for points in lines.values():
        assert len(points) == 400
        assert points[0][0] == 0
        assert points[-1][0] == 1000
        assert all(0 <= y <= 240 for _, y in points)


def test_higher_loss_stands_higher() -> None:
    raw = lines_of(chart_html([point(1, 0.1), point(2, 0.3), point(3, 0.2)], 0.0))["raw"]
    assert raw[1][1] < raw[2][1] < raw[0][1]  # y grows downwards


def test_one_outlier_does_not_flatten_the_rest() -> None:
    curve = [point(step, 0.1 if step % 2 else 0.2) for step in range(1, 100)]
    curve[60] = point(61, 50.0)
    raw = lines_of(chart_html(curve, 0.0 + 0.98))["raw"]
    assert abs(raw[0][1] - raw[1][1]) > 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_left_out(bad: float) -> None:
    html = chart_html([point(1, 0.2), point(2, bad), point(3, 0.1), point(4, 0.1, lr=bad)], 0.9)
    assert not re.search(r"\b(nan|inf)\b", html)
    assert len(lines_of(html)["raw"]) == 2


def test_a_flat_curve_and_a_rate_of_zero() -> None:
    lines = lines_of(chart_html([point(1, 0.0, 0.0), point(2, 0.0, 0.0)], 0.9))
    assert len({y for _, y in lines["raw"]}) == 1
    assert len({y for _, y in lines["rate"]}) == 1


def test_the_chosen_smoothing_is_marked() -> None:
    assert re.findall(r'value="([^"]+)" selected', chart_html([point(1, 0.1)], 0.98)) == ["0.98"]
