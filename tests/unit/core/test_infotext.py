"""Generation parameters: the form that Automatic1111 1.10.1 writes, and reads back with its own rules."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from lora_train.core.infotext import DrawnFrom, Parameters, infotext, lora_tag

# How WebUIs take the line of settings apart (a fact of their format): name, colon, a quoted or a plain value.
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read(text: str) -> dict[str, str]:
    values = dict(SETTING.findall(text.splitlines()[-1]))
    return {name: json.loads(value) if value.startswith('"') else value for name, value in values.items()}


def told(**values: Any) -> str:
    given: dict[str, Any] = {
        "prompt": "<lora:x:1> cat",
        "negative_prompt": "",
        "sampler": "Euler a",
        "steps": 20,
        "cfg_scale": 7.0,
        "seed": 1,
        "size_px": (512, 768),
    }
    return infotext(Parameters(**{**given, **values}))


def test_everything_in_the_hosts_order() -> None:
    files = DrawnFrom(
        model="v1-5",
        model_sha256="0123456789abcdef",
        vae="some.vae.pt",
        vae_sha256="fedcba9876543210",
        lora="桜-000002",
        lora_hash="aaaabbbbccccdddd",
    )
    text = told(negative_prompt="dog", sampler="DPM++ 2M", cfg_scale=4.5, clip_skip=2, files=files)
    assert text == (
        "<lora:x:1> cat\n"
        "Negative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, Seed: 1, Size: 512x768, "
        "Model hash: 0123456789, Model: v1-5, VAE hash: fedcba9876, VAE: some.vae.pt, Clip skip: 2, RNG: CPU, "
        'Lora hashes: "桜-000002: aaaabbbbcccc"'
    )


def test_what_is_not_known_is_left_out() -> None:
    assert told() == (
        "<lora:x:1> cat\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x768, RNG: CPU"
    )
    assert "Clip skip" not in told(clip_skip=1)


@pytest.mark.parametrize("name", ['a, b: "c"', "a\\b", "日本語, кот"])
def test_names_with_signs_are_read_back(name: str) -> None:
    values = read(told(files=DrawnFrom(model=name, lora=name, lora_hash="0" * 64)))
    assert values["Model"] == name
    assert values["Lora hashes"] == f"{name.replace(',', '').replace(':', '')}: {'0' * 12}"
    assert values["Size"] == "512x768"


def test_an_old_name_is_told_by_its_new_ones() -> None:
    values = read(told(sampler="DPM++ 2M Karras"))
    assert (values["Sampler"], values["Schedule type"]) == ("DPM++ 2M", "Karras")


def test_tags() -> None:
    assert [lora_tag("x", weight) for weight in (0, 0.1 + 0.2, -1, 1.25)] == [
        "<lora:x:0>",
        "<lora:x:0.3>",
        "<lora:x:-1>",
        "<lora:x:1.25>",
    ]
