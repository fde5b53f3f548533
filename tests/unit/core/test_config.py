"""The schema: every setting is complete, read by some code, and its range is enforced with words."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.core.presets import DEMO_SETTINGS
from lora_train.core.settings import SettingField, parse_settings, setting_fields

PACKAGE = Path(__file__).parents[3] / "lora_train"
FIELDS = {field.name: field for field in setting_fields()}
NUMBERS = [field for field in FIELDS.values() if field.kind in ("int", "float")]


def name_of(field: SettingField) -> str:
    return field.name


def problems_of(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_settings(values)
    return error.value.problems


# --- every setting is complete ---


def test_fields_are_those_of_the_schema_in_its_order() -> None:
    assert list(FIELDS) == [field.name for field in msgspec.structs.fields(TrainSettings)]


@pytest.mark.parametrize("field", FIELDS.values(), ids=name_of)
def test_every_setting_is_described(field: SettingField) -> None:
    assert field.label[0].isupper()
    assert field.help.endswith(".")
    assert field.limits
    assert not re.search(r"None|Annotated|<", field.limits)
    assert field.default == getattr(TrainSettings(), field.name)
    assert bool(field.choices) == (field.kind == "choice")


def test_labels_are_unique() -> None:
    """WebUIs store widgets by label: equal ones would share a value."""
    labels = [field.label for field in FIELDS.values()]
    assert len(set(labels)) == len(labels)


def test_every_setting_is_read_by_some_code() -> None:
    """A setting that no code asks for would be a promise without anyone to keep it."""
    read: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("config.py", "settings.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert set(FIELDS) - read == set()


def test_settings_with_a_flag_of_their_own() -> None:
    basic = {field.name for field in FIELDS.values() if field.basic}
    assert basic == {
        *("base_model", "epochs", "batch_size", "clip_skip", "optimizer", "learning_rate", "text_encoder_lr"),
        *("rank", "alpha", "repeats", "save_every_epochs", "resolution", "precision", "seed"),
    }


# --- ranges ---


def test_defaults_are_legal_in_every_form() -> None:
    typed = msgspec.structs.asdict(TrainSettings())
    assert parse_settings(typed) == TrainSettings()
    as_json = msgspec.json.decode(msgspec.json.encode(TrainSettings()))
    assert parse_settings(as_json) == TrainSettings()
    texts = {
        name: ",".join(map(str, value)) if name == "preview_weights" else str(value)
        for name, value in typed.items()
        if name not in ("preview_prompts", "optimizer_args")
    }
    assert parse_settings(texts) == TrainSettings()


def test_demo_settings_are_legal() -> None:
    parsed = parse_settings(DEMO_SETTINGS)
    assert {name: getattr(parsed, name) for name in DEMO_SETTINGS} == DEMO_SETTINGS


@pytest.mark.parametrize("field", NUMBERS, ids=name_of)
def test_ranges_are_enforced_as_they_are_told(field: SettingField) -> None:
    """Just outside of what `limits` says is refused in these very words; the limits themselves are not."""
    found = re.fullmatch(r"a (?:whole )?number (from|more than) (\S+) (?:up )?to (\S+)", field.limits)
    assert found, field.limits
    lowest, highest = float(found[2]), float(found[3])
    step = 1 if field.kind == "int" else 1e-3
    bad = [lowest - step, highest + step, math.inf, -math.inf, math.nan]
    if found[1] == "more than":
        bad.append(lowest)
    for value in bad:
        whole = int(value) if field.kind == "int" and math.isfinite(value) else value
        for form in (whole, str(whole)):
            (problem,) = problems_of({field.name: form})
            assert problem.startswith(f"{field.name} ({field.label}): {form!r} is not {field.limits}")
    good = highest if found[1] == "more than" else lowest
    for value in (good, highest):
        assert getattr(parse_settings({field.name: type(field.default)(value)}), field.name) == value


@pytest.mark.parametrize("field", [f for f in FIELDS.values() if f.kind == "choice"], ids=name_of)
def test_choices(field: SettingField) -> None:
    for choice in field.choices:
        for form in (choice, str(choice)):
            assert getattr(parse_settings({field.name: form}), field.name) == choice
    (problem,) = problems_of({field.name: "nothing"})
    assert all(str(choice) in problem for choice in field.choices)


def test_all_problems_at_once() -> None:
    problems = problems_of(
        {
            "epochs": 0,
            "optimizer": "Adagrad",
            "learning_rate": "fast",
            "resolution": 500,
            "repeats": 0,
            "flip": "perhaps",
            "no_such": 1,
            "epoch": 3,
            "seed": 5,
        }
    )
    assert {problem.partition(" ")[0].rstrip(":") for problem in problems} == {
        *("epochs", "optimizer", "learning_rate", "resolution", "repeats", "flip", "no_such", "epoch"),
    }
    assert len(problems) == 8
    assert any("from 1 to 10000" in problem for problem in problems)
    assert any("did you mean epochs?" in problem for problem in problems)


@pytest.mark.parametrize("bad", [8, 31, 100.5, 500, 516])
@pytest.mark.parametrize("name", ["resolution", "preview_size_px"])
def test_sizes_are_multiples_of_8(name: str, bad: float) -> None:
    assert name in problems_of({name: bad})[0]
    for good in (0, 32, 64, 520, 2048):
        assert getattr(parse_settings({name: good}), name) == good


def test_timestep_range_has_to_have_something_in_it() -> None:
    assert "500" in problems_of({"min_timestep": 500, "max_timestep": 500})[0]
    assert "900" in problems_of({"min_timestep": 900, "max_timestep": 100})[0]
    settings = parse_settings({"min_timestep": 499, "max_timestep": 500})
    assert (settings.min_timestep, settings.max_timestep) == (499, 500)


def test_bucket_steps_are_multiples_of_8() -> None:
    assert "12" in problems_of({"bucket_step_px": 12})[0]
    assert parse_settings({"bucket_step_px": 24}).bucket_step_px == 24


# --- texts, as typed by a person or given on the command line ---


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "12", 12),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "0", 0.0),
        ("alpha", "8", 8.0),
        ("train_text_encoder", "false", False),
        ("flip", "true", True),
        ("flip", "True", True),
        ("max_tokens", "225", 225),
        ("optimizer", "Lion", "Lion"),
        ("trigger_word", "猫, 1girl", "猫, 1girl"),
        ("preview_weights", "0, 0.6,1", (0.0, 0.6, 1.0)),
        ("preview_weights", "-1", (-1.0,)),
        ("preview_prompts", "a cat, sitting\n\n  自作 \n", ("a cat, sitting", "自作")),
        ("preview_prompts", "", ()),
    ],
)
def test_texts_become_values(name: str, text: str, value: Any) -> None:
    assert getattr(parse_settings({name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "2.5"),
        ("epochs", ""),
        ("epochs", "ten"),
        ("epochs", None),
        ("epochs", True),
        ("learning_rate", "1e-4x"),
        ("flip", "maybe"),
        ("preview_weights", ""),
        ("preview_weights", "0;1"),
        ("preview_weights", "0,11"),
        ("preview_weights", "nan"),
        ("base_model", 5),
    ],
)
def test_texts_that_mean_nothing(name: str, text: Any) -> None:
    (problem,) = problems_of({name: text})
    field = FIELDS[name]
    wrong = f"{name} ({field.label}): {text!r} is not {field.limits}"
    assert problem == (f"{field.label}: type {field.limits}." if text == "" else wrong)


def test_values_over_others() -> None:
    """A preset or an earlier run is the base; what is given replaces it."""
    base = parse_settings({"epochs": 7, "rank": 4})
    assert parse_settings({"rank": "8"}, base) == parse_settings({"epochs": 7, "rank": 8})
    assert base.rank == 4
