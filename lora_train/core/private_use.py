"""The private-use mark: a LoRA of a real person or of somebody's character is not meant to be passed on."""

from __future__ import annotations

from collections.abc import Mapping

PRIVATE_USE = "Private use: please don't share."
"""What descriptions, notes and `modelspec.usage_hint` begin with."""
PRIVATE_METADATA = {
    "modelspec.usage_hint": PRIVATE_USE,
    "modelspec.license": "Private use only, not for sharing",
}

DATASET_KEYS = frozenset(
    {"ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs", "modelspec.trigger_phrase"},
)
"""Metadata that tells captions, tags or folder names."""

_LEGACY_HASH = "sshs_legacy_hash"
"""It depends on the length of the `ss_*` keys."""


def with_private_use(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a LoRA file with the mark, without what tells of its dataset."""
    kept = {key: text for key, text in metadata.items() if key not in {*DATASET_KEYS, _LEGACY_HASH}}
    return {**kept, **PRIVATE_METADATA}


def without_mark(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata without the mark, where it has ours."""
    return {key: text for key, text in metadata.items() if PRIVATE_METADATA.get(key) != text}
