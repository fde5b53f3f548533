"""Cards of LoRAs: what is told, and that a person's edits stay."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_train.core.cards import CardFacts, activation_text, card_values, merged_card, read_card
from lora_train.core.private_use import PRIVATE_METADATA, PRIVATE_USE, with_private_use, without_mark


def metadata(captions: int, **counts: int) -> dict[str, str]:
    return {
        "ss_tag_frequency": json.dumps({"5_cat": {tag.replace("_", " "): count for tag, count in counts.items()}}),
        "ss_dataset_dirs": json.dumps({"5_cat": {"n_repeats": 5, "img_count": captions}}),
    }


def facts(**changes: Any) -> CardFacts:
    made = metadata(9, sks=9, solo=4)
    usual = CardFacts("Cat v1, 300 steps", "sd15.safetensors", "16", "sdxl", "sks", made, 0.8, "It is the best.", False)
    return usual._replace(**changes)


def test_activation_text_is_trigger_and_frequent_tags() -> None:
    """Of nine captions a tag has to be in four; the trigger word is not said twice."""
    found = activation_text("sks", metadata(9, sks=9, solo=4, red_hat=5, hat=3))
    assert found == "sks, red hat, solo"
    assert activation_text("SKS, cat", metadata(9, sks=9)) == "SKS, cat"
    assert activation_text("", metadata(9, sks=9)) == "sks"


def test_activation_text_has_a_few_tags() -> None:
    assert activation_text("sks", metadata(2, a=2, b=2, c=2, d=2, e=2, f=2)) == "sks, a, b, c, d, e"


def test_sentences_are_no_tags() -> None:
    """16 characters on average, as in A1111; 15 are tags still."""
    assert activation_text("sks", metadata(1, **{"x" * 16: 1})) == "sks"
    assert activation_text("sks", metadata(1, **{"x" * 15: 1})) == f"sks, {'x' * 15}"


def test_brackets_are_no_attention() -> None:
    made = metadata(1, **{"hat (red)": 1, r"cat \(zoo\)": 1})
    assert activation_text("zelda (game)", made) == r"zelda \(game\), hat \(red\), cat \(zoo\)"


@pytest.mark.parametrize("text", ["", "null", "[]", "{", '{"a": null}', '{"a": {"b": null}}', '{"a": 3}', '"x"'])
def test_damaged_tags_leave_the_trigger(text: str) -> None:
    assert activation_text("sks", {"ss_tag_frequency": text, "ss_dataset_dirs": text}) == "sks"


def test_values() -> None:
    assert card_values(facts()) == {
        "description": "Cat v1, 300 steps, base model sd15.safetensors",
        "activation text": "sks, solo",
        "preferred weight": 0.8,
        "notes": "Base model: sd15.safetensors\nRank: 16\nIt is the best.",
        "sd version": "SDXL",
    }
    assert "sd version" not in card_values(facts(family="unknown"))


def test_private_values() -> None:
    values = card_values(facts(is_private=True))
    assert values["activation text"] == "sks"
    assert str(values["description"]).startswith(PRIVATE_USE)
    assert str(values["notes"]).startswith(PRIVATE_USE)


def test_merge_keeps_what_a_person_wrote() -> None:
    wrote = {"description": "old", "notes": "old", "preferred weight": 1.0, "sd version": "SD1"}
    card = {"description": "mine", "notes": "old", "preferred weight": 1, "sd version": "SD1", "vae": "x"}
    merged, ours = merged_card(card, {"description": "new", "notes": "new", "preferred weight": 0.8, "x": "y"}, wrote)
    assert merged == {"description": "mine", "notes": "new", "preferred weight": 0.8, "vae": "x", "x": "y"}
    assert ours == {"notes": "new", "preferred weight": 0.8, "x": "y"}
    assert merged_card({"notes": ""}, {"notes": "new"}, {}) == ({"notes": ""}, {}), "emptied is edited too"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 5000, b'"text"'])
def test_what_is_no_card(content: bytes) -> None:
    assert read_card(content) is None


def test_private_use_leaves_the_dataset_out_and_can_be_taken_off() -> None:
    told = {**metadata(1, sks=1), "modelspec.trigger_phrase": "sks", "sshs_legacy_hash": "e3b0c442", "ss_steps": "9"}
    private = with_private_use(told)
    assert private == {"ss_steps": "9", **PRIVATE_METADATA}
    assert without_mark(private) == {"ss_steps": "9"}
    assert without_mark({"modelspec.license": "MIT"}) == {"modelspec.license": "MIT"}
