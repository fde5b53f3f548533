"""What belongs to which family."""

from __future__ import annotations

import pytest

from lora_train.core.conditioning import conditioning_of, trains_text_encoders
from lora_train.core.config import TrainSettings
from lora_train.core.families import FAMILY_LABELS


def test_every_family_that_is_trained_is_known() -> None:
    encoders = {family: len(conditioning_of(family).text_encoders) for family in FAMILY_LABELS}
    assert encoders == {"sd1": 1, "sd2": 1, "sdxl": 2, "sd1-inpaint": 1, "sd2-inpaint": 1, "sdxl-inpaint": 2}
    assert {family for family in FAMILY_LABELS if conditioning_of(family).clip_skip_matters} == {"sd1", "sd1-inpaint"}
    assert {family for family in FAMILY_LABELS if conditioning_of(family).tells_sizes} == {"sdxl", "sdxl-inpaint"}


@pytest.mark.parametrize(
    ("family", "by_default", "others_off", "sdxls_on"),
    [("sd1", True, False, True), ("sd2-inpaint", True, False, True), ("sdxl", False, False, True)],
)
def test_text_encoders_are_trained_by_their_own_setting(
    family: str, by_default: bool, others_off: bool, sdxls_on: bool
) -> None:
    assert trains_text_encoders(TrainSettings(), family) == by_default
    assert trains_text_encoders(TrainSettings(train_text_encoder=False), family) == others_off
    assert trains_text_encoders(TrainSettings(train_sdxl_text_encoders=True), family) == sdxls_on
