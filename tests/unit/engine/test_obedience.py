"""Obedience by hand, and the base model as a classifier of the demo's pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from PIL import Image

from lora_train.core.assets import DEMO_PICTURES
from lora_train.core.presets import DEMO_PROMPTS
from lora_train.engine.loading import BaseModel
from lora_train.engine.obedience import DiffusionClassifier, Obedience, rivals, wins
from lora_train.engine.text import Prompts


def test_rivals_are_spread_over_all_other_prompts() -> None:
    assert rivals(0, 2) == [0, 1]
    assert rivals(2, 3) == [2, 0, 1]
    assert rivals(1, 7) == [1, 2, 4, 6]
    assert rivals(0, 1) == [0]


def test_wins_by_hand() -> None:
    """Won, lost, won; a tie and a NaN are half each."""
    assert wins([[3.0, 1.0, 4.0], [0.0, -1.0]]) == pytest.approx(2 / 3)
    assert wins([[1.0, 1.0], [math.nan, 0.0]]) == 0.5
    assert wins([]) == 0


BLANK = Image.new("RGB", (8, 8))


def explaining(own: Sequence[float]) -> Obedience:
    """Two prompts; the base model's pictures win all, the others by `own` against 0."""
    told = [[[1.0, 0.0], [1.0, 0.0]], [[value, 0.0] for value in own]]
    return Obedience(lambda *_: told.pop(0), [0, 1], [BLANK, BLANK])


@pytest.mark.parametrize(("own", "obedience"), [([1, 1], 1), ([1, 0], 0.5), ([1, -1], 0), ([-1, -1], 0)])
def test_obedience_is_a_share_of_the_base_models(own: list[float], obedience: float) -> None:
    assert explaining(own).of([BLANK, BLANK]) == pytest.approx(obedience)


def test_where_nothing_can_be_said_it_counts_as_kept() -> None:
    one_prompt = Obedience(lambda *_: [], [0, 0], [BLANK, BLANK])
    assert not one_prompt.is_known
    assert one_prompt.of([BLANK, BLANK]) == 1
    base_by_chance = Obedience(lambda *_: [[0.0, 1.0], [1.0, 0.0]], [0, 1], [BLANK, BLANK])
    assert not base_by_chance.is_known


def test_the_base_model_knows_what_a_picture_of_an_unknown_thing_was_asked_for(demo_model: BaseModel) -> None:
    """It never saw the star, but every background; of 18 pairs it decides all rightly, with wrong prompts none."""
    files = sorted((DEMO_PICTURES / "1_sks").glob("*.png"))[:9]
    pictures = [Image.open(path).convert("RGB") for path in files]
    explain = DiffusionClassifier(demo_model, Prompts(demo_model, clip_skip=1, max_tokens=75), DEMO_PROMPTS)
    asked = [index % 3 for index in range(9)]
    assert wins(explain(pictures, [rivals(own, 3) for own in asked])) > 0.9
    wrong = [(own + 1) % 3 for own in asked]
    assert wins(explain(pictures, [rivals(own, 3) for own in wrong])) < 0.6
