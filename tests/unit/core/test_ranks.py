"""Which rank and alpha each part of the model gets."""

from __future__ import annotations

from lora_train.core.config import TrainSettings
from lora_train.core.ranks import ranks_of


def test_without_anything_of_their_own() -> None:
    ranks = ranks_of(TrainSettings(rank=16, alpha=8.0, conv_rank=4, conv_alpha=2.0))
    assert ranks.pop("conv") == (4, 2.0)
    assert ranks == dict.fromkeys(("linear", "input", "middle", "output", "text_encoder"), (16, 8.0))


def test_a_rank_alone_keeps_the_ratio_and_an_alpha_alone_the_rank() -> None:
    settings = TrainSettings(
        rank=16, alpha=8.0, input_rank=4, middle_alpha=1.0, output_rank=32, output_alpha=3.0, text_encoder_rank=3
    )
    ranks = ranks_of(settings)
    assert (ranks["input"], ranks["middle"]) == ((4, 2.0), (16, 1.0))
    assert (ranks["output"], ranks["text_encoder"]) == ((32, 3.0), (3, 1.5))
    assert ranks["linear"] == (16, 8.0)
