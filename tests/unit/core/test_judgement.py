"""The one score and the recommendation, worked by hand; what is drawn, and what that costs."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_train.core.judgement import (
    Judged,
    Judgement,
    judge_prompts,
    pictures_to_draw,
    ranked,
    recommend,
    score_of,
)


def row(**changes: Any) -> Judged:
    usual = {"lora": "a.safetensors", "step": 100, "weight": 1.0, "likeness": 0.8, "obedience": 1.0, "retention": 1.0}
    return Judged(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ({}, 0.8),
        ({"held_out_likeness": 0.4}, 0.6),
        ({"retention": 0.9}, 0.8),
        ({"retention": 0.7}, 0.4),
        ({"retention": 0.5}, 0),
        ({"obedience": 0.7}, 0.4),
        ({"obedience": 0.7, "retention": 0.7}, 0.2),
        ({"copying": 0.3}, 0.8),
        ({"copying": 0.5}, 0.4),
        ({"copying": 0.9}, 0),
        ({"broken": 0.25}, 0.6),
        ({"broken": 1.0}, 0),
        ({"likeness": 1.7}, 1),
        ({"likeness": -0.3, "retention": 0.0}, -0.3),
        ({"likeness": math.nan}, -1),
        ({"retention": math.nan}, 0),
        ({"copying": math.nan}, 0),
        ({"likeness": 0.0}, 0),
    ],
)
def test_the_score_by_hand(changes: dict[str, float], score: float) -> None:
    assert score_of(row(**changes)) == pytest.approx(score)


_NUMBER = st.floats(-2, 2) | st.sampled_from([math.nan, math.inf, -math.inf])


@given(_NUMBER, st.none() | _NUMBER, _NUMBER, _NUMBER, _NUMBER, _NUMBER)
def test_the_score_is_always_a_number(
    likeness: float, held_out: float | None, obedience: float, retention: float, copying: float, broken: float
) -> None:
    measured = row(
        likeness=likeness,
        held_out_likeness=held_out,
        obedience=obedience,
        retention=retention,
        copying=copying,
        broken=broken,
    )
    assert -1 <= score_of(measured) <= 1
    best = recommend([measured])
    assert bool(best.lora) == (score_of(measured) >= 0.02)
    assert "nan" not in best.reason
    assert best.reason.endswith(".")


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["likeness", "obedience", "retention"]))
def test_more_is_never_worse(one: float, other: float, what: str) -> None:
    low, high = sorted((one, other))
    assert score_of(row(**{what: low})) <= score_of(row(**{what: high}))


def test_the_best_is_recommended_with_what_its_numbers_mean() -> None:
    rows = [
        row(lora="copy.safetensors", likeness=1.0, copying=0.8),
        row(lora="good.safetensors", step=120, weight=0.8, likeness=0.82, retention=0.96),
        row(lora="lost.safetensors", likeness=0.95, retention=0.4),
    ]
    best = recommend(rows)
    assert (best.lora, best.weight) == ("good.safetensors", 0.8)
    assert best.reason == (
        "Step 120 at weight 0.8 is the best choice: 82% of the likeness that your pictures have among "
        "themselves; it follows prompts 100% as well as the base model, and still draws 96% of ordinary prompts right."
    )
    assert recommend([row(step=0, lora="a b.safetensors")]).reason.startswith("a b at weight 1 ")


def test_ties_go_to_the_earlier_save_and_the_smaller_weight() -> None:
    """Scores that differ in the third digit only are a tie."""
    rows = [
        row(lora="unknown.safetensors", step=0),
        row(lora="late.safetensors", step=200, likeness=0.804),
        row(lora="early.safetensors", step=100, weight=1.0),
        row(lora="early.safetensors", step=100, weight=0.6),
    ]
    assert [(own.lora.split(".")[0], own.weight) for own in ranked(rows)] == [
        ("early", 0.6),
        ("early", 1.0),
        ("late", 1.0),
        ("unknown", 1.0),
    ]
    assert recommend(rows)[:2] == ("early.safetensors", 0.6)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"likeness": 0.0}, "more like yours than the base model's"),
        ({"likeness": math.nan}, "more like yours than the base model's"),
        ({"retention": 0.2}, "lost what the base model knew"),
        ({"obedience": 0.1}, "no longer follows its prompt"),
        ({"copying": 1.0}, "only copies them"),
        ({"broken": 1.0}, "empty pictures"),
    ],
)
def test_nothing_is_recommended_where_nothing_is_better_than_the_base_model(
    changes: dict[str, float], why: str
) -> None:
    best = recommend([row(**changes), row(likeness=-0.5)])
    assert (best.lora, best.weight) == ("", 1.0)
    assert why in best.reason


def test_without_rows_nothing_is_recommended() -> None:
    assert recommend([]).lora == ""


def test_a_judgement_is_read_back_as_it_was_written() -> None:
    judgement = Judgement(rows=(row(samples=("samples/judge/ä-w1-1.png",), copies=(0.5,)),), lora="a.safetensors")
    assert msgspec.json.decode(msgspec.json.encode(judgement), type=Judgement) == judgement


def test_the_cost_counts_the_base_model_too() -> None:
    """2 LoRAs x 3 weights and the base model, each 8 pictures of the concept and 8 ordinary ones."""
    assert pictures_to_draw(loras=2, weights=3, pictures=8) == 7 * 16


def test_prompts_alternate_captions_and_foreign_contexts() -> None:
    captions = ["sks, red", "sks, red", "sks, blue", " ", "sks, green", "sks, white"]
    assert judge_prompts(captions, "sks", ("beach", "forest"), 6) == (
        "sks, red",
        "sks, beach",
        "sks, blue",
        "sks, forest",
        "sks, green",
        "sks, white",
    )
    assert judge_prompts(captions, "sks", ("beach", "forest"), 3) == ("sks, red", "sks, beach", "sks, blue")
    assert judge_prompts(["sks"] * 20, "sks", ("beach", "forest"), 8) == ("sks", "sks, beach", "sks, forest")
    assert judge_prompts([], "", ("beach",), 8) == ("beach",)
    many = [f"sks, {number}" for number in range(100)]
    assert judge_prompts(many, "sks", (), 4) == ("sks, 0", "sks, 25", "sks, 50", "sks, 75")
