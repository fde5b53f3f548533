"""Which rank and alpha each kind of layer gets: the net dim's, or those of its part of the model."""

from __future__ import annotations

from lora_train.core.config import TrainSettings

Ranks = dict[str, tuple[int, float]]
"""(rank, alpha) of "linear" and "conv" layers, and of block groups that have their own instead of "linear"'s."""


def ranks_of(settings: TrainSettings) -> Ranks:
    """The ranks and alphas that a new network gets.

    A block group without a rank has the net dim; without an alpha it keeps the ratio of alpha to net dim, so that
    the strength alpha / rank is the same everywhere. Convolutions have their own rank in all groups alike.
    """

    def group(rank: int, alpha: float) -> tuple[int, float]:
        rank = rank or settings.rank
        return rank, alpha or settings.alpha * rank / settings.rank

    return {
        "linear": (settings.rank, settings.alpha),
        "conv": (settings.conv_rank, settings.conv_alpha),
        "input": group(settings.input_rank, settings.input_alpha),
        "middle": group(settings.middle_rank, settings.middle_alpha),
        "output": group(settings.output_rank, settings.output_alpha),
        "text_encoder": group(settings.text_encoder_rank, settings.text_encoder_alpha),
    }
