"""The presets of the package are complete and legal with a reason for each value; others' files are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_train.core.assets import PRESETS
from lora_train.core.config import TrainSettings
from lora_train.core.errors import WorkspaceError
from lora_train.core.families import CheckpointFacts
from lora_train.core.preset_files import (
    NEVER_SHARED,
    Choice,
    Preset,
    preset_bytes,
    preset_family,
    preset_of,
    purpose,
    read_preset,
)
from lora_train.core.purposes import MOST_PRESET_BYTES, PRESET_FAMILIES, PURPOSES, PresetFamily
from lora_train.core.settings import parse_settings, setting_fields

COMPLETE = {
    *("rank", "alpha", "conv_rank", "conv_alpha", "scale_weight_norms"),
    *("optimizer", "learning_rate", "text_encoder_lr", "train_text_encoder", "weight_decay"),
    *("lr_scheduler", "lr_warmup_steps", "batch_size", "epochs", "repeats", "aimed_steps", "save_every_epochs"),
    *("prune_common_tags", "shuffle_captions", "keep_tags", "caption_dropout", "flip"),
    *("min_snr_gamma", "debiased_estimation", "noise_offset"),
}
"""What every preset decides, whatever the family."""

EVERY = [(name, family) for name in PURPOSES for family in PRESET_FAMILIES]


def test_a_file_for_each_purpose_and_no_other() -> None:
    assert {path.name for path in PRESETS.iterdir()} == {f"{name}.json" for name in PURPOSES}
    assert [purpose(name).name for name in PURPOSES] == [*PURPOSES]
    assert all(purpose(name).about.endswith(".") for name in PURPOSES)


@pytest.mark.parametrize(("name", "family"), EVERY)
def test_every_value_is_legal_and_has_a_reason(name: str, family: PresetFamily) -> None:
    choices = purpose(name).choices(family)
    assert set(choices) == COMPLETE | ({"train_sdxl_text_encoders"} if family == "sdxl" else set())
    settings = parse_settings(purpose(name).values(family))
    for setting, choice in choices.items():
        value = getattr(settings, setting)
        assert (value, type(value)) == (choice.value, type(choice.value)), "written as the schema has it"
        assert choice.why[0].isupper() or choice.why[0].isdigit()
        assert choice.why.endswith((".", "…")), setting
        assert "\n" not in choice.why
        assert len(choice.why) <= 110, choice.why


@pytest.mark.parametrize(("name", "family"), EVERY)
def test_values_go_together(name: str, family: PresetFamily) -> None:
    values = purpose(name).values(family)
    assert values["repeats"] == -1
    assert values["aimed_steps"] > 0, "or the automatic repeats have no aim"
    assert values["alpha"] == values["rank"] / 2
    assert values["lr_warmup_steps"] * 10 <= values["aimed_steps"]
    assert not (values["debiased_estimation"] and values["min_snr_gamma"]), "one balance of noise levels"
    assert values["text_encoder_lr"] <= values["learning_rate"]
    assert values["train_text_encoder"] == (values["text_encoder_lr"] > 0)
    assert values["keep_tags"] > 0 or not values["prune_common_tags"]
    if family == "sdxl":  # else nothing can be encoded once
        assert not values["shuffle_captions"]
        assert not values["caption_dropout"]
    if family == "small":
        assert 2e-3 <= values["learning_rate"] <= 4e-3
    else:
        assert values["learning_rate"] <= 5e-4


def test_families_differ_only_where_they_say_so() -> None:
    """A value that is repeated from the base part would hide which ones are meant."""
    for name in PURPOSES:
        preset = purpose(name)
        for family, choices in preset.families.items():
            same = [
                key for key, choice in choices.items() if preset.settings.get(key, Choice(None)).value == choice.value
            ]
            assert same == [], (name, family)


@pytest.mark.parametrize(
    ("facts", "family"),
    [
        (None, "sd1"),
        (CheckpointFacts("sd1", model_channels=320), "sd1"),
        (CheckpointFacts("sd1", model_channels=32), "small"),
        (CheckpointFacts("sd1-inpaint", model_channels=320), "sd1"),
        (CheckpointFacts("sd2", model_channels=320), "sd2"),
        (CheckpointFacts("sd2-inpaint"), "sd2"),
        (CheckpointFacts("sdxl"), "sdxl"),
        (CheckpointFacts("sdxl-inpaint"), "sdxl"),
        (CheckpointFacts("unknown"), "sd1"),
    ],
)
def test_the_family_of_a_base_model(facts: CheckpointFacts | None, family: str) -> None:
    assert preset_family(facts) == family


# --- a person's own ---


def test_own_settings_there_and_back() -> None:
    settings = TrainSettings(
        base_model="/home/me/a.safetensors",
        vae="C:\\v.pt",
        continue_from="x",
        trigger_word="猫",
        preview_prompts=("猫, sitting",),
        rank=24,
        optimizer_args=("betas=0.9,0.99",),
        sd_script_args="--seed=7",
        preview_weights=(0.5, 1.0),
    )
    content = preset_bytes(preset_of("自作 Ж", settings, "sdxl"))
    assert b"/home/me" not in content
    assert "猫".encode() not in content
    preset, problems = read_preset(content)
    assert problems == []
    assert (preset.name, preset.saved_for) == ("自作 Ж", "sdxl")
    expected = {name: value for name, value in msgspec.structs.asdict(settings).items() if name not in NEVER_SHARED}
    assert preset.values("sdxl") == expected
    assert parse_settings(preset.values("sdxl")).rank == 24


def test_options_with_a_path_are_not_shared() -> None:
    settings = TrainSettings(sd_script_args="--network_weights=/home/me/x.safetensors")
    assert "sd_script_args" not in preset_of("x", settings, "sd1").settings


def test_rates_of_the_small_model_stay_there() -> None:
    settings = TrainSettings(learning_rate=4e-3, rank=24)
    small, real = preset_of("x", settings, "small"), preset_of("x", settings, "sd1")
    assert small.values("small")["learning_rate"] == real.values("sdxl")["learning_rate"] == 4e-3
    for preset, family in ((small, "sdxl"), (real, "small")):
        assert "learning_rate" not in preset.values(family)
        assert preset.values(family)["rank"] == 24


def file(**changes: Any) -> bytes:
    content = {"kind": "lora-train preset", "name": "x", "settings": {"rank": {"value": 8}}, **changes}
    return json.dumps(content).encode("utf-8")


def test_what_is_wrong_is_told_and_left_out() -> None:
    preset, problems = read_preset(
        file(
            settings={
                "rank": {"value": "32", "why": "large\nenough"},
                "alpha": {"value": -1},
                "ranks": {"value": 3},
                "base_model": {"value": "/home/you/model.safetensors"},
                "repeats": {"value": 0},
            },
            families={"sdxl": {"epochs": {"value": 5}, "flip": {"value": "perhaps"}}},
            unheard_of=True,
        )
    )
    assert preset.settings == {"rank": Choice(32, "large enough")}
    assert preset.families == {"sdxl": {"epochs": Choice(5)}}
    assert problems == [
        "alpha (Alpha): -1 is not a number more than 0 up to 1024",
        "ranks: there is no setting of this name (did you mean rank?)",
        "base_model: it belongs to a machine or a project, and is left out",
        "repeats (Train number of repetitions): 0 would train nothing; use -1 or 1 and more",
        "flip (Flip): 'perhaps' is not true or false",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"kind": "train", "name": "x"}',
        file(name=3),
        file(settings=[]),
        file(settings={"rank": 8}),
        file(families={"flux": {}}),
        file(settings={}),
        file(settings={"base_model": {"value": "x"}}),
        b"[" * 100_000,
        b" " * (MOST_PRESET_BYTES + 1),
    ],
)
def test_other_files_are_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(WorkspaceError) as caught:
        read_preset(content)
    assert caught.value.message[0].isupper()
    assert caught.value.message.endswith((".", "left out"))
    assert caught.value.hint


@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: file(settings={text: {"value": text}})))
def test_nothing_is_a_traceback(content: bytes) -> None:
    try:
        preset, _ = read_preset(content)
    except WorkspaceError:
        return
    assert isinstance(preset, Preset)


def test_reasons_are_no_ones_but_our_own_words(tmp_path: Path) -> None:
    """What the page shows is what the file says."""
    told = json.loads((PRESETS / "character.json").read_text(encoding="utf-8"))
    assert purpose("character").choices("sdxl")["rank"].why == told["settings"]["rank"]["why"]
    assert {field.name for field in setting_fields()} >= set(told["settings"])


@pytest.mark.parametrize("name", PURPOSES)
def test_the_documentation_has_the_values(name: str) -> None:
    text = (Path(__file__).parents[3] / "docs" / "presets.md").read_text(encoding="utf-8")
    values, _ = text.split("## Measured against")
    (row,) = [line for line in values.splitlines() if line.startswith(f"| {name} |")]
    real, large = purpose(name).values("sd1"), purpose(name).values("sdxl")
    rate = f"{real['text_encoder_lr']:.5f}" if real["train_text_encoder"] else "–"
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        name,
        f"{real['rank']} / {real['alpha']:g}",
        f"{real['conv_rank']} / {real['conv_alpha']:g}" if real["conv_rank"] else "–",
        f"{real['learning_rate']:g}",
        rate,
        str(real["aimed_steps"]),
        f"{large['learning_rate']:g}, {large['aimed_steps']}",
        f"over {real['prune_common_tags']} % left out" if real["prune_common_tags"] else "kept",
        "yes" if real["flip"] else "no",
    ]
