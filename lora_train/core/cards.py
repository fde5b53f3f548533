"""The card of a LoRA: the JSON object beside its file from which WebUIs fill their card and its editor.

Keys as in A1111 (modules/ui_extra_networks_user_metadata.py and the Lora extension's editor).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

from lora_train.core.files import DAMAGED_JSON
from lora_train.core.private_use import PRIVATE_USE

CardValue = str | float
SD_VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
"""Families of LoRAs, as hosts call them; for others a card has no such key, and the host looks for itself."""

_MOST_TAGS = 5
_LEAST_SHARE = 1 / 3
"""Of the captions, which a tag is in more often than that."""
_SENTENCE_CHARACTERS = 16
"""Where tags are as long as that on average, hosts take captions for sentences; so do we."""


class CardFacts(NamedTuple):
    """What a card is written from; texts may be empty."""

    about: str
    """Project, version and steps."""
    base_model: str
    rank: str
    family: str
    trigger: str
    metadata: Mapping[str, str]
    """Of the LoRA file."""
    weight: float
    reason: str
    """Why the judge recommends it."""
    is_private: bool


def card_values(facts: CardFacts) -> dict[str, CardValue]:
    """The keys that we know something for."""
    private = [PRIVATE_USE] if facts.is_private else []
    base_model = [f"base model {facts.base_model}"] if facts.base_model else []
    notes = (
        *private,
        f"Base model: {facts.base_model}" if facts.base_model else "",
        f"Rank: {facts.rank}" if facts.rank else "",
        facts.reason,
    )
    values: dict[str, CardValue] = {
        "description": " ".join([*private, ", ".join([facts.about, *base_model])]),
        "activation text": activation_text(facts.trigger, {} if facts.is_private else facts.metadata),
        "preferred weight": facts.weight,
        "notes": "\n".join(filter(None, notes)),
    }
    if facts.family in SD_VERSIONS:
        values["sd version"] = SD_VERSIONS[facts.family]
    return values


def activation_text(trigger: str, metadata: Mapping[str, str]) -> str:
    """The trigger word, and the most frequent tags of the captions that the file was trained with.

    Of captions in sentences the trigger word alone. Brackets are escaped: in a prompt they would mean attention.
    """
    counts = _tag_counts(metadata.get("ss_tag_frequency", ""))
    captions = _caption_count(metadata.get("ss_dataset_dirs", "")) or max(counts.values(), default=0)
    tags = [part for text in trigger.split(",") if (part := text.strip())]
    if counts and sum(map(len, counts)) / len(counts) < _SENTENCE_CHARACTERS:
        often = (tag for tag, count in counts.items() if count > captions * _LEAST_SHARE)
        known = {tag.casefold() for tag in tags}
        new = [tag for tag in sorted(often, key=lambda tag: -counts[tag]) if tag.casefold() not in known]
        tags += new[:_MOST_TAGS]
    return ", ".join(re.sub(r"(?<!\\)([()\[\]])", r"\\\1", tag) for tag in tags)


def merged_card(
    existing: Mapping[str, Any], values: Mapping[str, CardValue], written: Mapping[str, CardValue]
) -> tuple[dict[str, Any], dict[str, CardValue]]:
    """`existing` with those of `values` that are absent from it, or still as in `written` (what we wrote last).

    Returns the card, and what of it is ours now. A key that we wrote and have nothing to say for any more goes.
    """
    own = {key for key, value in written.items() if key in existing and existing[key] == value}
    kept = {key: value for key, value in existing.items() if key in values or key not in own}
    ours = {key: value for key, value in values.items() if key not in existing or key in own}
    return {**kept, **ours}, ours


def read_card(content: bytes) -> dict[str, Any] | None:
    """A card's keys; None for what no host could read either."""
    try:
        card = msgspec.json.decode(content)
    except DAMAGED_JSON:
        return None
    return cast("dict[str, Any]", card) if isinstance(card, dict) else None


def card_bytes(card: Mapping[str, Any]) -> bytes:
    """UTF-8, indented by four as hosts do."""
    return msgspec.json.format(msgspec.json.encode(card), indent=4)


def _tag_counts(text: str) -> dict[str, int]:
    """Tag -> captions that it is in, from `ss_tag_frequency`; empty where that is damaged or absent."""
    counts: dict[str, int] = {}
    for tags in _objects(text):
        for tag, count in tags.items():
            if isinstance(count, int) and tag.strip():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return counts


def _caption_count(text: str) -> int:
    counts = (folder.get("img_count", 0) for folder in _objects(text))
    return sum(count for count in counts if isinstance(count, int))


def _objects(text: str) -> list[dict[str, Any]]:
    """The objects in an object of JSON; none where it is something else."""
    try:
        outer = json.loads(text or "null")
    except (ValueError, RecursionError):
        return []
    if not isinstance(outer, dict):
        return []
    inner = cast("dict[str, Any]", outer).values()
    return [cast("dict[str, Any]", entry) for entry in inner if isinstance(entry, dict)]
