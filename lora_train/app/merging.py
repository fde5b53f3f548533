"""What is asked for when LoRAs are merged or resized, checked before anything is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lora_train.app.planning import lora_family
from lora_train.core.config import SavePrecision
from lora_train.core.errors import ConfigError, ModelError
from lora_train.core.families import FAMILY_LABELS, Family
from lora_train.core.specs import MergeSpec

_HIGHEST_RANK = 1024


def merge_spec(
    *,
    loras: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    rank: int,
    keep: float,
    precision: SavePrecision,
) -> MergeSpec:
    """The job's spec. Without weights every LoRA has 1.

    Raises ConfigError with all that is wrong, ModelError for files that are no LoRAs or of different families.
    """
    weights = weights or [1.0] * len(loras)
    problems = [
        *_wrong_numbers(len(loras), weights, rank, keep),
        *_wrong_place(out),
        *(f"{lora} does not exist" for lora in loras if not lora.is_file()),
    ]
    if len(loras) == 1 and not rank and not keep:
        problems.append("rank, keep: give one of them, or nothing would change")
    if problems:
        raise ConfigError(problems)
    _require_one_family(loras)
    return MergeSpec(
        loras=tuple(str(lora.absolute()) for lora in loras),
        weights=tuple(weights),
        out=str(out.absolute()),
        rank=rank,
        keep=keep,
        precision=precision,
    )


def _wrong_numbers(count: int, weights: Sequence[float], rank: int, keep: float) -> list[str]:
    problems: list[str] = []
    if len(weights) != count:
        problems.append(f"weights: {len(weights)} were given for {count} LoRAs")
    if not all(math.isfinite(weight) and weight for weight in weights):
        problems.append("weights: each is a number other than 0; leave out a LoRA that is not to count")
    if not 0 <= rank <= _HIGHEST_RANK:
        problems.append(f"rank: {rank} is not from 1 to {_HIGHEST_RANK}")
    if not 0 <= keep < 1:
        problems.append(f"keep: {keep:g} is not over 0 and below 1, for example 0.95")
    return problems


def _wrong_place(out: Path) -> list[str]:
    problems: list[str] = []
    if out.suffix != ".safetensors":
        problems.append(f"out: {out} does not end with .safetensors")
    if out.exists():
        problems.append(f"out: {out} exists already; a LoRA file is never overwritten")
    if not out.absolute().parent.is_dir():
        problems.append(f"out: {out.absolute().parent} is not a folder")
    return problems


def _require_one_family(loras: Sequence[Path]) -> None:
    families: dict[Family, Path] = {}
    for lora in loras:
        family = lora_family(lora)
        if family != "unknown":
            families.setdefault(family, lora)
    if len(families) > 1:
        (one, first), (other, second), *_ = families.items()
        raise ModelError(
            f"{first} is a LoRA for {FAMILY_LABELS.get(one, one)}, {second} for {FAMILY_LABELS.get(other, other)}.",
            "Merge LoRAs of the same family of base models.",
        )
