"""Metadata of LoRAs that were made from others: what all of those agree on, and what was done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_train.core.families import FAMILY_LABELS
from lora_train.core.specs import MergeSpec
from lora_train.engine.metadata import dims_values, names_of

_NO_LONGER_TRUE = (
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"),
    *("ss_network_args", "ss_network_dim", "ss_network_alpha"),
)


def merged_metadata(
    spec: MergeSpec, originals: Sequence[Mapping[str, str]], ranks: Sequence[int], family: str
) -> dict[str, str]:
    """All metadata but the hashes of a file whose modules have these ranks, each with an alpha of its rank."""
    first, *others = originals
    agreed = {
        key: value
        for key, value in first.items()
        if key not in _NO_LONGER_TRUE and all(other.get(key) == value for other in others)
    }
    done = _what_was_done(spec)
    before = agreed.get("ss_training_comment", "None")
    stem = Path(spec.out).stem
    values = {
        **_family_values(family),
        **agreed,
        "ss_network_module": "networks.lora",
        **{key: str(value) for key, value in dims_values(ranks, [float(rank) for rank in ranks]).items()},
        "ss_training_comment": done if before == "None" else f"{done}; {before}",
        "ss_output_name": stem,
        "modelspec.title": stem,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if others:
        values["modelspec.merged_from"] = ", ".join(Path(lora).stem for lora in spec.loras)
    return values


def _family_values(family: str) -> dict[str, str]:
    """For originals that say nothing of it: hosts take any file with metadata for one of SD1 otherwise."""
    if family not in FAMILY_LABELS:
        return {}
    names = names_of(family, "unknown")
    return {
        "ss_base_model_version": names.base_version,
        "ss_v2": str(family.startswith("sd2")),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": names.architecture,
    }


def _what_was_done(spec: MergeSpec) -> str:
    limits = [f"to rank {spec.rank}"] if spec.rank else []
    limits += [f"keeping {spec.keep:g} of the squared norm"] if spec.keep else []
    resized = " ".join(["resized", *limits]) if limits else ""
    if len(spec.loras) == 1:
        return resized
    parts = ", ".join(f"{Path(lora).stem} x {weight:g}" for lora, weight in zip(spec.loras, spec.weights, strict=True))
    return ", ".join(filter(None, [f"merged from {parts}", resized]))
