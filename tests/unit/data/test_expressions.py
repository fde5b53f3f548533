"""A person's regular expressions: what they find, what is wrong with them, and that none is endless."""

from __future__ import annotations

import time

import pytest

from lora_train.core.errors import ConfigError
from lora_train.data import expressions
from lora_train.data.expressions import LONGEST_CAPTION, replace_all, search_all


def test_search_and_replace_in_any_script() -> None:
    assert search_all(["HAIR", "猫|犬", "^$"], ["long hair", "白い猫", ""]) == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert search_all(["(?-i:HAIR)"], ["long hair"]) == [[False]]
    assert replace_all(r"(\w+) hair", r"hair (\1)", ["Long Hair", "猫 hair"]) == ["hair (Long)", "hair (猫)"]
    assert replace_all("x", "", []) == []


@pytest.mark.parametrize(
    ("expression", "replacement", "told"),
    [
        ("a(b", "", "character 2"),
        ("[z-a]", "", "character 2"),
        ("(?<=a*)", "", "look-behind"),
        ("a", r"\2", "character 2"),
        ("a", r"\g<x>", "unknown group"),
        ("a" * 1001, "", "1000 characters"),
    ],
)
def test_what_is_wrong_is_told(expression: str, replacement: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace_all(expression, replacement, [])
    assert told in error.value.message
    assert error.value.message.endswith(".")


def test_none_is_endless() -> None:
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match="takes too long"):
        search_all([r"(a+)+$"], ["a" * 20_000 + "?"])
    assert time.perf_counter() - begun < 4, "2.4 s, and a busy machine's patience"


@pytest.mark.parametrize("expression", [r"(a|a)*b", r"(a*)*b", r"(\w+\s?)*!", r"a*a*a*a*a*b"])
def test_whatever_makes_it_endless(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    monkeypatch.setattr(expressions, "_LIMIT_S", 0.8)
    assert search_all([expression], ["a?"]) == [[False]], "it is none of the pattern alone"
    with pytest.raises(ConfigError, match="takes too long"):
        search_all([expression], ["a" * 20_000 + "?"])


def test_a_caption_does_not_grow_without_end() -> None:
    with pytest.raises(ConfigError, match="longer than 20,000"):
        replace_all("", "x" * 100, ["a" * 1000])
    assert replace_all("a", "b", ["a" * (LONGEST_CAPTION + 1)]) == ["b" * (LONGEST_CAPTION + 1)]
