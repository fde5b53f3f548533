"""What optimizers may be told, and what is said to those who tell them something else."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from lora_train.core.config import Optimizer, TrainSettings
from lora_train.core.optimizers import (
    OPTIMIZERS,
    absent_problem,
    argument_problems,
    broken_problem,
    is_absent,
    metadata_text,
    optimizer_arguments,
    optimizer_warnings,
    optional_optimizers,
)
from lora_train.core.settings import check_settings

PAGE = Path(__file__).parents[3] / "docs" / "optimizers.md"


def settings(optimizer: Optimizer = "AdamW", *arguments: str, **values: Any) -> TrainSettings:
    return TrainSettings(optimizer=optimizer, optimizer_args=arguments, **values)


def test_the_table_has_every_optimizer() -> None:
    assert tuple(OPTIMIZERS) == get_args(Optimizer)


@pytest.mark.parametrize(
    ("optimizer", "line", "expected"),
    [
        ("AdamW", "betas=0.9,0.99", {"betas": (0.9, 0.99)}),
        ("AdamW", " betas = (0.8, 0.95) ", {"betas": (0.8, 0.95)}),
        ("AdamW", "betas=[0, 0.99]", {"betas": (0.0, 0.99)}),
        ("AdamW", "eps=1e-6", {"eps": 1e-6}),
        ("Adam", "amsgrad=True", {"amsgrad": True}),
        ("Adam", "amsgrad=FALSE", {"amsgrad": False}),
        ("Prodigy", "d_coef=2", {"d_coef": 2}),
        ("Prodigy", "beta3=None", {"beta3": None}),
        ("Prodigy", "growth_rate=inf", {"growth_rate": math.inf}),
        ("Prodigy", "slice_p=11", {"slice_p": 11}),
        ("Prodigy", "safeguard_warmup=false", {"safeguard_warmup": False}),
        ("AdaFactor", "eps=1e-30,1e-3", {"eps": (1e-30, 1e-3)}),
        ("AdaFactor", "scale_parameter=true", {"scale_parameter": True}),
        ("AdaFactor", "decay_rate=-0.7", {"decay_rate": -0.7}),
        # What guides for sd-scripts advise, and what is so here anyway.
        ("AdaFactor", "relative_step=False", {"relative_step": False}),
        ("SGDNesterov", "nesterov=True", {"nesterov": True}),
    ],
)
def test_values_are_read(optimizer: Optimizer, line: str, expected: dict[str, Any]) -> None:
    own = settings(optimizer, line)
    assert argument_problems(own) == []
    told = optimizer_arguments(own)
    assert {name: told[name] for name in expected} == expected
    for name, value in expected.items():
        assert type(told[name]) is type(value)


@pytest.mark.parametrize(
    ("optimizer", "line", "words"),
    [
        ("AdamW", "betas", "'betas' is not written as key=value"),
        ("AdamW", "=0.9", "not written as key=value"),
        ("AdamW", "eps=", "not written as key=value"),
        ("AdamW", "beta=0.9,0.99", "AdamW takes no beta (did you mean betas?)"),
        ("AdamW", "d_coef=2", "AdamW takes no d_coef (it takes betas, eps, amsgrad)"),
        ("AdamW", "lr=1", "lr is a setting of its own here, learning_rate"),
        ("AdamW", "weight_decay=0.1", "weight_decay is a setting of its own here, weight_decay"),
        ("AdamW", "params=1", "AdamW takes no params"),
        ("AdamWScheduleFree", "warmup_steps=10", "warmup_steps is a setting of its own here, lr_warmup_steps"),
        ("AdamW", "betas=0.9", "betas: '0.9' is not two numbers from 0 to below 1"),
        ("AdamW", "betas=0.9,1", "is not two numbers"),
        ("AdamW", "betas=0.9,x", "is not two numbers"),
        ("AdamWScheduleFree", "betas=0,0.99", "is not two numbers between 0 and 1"),
        ("AdamW", "eps=0", "eps: '0' is not a number above 0"),
        ("AdamW", "eps=true", "is not a number above 0"),
        ("AdamW", "eps=nan", "is not a number above 0"),
        ("AdamW", "amsgrad=1", "amsgrad: '1' is not true or false"),
        ("SGDNesterov", "momentum=1", "is not a number above 0 and below 1"),
        ("SGDNesterov", "momentum=0", "is not a number above 0 and below 1"),
        ("SGDNesterov", "nesterov=false", "nesterov is always true here"),
        ("AdaFactor", "relative_step=True", "relative_step is always false here"),
        ("Prodigy", "slice_p=1.5", "is not a whole number from 1"),
        ("Prodigy", "slice_p=true", "is not a whole number from 1"),
        ("AdamWScheduleFree", "r=inf", "is not a number"),
    ],
)
def test_what_is_wrong_is_told(optimizer: Optimizer, line: str, words: str) -> None:
    own = settings(optimizer, line)
    (problem,) = argument_problems(own)
    assert problem.startswith("optimizer_args (Optimizer arguments): ")
    assert words in problem
    assert optimizer_arguments(own) == optimizer_arguments(settings(optimizer))
    assert problem in check_settings({}, own)[1]


def test_all_problems_are_told_at_once() -> None:
    assert len(argument_problems(settings("Lion", "betas=2,2", "betas=0.9,0.99", "x=1", "y"))) == 3


@pytest.mark.parametrize(
    ("optimizer", "values", "text"),
    [
        ("AdamW", {}, "torch.optim.adamw.AdamW(weight_decay=0.01)"),
        ("Adam", {}, "torch.optim.adam.Adam(weight_decay=0.01)"),
        ("AdamW8bit", {}, "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.01)"),
        ("Lion", {"betas": "0.95,0.98"}, "lora_train.engine.lion.Lion(weight_decay=0.01,betas=(0.95, 0.98))"),
        ("SGDNesterov", {}, "torch.optim.sgd.SGD(weight_decay=0.01,momentum=0.9,nesterov=True)"),
        ("SGDNesterov8bit", {}, "bitsandbytes.optim.sgd.SGD8bit(weight_decay=0.01,momentum=0.9)"),
        ("DAdaptation", {}, "dadaptation.dadapt_adam.DAdaptAdam(weight_decay=0.01,decouple=True)"),
        (
            "Prodigy",
            {"d_coef": "0.8"},
            "prodigyopt.prodigy.Prodigy(weight_decay=0.01,use_bias_correction=True,safeguard_warmup=True,d_coef=0.8)",
        ),
        (
            "AdaFactor",
            {},
            "transformers.optimization.Adafactor(weight_decay=0.01,scale_parameter=False,relative_step=False,"
            "warmup_init=False)",
        ),
        (
            "AdamWScheduleFree",
            {},
            "schedulefree.adamw_schedulefree.AdamWScheduleFree(weight_decay=0.01,warmup_steps=0)",
        ),
    ],
)
def test_metadata_names_class_and_arguments(optimizer: Optimizer, values: dict[str, str], text: str) -> None:
    assert metadata_text(settings(optimizer, *(f"{name}={value}" for name, value in values.items()))) == text


def test_the_page_lists_every_optimizer() -> None:
    """The table is held against the code: name, package, usual rate, arguments."""
    wanted = [
        f"| {name} | {f'`{facts.package}`' if facts.package else ''} | {facts.usual_rate:g} | "
        f"{', '.join(f'`{argument}`' for argument in facts.arguments)} |"
        for name, facts in OPTIMIZERS.items()
    ]
    listed = PAGE.read_text(encoding="utf-8").splitlines()
    start = listed.index(wanted[0])
    assert listed[start : start + len(wanted)] == wanted


# --- what suits it ---


@pytest.mark.parametrize(
    ("optimizer", "values", "words"),
    [
        ("Prodigy", {"learning_rate": 1e-4, "text_encoder_lr": 1.0}, ["Learning rate: Prodigy finds the rate itself"]),
        ("DAdaptation", {"learning_rate": 1.0}, ["Text encoder learning rate: DAdaptation finds the rate itself"]),
        ("DAdaptation", {"learning_rate": 1.0, "train_text_encoder": False}, []),
        ("Prodigy", {"learning_rate": 0.0, "text_encoder_lr": 1.0}, []),
        ("AdamW", {"learning_rate": 1.0}, ["Learning rate: 1 is very high for AdamW; 0.0001 is usual."]),
        ("AdamW", {"text_encoder_lr": 1.0}, ["Text encoder learning rate: 1 is very high"]),
        ("Lion", {}, []),
        ("SGDNesterov", {"learning_rate": 0.1}, []),
        ("SGDNesterov8bit", {}, ["the momentum of bitsandbytes"]),
        ("AdamWScheduleFree", {}, ["works without a schedule: cosine is taken as constant"]),
        ("AdamWScheduleFree", {"lr_scheduler": "constant"}, []),
        ("AdamWScheduleFree", {"lr_scheduler": "constant", "ema_decay": 0.9}, ["averages its steps itself"]),
    ],
)
def test_what_is_hardly_meant_is_told(optimizer: Optimizer, values: dict[str, Any], words: list[str]) -> None:
    warnings = optimizer_warnings(settings(optimizer, **values))
    assert len(warnings) == len(words)
    for warning, part in zip(warnings, words, strict=True):
        assert part in warning
        assert warning[0].isupper()
        assert warning.endswith((".", ".)"))


# --- those that are not always there ---


def test_optional_ones() -> None:
    assert optional_optimizers() == {
        "AdamW8bit": "bitsandbytes",
        "AdamWScheduleFree": "schedulefree",
        "SGDNesterov8bit": "bitsandbytes",
        "DAdaptation": "dadaptation",
        "Prodigy": "prodigyopt",
    }


def test_absent_ones_are_known_by_their_package() -> None:
    def find(package: str) -> object:
        return None if package == "prodigyopt" else object()

    assert is_absent("Prodigy", find)
    assert not is_absent("DAdaptation", find)
    assert not is_absent("AdamW", lambda package: None), "it needs no other package"
    told = absent_problem("Prodigy")
    assert "Prodigy needs the Python package prodigyopt, which is not installed" in told
    assert told.endswith(f'"{sys.executable}" -m pip install prodigyopt')


def test_broken_ones_are_told_with_the_error() -> None:
    told = broken_problem("AdamW8bit", "OSError: no libcudart.so")
    assert "bitsandbytes is installed, but AdamW8bit does not work here (OSError: no libcudart.so)" in told
