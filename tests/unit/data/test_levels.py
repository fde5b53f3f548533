from __future__ import annotations

from PIL import Image

from lora_train.data.levels import mean_difference, spread


def test_mean_difference() -> None:
    """Half of the pixels differ by 30 in one of three channels: 30 / 2 / 3."""
    one = Image.new("RGB", (4, 4), (10, 20, 30))
    other = one.copy()
    other.paste((40, 20, 30), (0, 0, 2, 4))
    assert mean_difference(one, other) == mean_difference(other, one) == 5
    assert mean_difference(one, one) == 0


def test_spread() -> None:
    """Half of the pixels at 10, half at 40: each 15 from their mean."""
    picture = Image.new("RGB", (4, 4), (10, 20, 30))
    assert spread(picture) == 0
    picture.paste((40, 20, 30), (0, 0, 2, 4))
    assert spread(picture) == 15
