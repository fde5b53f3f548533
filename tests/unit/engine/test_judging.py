"""All measures together on the demo's pictures: fresh ones, copies, and what the base model draws."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from lora_train.core.assets import DEMO_HELD_OUT, DEMO_PICTURES
from lora_train.core.presets import DEMO_ORDINARY_PROMPTS, DEMO_PROMPTS
from lora_train.engine.features import FeatureReader
from lora_train.engine.judge_drawing import Drawing, JudgeDrawer
from lora_train.engine.judging import Measures, Pictures
from lora_train.engine.loading import BaseModel
from lora_train.engine.obedience import DiffusionClassifier
from lora_train.engine.sample import DrawSettings, draw
from lora_train.engine.text import Prompts

COUNT = 6
CONCEPT_OF = [index % 3 for index in range(COUNT)]


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


TRAINING = pictures(DEMO_PICTURES / "1_sks")
"""Their backgrounds are white, black and gray in turn, as in DEMO_PROMPTS; so are those of the held-out ones."""
FRESH = pictures(DEMO_HELD_OUT)


@pytest.fixture(scope="module")
def base(demo_model: BaseModel) -> Drawing:
    prompts = Prompts(demo_model, clip_skip=1, max_tokens=75)
    settings = DrawSettings(width_px=64, height_px=64, sampler="DDIM", steps=12, cfg_scale=3.0)

    def drawn(texts: list[str]) -> list[Image.Image]:
        with torch.no_grad():
            positive, negative = prompts.encode_each(texts), prompts.encode_each([""])[0]
        return draw(demo_model, positive, negative, list(range(COUNT)), settings)

    return Drawing(drawn([DEMO_PROMPTS[number] for number in CONCEPT_OF]), drawn(list(DEMO_ORDINARY_PROMPTS)), 0.0, ())


@pytest.fixture(scope="module")
def measures(demo_model: BaseModel, base: Drawing) -> Measures:
    prompts = Prompts(demo_model, clip_skip=1, max_tokens=75)
    own = Pictures([f"{number}.png" for number in range(len(TRAINING))], TRAINING, FRESH[-2:], [])
    drawer: Any = SimpleNamespace(ordinary_of=list(range(COUNT)), concept_of=CONCEPT_OF)
    explain = DiffusionClassifier(demo_model, prompts, DEMO_PROMPTS)
    return Measures(FeatureReader(demo_model, prompts), explain, own, base, cast(JudgeDrawer, drawer))


def judged(measures: Measures, base: Drawing, concept: list[Image.Image], **changes: Any) -> Any:
    return measures.of(base._replace(concept=concept, **changes), lora="a.safetensors", weight=1.0)


def test_the_base_model_itself_has_0(measures: Measures, base: Drawing) -> None:
    row = judged(measures, base, base.concept)
    assert row.likeness == pytest.approx(0, abs=1e-6)
    assert row.held_out_likeness == pytest.approx(0, abs=1e-6)
    assert (row.obedience, row.retention) == (1, 1)
    assert row.score == pytest.approx(0, abs=1e-6)


def test_fresh_pictures_are_above_copies(measures: Measures, base: Drawing) -> None:
    """Both are as like as can be and obey; only the copies are copies."""
    fresh, copies = judged(measures, base, FRESH[:COUNT]), judged(measures, base, TRAINING[:COUNT])
    assert copies.likeness > fresh.likeness > 0.7
    assert fresh.obedience == copies.obedience == 1
    assert copies.copying == pytest.approx(1, abs=1e-4)
    assert copies.nearest == tuple(f"{number}.png" for number in range(COUNT))
    assert fresh.copying < 0.3
    assert copies.score < 0.01
    assert fresh.score > 0.6


def test_what_ignores_its_prompt_or_lost_the_rest_counts_less(measures: Measures, base: Drawing) -> None:
    fresh = judged(measures, base, FRESH[:COUNT])
    wrong = judged(measures, base, FRESH[1 : COUNT + 1])
    assert wrong.obedience < 0.5
    assert wrong.score < fresh.score / 2
    lost = judged(measures, base, FRESH[:COUNT], ordinary=FRESH[:COUNT])
    assert lost.retention < 0.5
    assert lost.score < fresh.score / 2


def test_black_pictures_are_broken(measures: Measures, base: Drawing) -> None:
    black = [Image.new("RGB", (64, 64))] * COUNT
    row = judged(measures, base, black, ordinary=black, broken=1.0)
    assert row.score < 0.02
    assert all(value == value for value in (row.likeness, row.obedience, row.retention, row.copying))
