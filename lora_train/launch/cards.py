"""Which cards there are for workers that train beside each other; no torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from lora_train.launch.launcher import OWN_CONSOLE

CARDS = "TRAIN_TOOLS_CARDS"
"""Names the cards that sweeps may spread over, as CUDA_VISIBLE_DEVICES would; "0" keeps them to the first one."""
_LIMIT_S = 10.0


def cards(environ: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to for one card each, the one that a worker takes by itself in front.

    Empty where there is no NVIDIA card. Asks the driver's tool, which takes a tenth of a second.
    """
    for name in (CARDS, "CUDA_VISIBLE_DEVICES"):
        if name in environ:
            return [card.strip() for card in environ[name].split(",") if card.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, "--list-gpus"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            creationflags=OWN_CONSOLE,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return numbered(done.stdout)


def numbered(told: str) -> list[str]:
    """As many numbers from 0 as nvidia-smi lists cards: CUDA counts them in its own order, the fastest first."""
    count = sum(line.startswith("GPU ") for line in told.splitlines())
    return [str(number) for number in range(count)]
