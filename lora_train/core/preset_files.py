"""Presets: training settings for a purpose, each with the reason why, in files that people share.

Those of the package stand in `assets/presets`, one file for each purpose; a person's own ones, of the same form, in
the workspace. A file has settings for all base models, and where a family wants other values, these.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from lora_train.core.assets import PRESETS
from lora_train.core.config import TrainSettings
from lora_train.core.errors import MOST_OF_REASON, WorkspaceError, shown
from lora_train.core.families import FAMILY_LABELS, CheckpointFacts
from lora_train.core.files import DAMAGED_JSON
from lora_train.core.presets import is_small_model
from lora_train.core.purposes import MOST_PRESET_BYTES, PRESET_FAMILIES, PresetFamily
from lora_train.core.settings import check_settings

NEVER_SHARED = (
    *("base_model", "vae", "continue_from", "device", "cpu_threads"),
    *("trigger_word", "preview_prompts"),
)
"""Settings that belong to a person's machine or to one project: no preset has them."""

RATES = ("learning_rate", "text_encoder_lr")

_NAME_LIMIT = 100
_TEXT_LIMIT = 300
"""Characters."""


class Choice(msgspec.Struct, frozen=True):
    """A value, and in one line why it is that."""

    value: Any
    why: str = ""


class Preset(msgspec.Struct, frozen=True, tag="lora-train preset", tag_field="kind", kw_only=True):
    """A preset file."""

    name: str
    about: str = ""
    saved_for: PresetFamily | Literal[""] = ""
    """The family that a person's own settings were for."""
    settings: dict[str, Choice] = {}
    families: dict[PresetFamily, dict[str, Choice]] = {}
    """What is different for a family."""

    def choices(self, family: PresetFamily) -> dict[str, Choice]:
        """Every setting for base models of a family.

        The small demo model wants forty times the rates of real models, so rates that a person saved for the one
        are not taken for the other.
        """
        found = {**self.settings, **self.families.get(family, {})}
        if self.saved_for and (self.saved_for == "small") != (family == "small"):
            found = {name: choice for name, choice in found.items() if name not in RATES}
        return found

    def values(self, family: PresetFamily) -> dict[str, Any]:
        return {name: choice.value for name, choice in self.choices(family).items()}


def preset_family(facts: CheckpointFacts | None) -> PresetFamily:
    """Where to look in a preset for a base model; SD 1.x for one that is not known yet."""
    if facts is None:
        return "sd1"
    if facts.family == "sd1" and is_small_model(facts.model_channels):
        return "small"
    known: dict[str, PresetFamily] = {family: family for family in PRESET_FAMILIES}
    return known.get(facts.family.removesuffix("-inpaint"), "sd1")


def family_label(family: PresetFamily) -> str:
    """For a person to read."""
    return "the small demo model" if family == "small" else FAMILY_LABELS[family]


@cache
def purpose(name: str) -> Preset:
    """The preset of the package for one of PURPOSES."""
    return msgspec.json.decode((PRESETS / f"{name}.json").read_bytes(), type=Preset)


def read_preset(content: bytes) -> tuple[Preset, list[str]]:
    """What is right of a preset file that somebody made, and a sentence for everything that is left out of it.

    Raises WorkspaceError for a file that is no preset, or has nothing in it that can be used.
    """
    hint = "Presets are JSON files that this page or `lora-train presets export` wrote."
    if len(content) > MOST_PRESET_BYTES:
        raise WorkspaceError(f"A preset has {MOST_PRESET_BYTES / 1e6:.0f} MB at most; this file has more.", hint)
    try:
        preset = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=Preset)
    except DAMAGED_JSON as error:
        raise WorkspaceError(f"This file is no preset: {_sentence(error)}", hint) from None
    problems: list[str] = []
    checked = msgspec.structs.replace(
        preset,
        name=_one_line(preset.name, _NAME_LIMIT),
        about=_one_line(preset.about, _TEXT_LIMIT),
        settings=_right_ones(preset.settings, problems),
        families={family: _right_ones(choices, problems) for family, choices in preset.families.items()},
    )
    if not checked.settings and not any(checked.families.values()):
        raise WorkspaceError("\n".join(["This preset has no setting that can be used.", *problems]), hint)
    return checked, problems


def preset_of(name: str, settings: TrainSettings, family: PresetFamily) -> Preset:
    """A preset of somebody's own settings, without what belongs to a machine or a project."""
    values = shared_values(msgspec.structs.asdict(settings))
    return Preset(name=name, saved_for=family, settings={key: Choice(value) for key, value in values.items()})


def shared_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a preset may have. Typed options of sd-scripts are left out where they hold a path."""
    return {
        name: value
        for name, value in values.items()
        if name not in NEVER_SHARED and not (name == "sd_script_args" and _has_path(value))
    }


def _right_ones(choices: Mapping[str, Choice], problems: list[str]) -> dict[str, Choice]:
    """The settings that the schema allows, in its form; the others are told."""
    found: dict[str, Choice] = {}
    for name, choice in choices.items():
        if name not in shared_values({name: choice.value}):
            problems.append(f"{name}: it belongs to a machine or a project, and is left out")
            continue
        settings, wrong = check_settings({name: choice.value}, TrainSettings())
        if wrong:
            problems += _of_this(name, wrong)
            continue
        found[name] = Choice(getattr(settings, name), _one_line(choice.why, _TEXT_LIMIT))
    return found


def _one_line(text: str, limit: int) -> str:
    """As it is kept: NFC, every run of blanks and line ends one blank, cut after `limit` characters."""
    return unicodedata.normalize("NFC", " ".join(text.split()))[:limit].rstrip()


def _of_this(name: str, wrong: Iterable[str]) -> list[str]:
    return [problem if problem.startswith(name) else f"{name}: {problem}" for problem in wrong]


def _has_path(value: object) -> bool:
    return isinstance(value, str) and any(sign in value for sign in "/\\")


def _sentence(error: Exception) -> str:
    return f"{shown(error, MOST_OF_REASON).rstrip('.') or 'it is nested too deeply'}."


def preset_bytes(preset: Preset) -> bytes:
    """The content of a preset's file."""
    return msgspec.json.format(msgspec.json.encode(preset), indent=2) + b"\n"


def preset_path(name: str) -> Path:
    """The file of one of PURPOSES."""
    return PRESETS / f"{name}.json"
