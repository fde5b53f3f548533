"""Likeness and retention: worked by hand on small features, and on the demo's own pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_train.core.assets import DEMO_HELD_OUT, DEMO_PICTURES
from lora_train.engine.features import FeatureReader
from lora_train.engine.likeness import Likeness, retention
from lora_train.engine.loading import BaseModel
from lora_train.engine.text import Prompts


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def reader(demo_model: BaseModel) -> FeatureReader:
    return FeatureReader(demo_model, Prompts(demo_model, clip_skip=1, max_tokens=75))


@pytest.fixture(scope="module")
def concept(reader: FeatureReader) -> torch.Tensor:
    return reader.read(pictures(DEMO_PICTURES / "1_sks"))


@pytest.fixture(scope="module")
def held_out(reader: FeatureReader) -> torch.Tensor:
    return reader.read(pictures(DEMO_HELD_OUT))


@pytest.fixture(scope="module")
def ordinary(reader: FeatureReader) -> torch.Tensor:
    return reader.read(pictures(DEMO_PICTURES / "reg" / "1_ordinary"))


def test_features_belong_to_their_picture(reader: FeatureReader, concept: torch.Tensor, held_out: torch.Tensor) -> None:
    """Two numbers for each of the 64 channels, whoever else is read, in whatever order."""
    assert concept.shape == (16, 128)
    assert bool(torch.isfinite(concept).all())
    backwards = reader.read(pictures(DEMO_HELD_OUT)[::-1][:3])
    torch.testing.assert_close(backwards, held_out.flip(0)[:3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sdxl-inpaint"])
def test_other_families_have_features_too(model_of: Callable[[str], Any], family: str) -> None:
    """Two numbers for each of the last block's 32 channels; another picture has others."""
    model = model_of(family)
    features = FeatureReader(model, Prompts(model, clip_skip=1, max_tokens=75)).read(pictures(DEMO_HELD_OUT)[:2])
    assert features.shape == (2, 64)
    assert bool(torch.isfinite(features).all())
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_large_pictures_are_read_few_at_a_time(demo_model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 1024 px take the memory of eight of 512 px."""
    reader = FeatureReader(demo_model, Prompts(demo_model, clip_skip=1, max_tokens=75))
    counts: list[int] = []

    def read(chosen: list[Image.Image]) -> torch.Tensor:
        counts.append(len(chosen))
        return torch.zeros(len(chosen), 2)

    monkeypatch.setattr(reader, "_read", read)
    for side_px, count in ((1024, 5), (512, 9), (4096, 2)):
        assert len(reader.read([Image.new("RGB", (side_px, side_px))] * count)) == count
    assert counts == [2, 2, 1, 8, 1, 1, 1]


def test_pictures_of_the_concept_are_alike(
    concept: torch.Tensor, held_out: torch.Tensor, ordinary: torch.Tensor
) -> None:
    """Pictures that were not in the set it compares with: new ones of the concept against ordinary ones."""
    likeness = Likeness(concept, ordinary[::2])
    alike, others = likeness.of(held_out), likeness.of(ordinary[1::2])
    assert likeness.of(concept) > others + 0.2
    assert alike > others + 0.2
    assert -1 <= others < alike <= 1
    # Each single new picture too is more like the concept than the ordinary ones are on average.
    assert all(likeness.of(row[None]) > others for row in held_out)


def test_likeness_by_hand() -> None:
    """Ordinary: mean (1, 1), spread sqrt(2) in both; so the concept lies in the direction (1, 0)."""
    ordinary = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    likeness = Likeness(torch.tensor([[3.0, 1.0]]), ordinary)
    assert likeness.of(torch.tensor([[2.5, 1.0]])) == pytest.approx(1)
    assert likeness.of(torch.tensor([[1.0, 5.0]])) == pytest.approx(0, abs=1e-6)
    assert likeness.of(torch.tensor([[0.0, 1.0]])) == pytest.approx(-1)
    assert likeness.of(torch.tensor([[2.0, 2.0], [3.0, 1.0]])) == pytest.approx((0.5**0.5 + 1) / 2)


def test_what_is_farther_out_than_the_concept_counts_less() -> None:
    """The concept lies 2 from the middle (spreads alike); a picture at 8 in the same direction counts a quarter."""
    ordinary = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    likeness = Likeness(torch.tensor([[3.0, 1.0], [2.0, 1.0]]), ordinary)
    assert likeness.of(torch.tensor([[9.0, 1.0]])) == pytest.approx(0.25, rel=1e-3)
    assert likeness.among_themselves() == pytest.approx(1)
    assert likeness.among_themselves() == 1


def test_likeness_among_themselves_leaves_each_with_itself_out() -> None:
    """Directions (1, 0), (0, 1) and (1, 0): cosines 0, 1 and 0 between the three pairs."""
    ordinary = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    likeness = Likeness(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), ordinary)
    assert likeness.among_themselves() == pytest.approx(1 / 3)


def test_everything_is_kept_when_nothing_changed(ordinary: torch.Tensor) -> None:
    prompts = list(range(len(ordinary)))
    assert retention(ordinary, ordinary, prompts) == 1.0
    # All drawn as another prompt asks: nothing is right. Half of them: half is.
    turned = ordinary.roll(1, 0)
    assert retention(turned, ordinary, prompts) == 0.0
    half = torch.cat([ordinary[:8], turned[8:]])
    assert retention(half, ordinary, prompts) == 0.5


def test_pictures_of_the_same_prompt_are_equally_right(ordinary: torch.Tensor) -> None:
    prompts = [index // 2 for index in range(len(ordinary))]
    swapped = ordinary.reshape(8, 2, -1).flip(1).reshape(16, -1)
    assert retention(swapped, ordinary, prompts) == 1.0
