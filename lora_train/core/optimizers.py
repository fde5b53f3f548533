"""The optimizers: the class of each, what it may be told, and what suits it. Nothing is imported to know that."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from lora_train.core.config import Optimizer, TrainSettings
from lora_train.core.errors import shown
from lora_train.core.installing import install_command

Value = float | int | bool | tuple[float, ...] | None
Kind = Literal[
    "betas", "open betas", "pair", "share", "open share", "share or none", "positive", "number", "count", "switch"
]

_BOX = "optimizer_args (Optimizer arguments)"


class OptimizerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer, as its library knows it."""

    path: str
    """Of the class; a LoRA's metadata tells it too."""
    arguments: dict[str, Kind]
    """What a person may tell it."""
    ours: dict[str, Value] = {}
    """What we tell it where the person does not, and where that is not the library's own default."""
    fixed: dict[str, Value] = {}
    """What is always so here."""
    settings: dict[str, str] = {}
    """Arguments that are settings of ours, beside `lr` and `weight_decay`."""
    package: str = ""
    """The optional package that has it, by its name for pip and `import`; empty where it is always there."""
    finds_rate: bool = False
    """Whether it finds the learning rate itself, and ours is a factor on what it finds."""
    has_own_schedule: bool = False
    sees_shapes: bool = False
    """Whether it matters which numbers belong to one tensor: for sums over rows, or blocks that are packed together."""
    usual_rate: float = 1e-4
    state_bytes: float = 8
    """What it keeps for each trained number: two moments in float32, unless said otherwise."""


_ADAM: dict[str, Kind] = {"betas": "betas", "eps": "positive", "amsgrad": "switch"}
_FINDS_RATE: dict[str, Kind] = {
    "betas": "betas",
    "eps": "positive",
    "decouple": "switch",
    "use_bias_correction": "switch",
    "d0": "positive",
    "growth_rate": "positive",
}

OPTIMIZERS: dict[Optimizer, OptimizerFacts] = {
    "AdamW": OptimizerFacts(path="torch.optim.adamw.AdamW", arguments=_ADAM),
    "Adam": OptimizerFacts(path="torch.optim.adam.Adam", arguments=_ADAM),
    "AdamW8bit": OptimizerFacts(
        path="bitsandbytes.optim.adamw.AdamW8bit",
        package="bitsandbytes",
        sees_shapes=True,
        arguments={"betas": "betas", "eps": "positive", "min_8bit_size": "count"},
        state_bytes=2,
    ),
    "AdamWScheduleFree": OptimizerFacts(
        path="schedulefree.adamw_schedulefree.AdamWScheduleFree",
        package="schedulefree",
        arguments={"betas": "open betas", "eps": "positive", "r": "number", "weight_lr_power": "number"},
        settings={"warmup_steps": "lr_warmup_steps"},
        has_own_schedule=True,
        usual_rate=1e-3,
    ),
    "Lion": OptimizerFacts(
        path="lora_train.engine.lion.Lion", arguments={"betas": "betas"}, usual_rate=3e-5, state_bytes=4
    ),
    "SGDNesterov": OptimizerFacts(
        path="torch.optim.sgd.SGD",
        arguments={"momentum": "open share"},  # without momentum there is nothing for Nesterov to look ahead along
        ours={"momentum": 0.9},
        fixed={"nesterov": True},
        usual_rate=1e-2,
        state_bytes=4,
    ),
    # bitsandbytes' class has a `nesterov` too, and does nothing with it.
    "SGDNesterov8bit": OptimizerFacts(
        path="bitsandbytes.optim.sgd.SGD8bit",
        package="bitsandbytes",
        sees_shapes=True,
        arguments={"momentum": "share", "min_8bit_size": "count"},
        ours={"momentum": 0.9},
        usual_rate=1e-2,
        state_bytes=1,
    ),
    "DAdaptation": OptimizerFacts(
        path="dadaptation.dadapt_adam.DAdaptAdam",
        package="dadaptation",
        arguments=_FINDS_RATE,
        ours={"decouple": True},
        finds_rate=True,
        usual_rate=1.0,
        state_bytes=12,
    ),
    # What its authors recommend for diffusion models: github.com/konstmish/prodigy.
    "Prodigy": OptimizerFacts(
        path="prodigyopt.prodigy.Prodigy",
        package="prodigyopt",
        arguments={
            **_FINDS_RATE,
            "beta3": "share or none",
            "d_coef": "positive",
            "safeguard_warmup": "switch",
            "slice_p": "count",
        },
        ours={"use_bias_correction": True, "safeguard_warmup": True},
        finds_rate=True,
        usual_rate=1.0,
        state_bytes=16,
    ),
    # With `relative_step` it would pay no heed to our rate and schedule; with `scale_parameter` the rate is multiplied
    # by the size of the weights, and one half of a LoRA's begin at zero.
    "AdaFactor": OptimizerFacts(
        path="transformers.optimization.Adafactor",
        sees_shapes=True,
        arguments={
            "eps": "pair",
            "clip_threshold": "positive",
            "decay_rate": "number",
            "beta1": "share or none",
            "scale_parameter": "switch",
        },
        ours={"scale_parameter": False},
        fixed={"relative_step": False, "warmup_init": False},
        state_bytes=0.3,  # of a matrix only what its rows and its columns sum up to
    ),
}

_WORDS: dict[Kind, str] = {
    "betas": "two numbers from 0 to below 1, for example 0.9,0.99",
    "open betas": "two numbers between 0 and 1, for example 0.9,0.99",
    "pair": "two positive numbers, for example 1e-30,1e-3",
    "share": "a number from 0 to below 1",
    "open share": "a number above 0 and below 1",
    "share or none": "a number from 0 to below 1, or none",
    "positive": "a number above 0",
    "number": "a number",
    "count": "a whole number from 1",
    "switch": "true or false",
}


def _is_share(value: Value) -> bool:
    return _is_number(value) and 0 <= value < 1  # type: ignore[operator]


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_positive(value: Value) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_two(value: Value, each: Callable[[Value], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(each, value))


_FITS: dict[Kind, Callable[[Value], bool]] = {
    "betas": lambda value: _is_two(value, _is_share),
    "open betas": lambda value: _is_two(value, lambda one: _is_share(one) and one != 0),
    "pair": lambda value: _is_two(value, _is_positive),
    "share": _is_share,
    "open share": lambda value: _is_share(value) and value != 0,
    "share or none": lambda value: value is None or _is_share(value),
    "positive": _is_positive,
    "number": lambda value: _is_number(value) and math.isfinite(value),  # type: ignore[arg-type]
    "count": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    "switch": lambda value: isinstance(value, bool),
}


def optimizer_arguments(settings: TrainSettings) -> dict[str, Value]:
    """Everything that the class of the optimizer is told beside parameters and rates, by the names it has there.

    What the person wrote and is wrong is left out: `argument_problems` tells it.
    """
    facts = OPTIMIZERS[settings.optimizer]
    told = {name: getattr(settings, ours) for name, ours in facts.settings.items()}
    given = _read_arguments(settings)[0]
    return {"weight_decay": settings.weight_decay, **facts.ours, **given, **facts.fixed, **told}


def sees_shapes(settings: TrainSettings) -> bool:
    """Whether the optimizer must be given tensors one by one; for others all that is trained may be one long row.

    Prodigy looks at every n-th number of each tensor where it is told so.
    """
    return OPTIMIZERS[settings.optimizer].sees_shapes or optimizer_arguments(settings).get("slice_p", 1) != 1


def argument_problems(settings: TrainSettings) -> list[str]:
    """A sentence for everything that is wrong with the optimizer's arguments."""
    return _read_arguments(settings)[1]


def _read_arguments(settings: TrainSettings) -> tuple[dict[str, Value], list[str]]:
    given: dict[str, Value] = {}
    problems: list[str] = []
    for line in settings.optimizer_args:
        name, separator, text = (part.strip() for part in line.partition("="))
        if not separator or not name or not text:
            problems.append(f"{_BOX}: {shown(repr(line))} is not written as key=value, for example betas=0.9,0.99")
            continue
        problem, value = _read_argument(settings.optimizer, name, text)
        if problem:
            problems.append(f"{_BOX}: {problem}")
        elif name not in OPTIMIZERS[settings.optimizer].fixed:
            given[name] = value
    return given, problems


def _read_argument(optimizer: Optimizer, name: str, text: str) -> tuple[str, Value]:
    """What is wrong with one argument, or else its value."""
    facts = OPTIMIZERS[optimizer]
    elsewhere = {"lr": "learning_rate", "weight_decay": "weight_decay", **facts.settings}
    if name in elsewhere:
        return f"{name} is a setting of its own here, {elsewhere[name]}", None
    if name in facts.fixed:
        is_so = _value(text) == facts.fixed[name]
        return "" if is_so else f"{name} is always {str(facts.fixed[name]).lower()} here", None
    if name not in facts.arguments:
        close = difflib.get_close_matches(name, facts.arguments, n=1)
        advice = f"did you mean {close[0]}?" if close else f"it takes {', '.join(facts.arguments)}"
        return f"{optimizer} takes no {shown(name)} ({advice})", None
    kind, value = facts.arguments[name], _value(text)
    return ("", value) if _FITS[kind](value) else (f"{name}: {shown(repr(text))} is not {_WORDS[kind]}", None)


def _value(text: str) -> Value:
    """A number, a switch, none, or several numbers with commas, as Python or a person writes them; NaN for no such."""
    plain = text.strip().strip("()[]").strip()
    words: dict[str, Value] = {"true": True, "false": False, "none": None}
    if plain.lower() in words:
        return words[plain.lower()]
    try:
        if "," in plain:
            return tuple(float(part) for part in plain.split(",") if part.strip())
        return int(plain) if plain.lstrip("+-").isdecimal() else float(plain)
    except ValueError:
        return math.nan


# --- what suits it ---


def optimizer_warnings(settings: TrainSettings) -> list[str]:
    """A sentence for everything that is allowed, but hardly meant."""
    warnings = [*_rate_warnings(settings)]
    facts = OPTIMIZERS[settings.optimizer]
    if facts.has_own_schedule and settings.lr_scheduler not in ("constant", "constant_with_warmup"):
        warnings.append(
            f"{settings.optimizer} works without a schedule: {settings.lr_scheduler} is taken as constant, "
            "with the same warm-up."
        )
    if settings.optimizer == "SGDNesterov8bit":
        warnings.append("SGDNesterov8bit: the momentum of bitsandbytes is the plain one, not Nesterov's.")
    if facts.has_own_schedule and settings.ema_decay:
        warnings.append(f"{settings.optimizer} averages its steps itself: EMA decay 0 is enough.")
    return warnings


_LOWEST_FACTOR = 0.5
"""With 0.25 and less, what Prodigy finds stayed at its beginning over 400 steps of a small factorised regression."""
_HIGHEST_RATE = 0.1


def _rate_warnings(settings: TrainSettings) -> list[str]:
    facts = OPTIMIZERS[settings.optimizer]
    rates = {"Learning rate": settings.learning_rate}
    if settings.train_text_encoder:
        rates["Text encoder learning rate"] = settings.text_encoder_lr
    warnings: list[str] = []
    for label, rate in rates.items():
        if facts.finds_rate and 0 < rate < _LOWEST_FACTOR:
            warnings.append(
                f"{label}: {settings.optimizer} finds the rate itself, and a factor of {rate:g} on it may keep it from "
                "learning; 1 is usual."
            )
        if not facts.finds_rate and rate > max(_HIGHEST_RATE, 10 * facts.usual_rate):
            warnings.append(
                f"{label}: {rate:g} is very high for {settings.optimizer}; {facts.usual_rate:g} is usual. (Prodigy and "
                "DAdaptation alone want 1.)"
            )
    return warnings


# --- those that are not always there ---


def optional_optimizers() -> dict[Optimizer, str]:
    """Those that need an optional package, with its name."""
    return {name: facts.package for name, facts in OPTIMIZERS.items() if facts.package}


def is_absent(optimizer: Optimizer, find: Callable[[str], object] | None = None) -> bool:
    """Whether the package that the optimizer needs is not installed, by a quick look that imports nothing."""
    from importlib.util import find_spec

    package = OPTIMIZERS[optimizer].package
    return bool(package) and (find or find_spec)(package) is None


def absent_problem(optimizer: Optimizer) -> str:
    """What to say of an optimizer whose package is not installed."""
    package = OPTIMIZERS[optimizer].package
    return (
        f"optimizer (Optimizer type): {optimizer} needs the Python package {package}, which is not installed; this "
        f"adds it: {install_command([package])}"
    )


def broken_problem(optimizer: Optimizer, error: str) -> str:
    """What to say of an optimizer that is there and does not work: `error` in its own words."""
    return (
        f"optimizer (Optimizer type): {OPTIMIZERS[optimizer].package or optimizer} is installed, but {optimizer} does "
        f"not work here ({error}); choose another optimizer"
    )


def metadata_text(settings: TrainSettings) -> str:
    """The class with its arguments, as sd-scripts writes it: `torch.optim.adamw.AdamW(weight_decay=0.1)`."""
    arguments: Mapping[str, Value] = optimizer_arguments(settings)
    listed = ",".join(f"{name}={value}" for name, value in arguments.items())
    return f"{OPTIMIZERS[settings.optimizer].path}({listed})"
