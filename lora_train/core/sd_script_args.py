"""Options of kohya-ss/sd-scripts by their own names, as the original's box for extra arguments took them.

Those that mean a setting of ours are read; every other one is refused by its name. What is written here wins over the
setting itself, as in the original.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.errors import MOST_OF_REASON, shown
from lora_train.core.optimizers import OPTIMIZERS
from lora_train.core.settings import check_settings, setting_fields

_LONGEST_TEXT = 10_000
"""Characters: all options there are, with values, take about 2,000."""
_MOST_UNKNOWN = 10

_Read = Callable[[Sequence[str], TrainSettings], dict[str, Any]]
"""The values of an option, and the settings before it -> the settings that it changes. Raises ValueError."""


class Option(NamedTuple):
    """An option of sd-scripts."""

    settings: tuple[str, ...]
    """Those of ours that it changes."""
    takes: str
    """What stands behind it, in words."""
    read: _Read


class Effective(NamedTuple):
    """What a training is done with, when the options are put over the settings."""

    settings: TrainSettings
    """With an empty `sd_script_args`: nothing is left to be done with it."""
    overridden: list[str]
    """A sentence for every setting that is another one than on the page."""
    problems: list[str]
    """A sentence for everything that is wrong with the options, or with the settings when they are put over them."""


def _one(setting: str, words: Mapping[str, Any] | None = None, takes: str = "a value") -> Option:
    """An option with one value; `words` are those that sd-scripts has another word for."""

    def read(values: Sequence[str], _: TrainSettings) -> dict[str, Any]:
        if len(values) != 1:
            raise ValueError("give one value")
        return {setting: (words or {}).get(values[0].lower(), values[0])}

    return Option((setting,), takes, read)


def _switch(**values: Any) -> Option:
    """An option without a value."""

    def read(given: Sequence[str], _: TrainSettings) -> dict[str, Any]:
        if given and [value.lower() for value in given] != ["true"]:
            raise ValueError(f"it takes no value; leave {' '.join(given)} out")
        return values

    return Option(tuple(values), "nothing", read)


def _resolution(values: Sequence[str], _: TrainSettings) -> dict[str, Any]:
    sides = {side.strip() for value in values for side in value.split(",")}
    if len(sides) != 1:
        raise ValueError("give one size, as 512 or 512,512: pictures of other shapes find a size of the same area")
    return {"resolution": sides.pop()}


def _text_encoder_rate(values: Sequence[str], _: TrainSettings) -> dict[str, Any]:
    if len(set(values)) != 1:
        raise ValueError("give one value: all text encoders have the same rate here")
    return {"text_encoder_lr": values[0]}


def _tokens(values: Sequence[str], _: TrainSettings) -> dict[str, Any]:
    if len(values) != 1:
        raise ValueError("give one value")
    return {"max_tokens": int(values[0]) if values[0].isdecimal() else values[0]}


def _pairs(values: Sequence[str]) -> dict[str, str]:
    """`key=value` texts, each with what stands on its left."""
    pairs: dict[str, str] = {}
    for text in values:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not name or not value:
            raise ValueError(f"{text!r} is not written as key=value")
        pairs[name] = value
    if not pairs:
        raise ValueError("give key=value, as often as there are keys")
    return pairs


_NETWORK_ARGS = {
    "conv_dim": "conv_rank",
    "conv_alpha": "conv_alpha",
    "rank_dropout": "rank_dropout",
    "module_dropout": "module_dropout",
}


def _network_args(values: Sequence[str], _: TrainSettings) -> dict[str, Any]:
    pairs = _pairs(values)
    if unknown := [name for name in pairs if name not in _NETWORK_ARGS]:
        raise ValueError(f"{', '.join(unknown)} is not known here, {', '.join(_NETWORK_ARGS)} are")
    return {_NETWORK_ARGS[name]: value for name, value in pairs.items()}


def _optimizer_args(values: Sequence[str], settings: TrainSettings) -> dict[str, Any]:
    """Those of the same key win over the ones of the setting."""
    pairs = _pairs(values)
    decay = {"weight_decay": pairs.pop("weight_decay")} if "weight_decay" in pairs else {}
    kept = [line for line in settings.optimizer_args if line.partition("=")[0].strip() not in pairs]
    return decay | {"optimizer_args": [*kept, *(f"{name}={value}" for name, value in pairs.items())]}


_OPTIMIZERS = {name.lower(): name for name in OPTIMIZERS} | {"dadaptadam": "DAdaptation"}

OPTIONS: dict[str, Option] = {
    "learning_rate": _one("learning_rate", takes="a number"),
    "unet_lr": _one("learning_rate", takes="a number"),  # after `learning_rate`, which it wins over
    "text_encoder_lr": Option(("text_encoder_lr",), "a number", _text_encoder_rate),
    "network_train_unet_only": _switch(train_text_encoder=False, train_sdxl_text_encoders=False),
    "lr_scheduler": _one("lr_scheduler", takes="its name"),
    "lr_warmup_steps": _one("lr_warmup_steps", takes="a number of steps"),
    "lr_scheduler_num_cycles": _one("lr_cycles", takes="a number"),
    "optimizer_type": _one("optimizer", _OPTIMIZERS, "its name"),
    "optimizer_args": Option(("optimizer_args", "weight_decay"), "key=value, several times", _optimizer_args),
    "max_grad_norm": _one("max_grad_norm", takes="a number"),
    "gradient_accumulation_steps": _one("gradient_accumulation_steps", takes="a number"),
    "gradient_checkpointing": _switch(gradient_checkpointing=True),
    "fp8_base": _switch(base_weights="fp8"),
    "torch_compile": _switch(compile_blocks=True),
    "train_batch_size": _one("batch_size", takes="a number"),
    "max_train_epochs": _one("epochs", takes="a number"),
    "save_every_n_epochs": _one("save_every_epochs", takes="a number"),
    "seed": _one("seed", takes="a number"),
    "clip_skip": _one("clip_skip", takes="a number"),
    "max_token_length": Option(("max_tokens",), "75, 150 or 225", _tokens),
    "resolution": Option(("resolution",), "a size, or twice the same with a comma", _resolution),
    "bucket_reso_steps": _one("bucket_step_px", takes="a number"),
    "mixed_precision": _one("precision", {"no": "fp32"}, "no, fp16 or bf16"),
    "save_precision": _one("save_precision", {"float": "fp32"}, "float, fp16 or bf16"),
    "network_dim": _one("rank", takes="a number"),
    "network_alpha": _one("alpha", takes="a number"),
    "network_dropout": _one("network_dropout", takes="a number"),
    "network_args": Option(tuple(_NETWORK_ARGS.values()), "key=value, several times", _network_args),
    "network_weights": _one("continue_from", takes="the path of a LoRA"),
    "scale_weight_norms": _one("scale_weight_norms", takes="a number"),
    "shuffle_caption": _switch(shuffle_captions=True),
    "keep_tokens": _one("keep_tags", takes="a number"),
    "caption_dropout_rate": _one("caption_dropout", takes="a number"),
    "flip_aug": _switch(flip=True),
    "loss_type": _one("loss", {"l2": "mse"}, "l2, huber or smooth_l1"),
    "huber_schedule": _one("huber_schedule", takes="its name"),
    "huber_c": _one("huber_c", takes="a number"),
    "masked_loss": _switch(masked_loss=True),
    "prior_loss_weight": _one("prior_loss_weight", takes="a number"),
    "min_snr_gamma": _one("min_snr_gamma", takes="a number"),
    "debiased_estimation_loss": _switch(debiased_estimation=True),
    "noise_offset": _one("noise_offset", takes="a number"),
    "multires_noise_iterations": _one("multires_noise_iterations", takes="a number"),
    "multires_noise_discount": _one("multires_noise_discount", takes="a number"),
    "min_timestep": _one("min_timestep", takes="a number"),
    "max_timestep": _one("max_timestep", takes="a number"),
    "v_parameterization": _switch(prediction="v_prediction"),
    "zero_terminal_snr": _switch(zero_terminal_snr="on"),
}
"""By the name in sd-scripts, in the order in which they take effect, whatever the order in which they are written."""


def effective_settings(settings: TrainSettings) -> Effective:
    """The settings with the options of their `sd_script_args` put over them."""
    own = msgspec.structs.replace(settings, sd_script_args="")
    found, problems = _split(settings.sd_script_args)
    values: dict[str, Any] = {}
    for name, given in found.items():
        read, problem = _read(name, given, own)
        values |= read
        problems += [problem] if problem else []
    applied, wrong = check_settings(values, own)
    return Effective(applied, _differences(own, applied, values), problems + wrong)


def known_part(text: str) -> tuple[str, list[str]]:
    """Of a text with options those that can be read, and a sentence for each of the others."""
    usual = TrainSettings()
    found, problems = _split(text)
    kept: list[str] = []
    for name, given in found.items():
        values, problem = _read(name, given, usual)
        wrong = [problem] if problem else check_settings(values, usual)[1]
        problems += wrong
        if not wrong:
            kept.append(" ".join([f"--{name}", *map(_quoted, given)]))
    return " ".join(kept), problems


def _split(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """The values of every known option, and a sentence for everything else. Of an option given twice, the last counts.

    Quotes are those of a shell; a backslash is no escape, but part of a Windows path.
    """
    if len(text) > _LONGEST_TEXT:
        return {}, [f"sd_script_args: {len(text):,} characters are too many, the limit is {_LONGEST_TEXT:,}"]
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        words = list(lexer)
    except ValueError:
        return {}, ["sd_script_args: a quotation mark is not closed"]
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    values: list[str] | None = None
    for word in words:
        if word.startswith("--"):
            name, separator, value = word[2:].partition("=")
            values = found[name] = [value] if separator else []
        elif values is None:
            problems.append(f"sd_script_args: {shown(word)} belongs to no option; options begin with --")
            values = []
        else:
            values.append(word)
    unknown = [name for name in found if name not in OPTIONS]
    problems += [_unknown(name) for name in unknown[:_MOST_UNKNOWN]]
    if more := len(unknown[_MOST_UNKNOWN:]):
        problems.append(f"sd_script_args: {more} more options are not known here")
    return {name: found[name] for name in OPTIONS if name in found}, problems


_SAME_BUT_FOR_A_SLIP = 0.85
"""Options of long common beginnings may mean the opposite: `--network_train_text_encoder_only` is 0.74 of
`--network_train_unet_only`."""


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=_SAME_BUT_FOR_A_SLIP)
    return f"sd_script_args: --{shown(name)} is not known here" + (f" (did you mean --{close[0]}?)" if close else "")


def _read(name: str, given: Sequence[str], settings: TrainSettings) -> tuple[dict[str, Any], str]:
    """What the option changes, or else what is wrong with it."""
    try:
        return OPTIONS[name].read(given, settings), ""
    except ValueError as error:
        return {}, f"sd_script_args: --{name}: {shown(error, MOST_OF_REASON)}"


def _differences(before: TrainSettings, after: TrainSettings, changed: Mapping[str, Any]) -> list[str]:
    other = [name for name in changed if getattr(before, name) != getattr(after, name)]
    labels = {field.name: field.label for field in setting_fields()} if other else {}
    return [
        f"{labels[name]}: {_text(getattr(after, name))} instead of {_text(getattr(before, name))}, by the sd_script "
        "args."
        for name in other
    ]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return shown(" ".join(map(str, value))) or "none"  # type: ignore[reportUnknownArgumentType]
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else shown(value) or "none"


def _quoted(word: str) -> str:
    """So that it is read again as one word."""
    if word and not any(sign.isspace() or sign in "\"'" for sign in word) and not word.startswith("--"):
        return word
    return f"'{word}'" if '"' in word else f'"{word}"'
