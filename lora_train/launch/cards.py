"""Which cards there are for workers that train beside each other; no torch."""

from __future__ import annotations

from collections.abc import Mapping

from lora_train.launch.device_memory import ask_driver

CARDS = "TRAIN_TOOLS_CARDS"
"""Names the cards that sweeps may spread over, as CUDA_VISIBLE_DEVICES would; "0" keeps them to the first one."""


def cards(environ: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to for one card each, the one that a worker takes by itself in front.

    Empty where there is no NVIDIA card. Asks the driver's tool, which takes a tenth of a second.
    """
    for name in (CARDS, "CUDA_VISIBLE_DEVICES"):
        if name in environ:
            return [card.strip() for card in environ[name].split(",") if card.strip() not in ("", "-1")]
    return numbered(ask_driver("--list-gpus"))


def numbered(told: str) -> list[str]:
    """As many numbers from 0 as nvidia-smi lists cards: CUDA counts them in its own order, the fastest first."""
    count = sum(line.startswith("GPU ") for line in told.splitlines())
    return [str(number) for number in range(count)]
