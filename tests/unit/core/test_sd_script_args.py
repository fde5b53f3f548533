"""Options of sd-scripts: what each means here, how they are written, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.config import TrainSettings
from lora_train.core.sd_script_args import OPTIONS, effective_settings, known_part
from lora_train.core.settings import setting_fields

PAGE = Path(__file__).parents[3] / "docs" / "sd_script_args.md"


def changed_by(text: str, **settings: Any) -> dict[str, Any]:
    """The settings that are others afterwards."""
    before = TrainSettings(**settings)
    effective = effective_settings(TrainSettings(sd_script_args=text, **settings))
    assert effective.problems == []
    assert effective.settings.sd_script_args == ""
    after = effective.settings
    found = {name: getattr(after, name) for name in before.__struct_fields__}
    return {name: value for name, value in found.items() if value != getattr(before, name)}


def problems_of(text: str, **settings: Any) -> list[str]:
    return effective_settings(TrainSettings(sd_script_args=text, **settings)).problems


# Values and meanings as in the help texts of sd-scripts' train_network.py.
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "learning_rate": ("--learning_rate=2e-4", {"learning_rate": 2e-4}),
    "unet_lr": ("--unet_lr 0.0003", {"learning_rate": 3e-4}),
    "text_encoder_lr": ("--text_encoder_lr 1e-5 1e-5", {"text_encoder_lr": 1e-5}),
    "network_train_unet_only": ("--network_train_unet_only", {"train_text_encoder": False}),
    "lr_scheduler": ('--lr_scheduler="constant_with_warmup"', {"lr_scheduler": "constant_with_warmup"}),
    "lr_warmup_steps": ("--lr_warmup_steps=100", {"lr_warmup_steps": 100}),
    "lr_scheduler_num_cycles": ("--lr_scheduler_num_cycles=3", {"lr_cycles": 3}),
    "optimizer_type": ("--optimizer_type prodigy", {"optimizer": "Prodigy"}),
    "optimizer_args": (
        '--optimizer_args "betas=0.9,0.99" weight_decay=0.1',
        {"optimizer_args": ("betas=0.9,0.99",), "weight_decay": 0.1},
    ),
    "max_grad_norm": ("--max_grad_norm=0.0", {"max_grad_norm": 0.0}),
    "gradient_accumulation_steps": ("--gradient_accumulation_steps=4", {"gradient_accumulation_steps": 4}),
    "gradient_checkpointing": ("--gradient_checkpointing", {"gradient_checkpointing": True}),
    "fp8_base": ("--fp8_base", {"base_weights": "fp8"}),
    "torch_compile": ("--torch_compile", {"compile_blocks": True}),
    "train_batch_size": ("--train_batch_size=2", {"batch_size": 2}),
    "max_train_epochs": ("--max_train_epochs=7", {"epochs": 7}),
    "save_every_n_epochs": ("--save_every_n_epochs=5", {"save_every_epochs": 5}),
    "seed": ("--seed=7", {"seed": 7}),
    "clip_skip": ("--clip_skip=2", {"clip_skip": 2}),
    "max_token_length": ("--max_token_length=225", {"max_tokens": 225}),
    "resolution": ("--resolution=768,768", {"resolution": 768}),
    "bucket_reso_steps": ("--bucket_reso_steps=32", {"bucket_step_px": 32}),
    "mixed_precision": ("--mixed_precision=no", {"precision": "fp32"}),
    "save_precision": ("--save_precision=float", {"save_precision": "fp32"}),
    "network_dim": ("--network_dim=32", {"rank": 32}),
    "network_alpha": ("--network_alpha=1", {"alpha": 1.0}),
    "network_dropout": ("--network_dropout=0.1", {"network_dropout": 0.1}),
    "network_args": (
        '--network_args "conv_dim=8" "conv_alpha=4" rank_dropout=0.1 module_dropout=0.2',
        {"conv_rank": 8, "conv_alpha": 4.0, "rank_dropout": 0.1, "module_dropout": 0.2},
    ),
    "network_weights": (
        r"--network_weights='C:\my loras\a.safetensors'",
        {"continue_from": r"C:\my loras\a.safetensors"},
    ),
    "scale_weight_norms": ("--scale_weight_norms=1", {"scale_weight_norms": 1.0}),
    "shuffle_caption": ("--shuffle_caption", {"shuffle_captions": True}),
    "keep_tokens": ("--keep_tokens=1", {"keep_tags": 1}),
    "caption_dropout_rate": ("--caption_dropout_rate=0.05", {"caption_dropout": 0.05}),
    "flip_aug": ("--flip_aug", {"flip": True}),
    "loss_type": ("--loss_type=huber", {"loss": "huber"}),
    "huber_schedule": ("--huber_schedule=exponential", {"huber_schedule": "exponential"}),
    "huber_c": ("--huber_c=0.2", {"huber_c": 0.2}),
    "masked_loss": ("--masked_loss", {"masked_loss": True}),
    "prior_loss_weight": ("--prior_loss_weight=0.5", {"prior_loss_weight": 0.5}),
    "min_snr_gamma": ("--min_snr_gamma=1", {"min_snr_gamma": 1.0}),
    "debiased_estimation_loss": ("--debiased_estimation_loss", {"debiased_estimation": True}),
    "noise_offset": ("--noise_offset=0.05", {"noise_offset": 0.05}),
    "multires_noise_iterations": ("--multires_noise_iterations=6", {"multires_noise_iterations": 6}),
    "multires_noise_discount": ("--multires_noise_discount=0.8", {"multires_noise_discount": 0.8}),
    "min_timestep": ("--min_timestep=100", {"min_timestep": 100}),
    "max_timestep": ("--max_timestep=900", {"max_timestep": 900}),
    "v_parameterization": ("--v_parameterization", {"prediction": "v_prediction"}),
    "zero_terminal_snr": ("--zero_terminal_snr", {"zero_terminal_snr": "on"}),
}


def test_every_option_has_an_example() -> None:
    assert list(EXAMPLES) == list(OPTIONS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_option_does_what_it_says(name: str) -> None:
    text, expected = EXAMPLES[name]
    assert changed_by(text) == expected
    assert set(expected) <= set(OPTIONS[name].settings)
    assert known_part(text)[1] == []
    assert changed_by(known_part(text)[0]) == expected, "taken over, it means the same"


def test_all_of_them_together() -> None:
    """Written after one another, in both orders. (`unet_lr` wins over `learning_rate`, as there.)"""
    texts = [text for text, _ in EXAMPLES.values()]
    expected: dict[str, Any] = {}
    for _, values in EXAMPLES.values():
        expected |= values
    assert changed_by(" ".join(texts)) == expected
    assert changed_by("\n".join(reversed(texts))) == expected


def test_only_settings_that_there_are() -> None:
    fields = {field.name for field in setting_fields()}
    assert {setting for option in OPTIONS.values() for setting in option.settings} <= fields


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("  \n ", {}),
        ("--seed=7", {"seed": 7}),
        ("--seed 7", {"seed": 7}),
        ("--seed='7'", {"seed": 7}),
        ('--seed "7"', {"seed": 7}),
        ("--seed=7 --seed=8", {"seed": 8}),
        ("--min_snr_gamma=0\t--flip_aug\n--seed  7", {"min_snr_gamma": 0.0, "flip": True, "seed": 7}),
        ("--flip_aug=true", {"flip": True}),
        ("--lr_scheduler=cosine", {}),
    ],
)
def test_how_they_may_be_written(text: str, expected: dict[str, Any]) -> None:
    assert changed_by(text) == expected


def test_arguments_of_the_optimizer_join_those_of_the_setting() -> None:
    own = ("betas = 0.8,0.9", "eps=1e-6")
    found = changed_by("--optimizer_args betas=0.9,0.99", optimizer_args=own)
    assert found == {"optimizer_args": ("eps=1e-6", "betas=0.9,0.99")}


def test_what_was_overridden_is_told() -> None:
    text = "--max_grad_norm=0.5 --seed=23 --flip_aug --optimizer_args betas=0.9,0.99 --resolution=768"
    assert effective_settings(TrainSettings(sd_script_args=text)).overridden == [
        "Optimizer arguments: betas=0.9,0.99 instead of none, by the sd_script args.",
        "Max gradient norm: 0.5 instead of 1, by the sd_script args.",
        "Resolution: 768 instead of 0, by the sd_script args.",
        "Flip: on instead of off, by the sd_script args.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("--xformers", "sd_script_args: --xformers is not known here"),
        ("--network_train_text_encoder_only", "sd_script_args: --network_train_text_encoder_only is not known here"),
        ("--max_grad_nrm=1", "sd_script_args: --max_grad_nrm is not known here (did you mean --max_grad_norm?)"),
        ("--=1", "sd_script_args: -- is not known here"),
        ("seed=7", "sd_script_args: seed=7 belongs to no option; options begin with --"),
        ("-seed 7", "sd_script_args: -seed belongs to no option"),
        ("--seed", "sd_script_args: --seed: give one value"),
        ("--seed 1 2", "sd_script_args: --seed: give one value"),
        ("--seed=x", "seed (Seed): 'x' is not a whole number"),
        ("--lr_scheduler=adafactor", "lr_scheduler (Learning rate schedule): 'adafactor' is not one of constant"),
        ("--optimizer_type=PagedAdamW", "optimizer (Optimizer type): 'PagedAdamW' is not one of AdamW"),
        ("--flip_aug=no", "sd_script_args: --flip_aug: it takes no value; leave no out"),
        ("--resolution=512,768", "sd_script_args: --resolution: give one size"),
        ("--text_encoder_lr 1e-5 2e-5", "sd_script_args: --text_encoder_lr: give one value"),
        ("--network_args block_dims=1,2", "sd_script_args: --network_args: block_dims is not known here"),
        ("--network_args conv_dim", "sd_script_args: --network_args: 'conv_dim' is not written as key=value"),
        ("--network_args", "sd_script_args: --network_args: give key=value"),
        ("--optimizer_args beta=1", "optimizer_args (Optimizer arguments): AdamW takes no beta (did you mean betas?)"),
        ("--max_token_length=100", "max_tokens (Max tokens): 100 is not one of 75, 150, 225"),
        ("--min_timestep=900 --max_timestep=100", "min_timestep (Lowest timestep): 900 is not below"),
        ('--seed="7', "sd_script_args: a quotation mark is not closed"),
    ],
)
def test_what_is_refused_is_told_by_its_name(text: str, problem: str) -> None:
    (told,) = problems_of(text)
    assert told.startswith(problem)


def test_all_problems_at_once_and_the_rest_is_read() -> None:
    effective = effective_settings(TrainSettings(sd_script_args="--a --seed=5 --b=1 --epochs 3 --rank=x"))
    assert len(effective.problems) == 4
    assert effective.settings.seed == 5


def test_a_combination_that_the_options_put_right() -> None:
    assert problems_of("--max_timestep=900", min_timestep=500, max_timestep=400) == []


def test_the_known_part_keeps_what_can_be_read() -> None:
    kept, problems = known_part("--seed=x --flip_aug --xformers --network_weights='/a b/\"c\".safetensors'")
    assert kept == "--network_weights '/a b/\"c\".safetensors' --flip_aug"
    assert len(problems) == 2


def test_the_page_lists_every_option() -> None:
    """The table is held against the code: option, what it takes, and the labels of the settings that it changes."""
    labels = {field.name: field.label for field in setting_fields()}
    wanted = [
        f"| `--{name}` | {option.takes} | {', '.join(labels[setting] for setting in option.settings)} |"
        for name, option in OPTIONS.items()
    ]
    listed = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| `--", line)]
    assert listed == wanted
