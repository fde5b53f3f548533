"""What the schema says, for those who show it and those who fill it: fields with their limits, and checked values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import MOST_SHOWN, ConfigError, shown
from lora_train.core.grid_settings import GridSettings
from lora_train.core.optimizers import argument_problems

Kind = Literal["int", "float", "bool", "text", "choice", "texts", "ints", "floats", "choices"]
"""The last four are lists: lines of text, comma lists, and some of `choices`."""


class SettingField(msgspec.Struct, frozen=True):
    """One setting as the page and the command line need it."""

    name: str
    label: str
    help: str
    kind: Kind
    default: Any
    basic: bool
    limits: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    """The smallest number allowed, or the one that must be exceeded; None where there is no range."""
    high: float | None = None


_SWEPT = ("learning_rate", "rank", "alpha", "batch_size", "clip_skip")
"""Settings of which a sweep takes comma lists."""

_MOST_UNKNOWN = 10
"""Unknown settings that are told by name: to look for a similar one takes a while."""

Settings = TypeVar("Settings", bound=msgspec.Struct)


@cache  # slow to work out
def _annotations(schema: type[msgspec.Struct]) -> dict[str, tuple[Any, Meta]]:
    """Field name -> (type with its ranges, the Meta with label and help)."""
    hints = get_type_hints(schema, include_extras=True)
    return {name: (get_args(hint)[0], get_args(hint)[1]) for name, hint in hints.items()}


def setting_fields(schema: type[msgspec.Struct] = TrainSettings) -> list[SettingField]:
    """Every setting in the order of the schema."""
    defaults = schema()
    fields: list[SettingField] = []
    for name, (base, meta) in _annotations(schema).items():
        item = get_args(base)[0] if get_origin(base) is tuple else base
        choices = get_args(item) if get_origin(item) is Literal else ()
        fields.append(
            SettingField(
                name=name,
                label=meta.title or name,
                help=meta.description or "",
                kind=_kind(base),
                default=getattr(defaults, name),
                basic=bool((meta.extra or {}).get("basic")),
                limits=_limits(base, meta),
                choices=choices,
                low=meta.ge if meta.ge is not None else meta.gt,
                high=meta.le,
            )
        )
    return fields


def parse_settings(values: Mapping[str, Any], base: TrainSettings | None = None) -> TrainSettings:
    """`values` (typed, or text as typed by a person) over `base` or the defaults.

    Raises ConfigError with every wrong value at once, each with its range.
    """
    settings, problems = check_settings(values, base or TrainSettings())
    if problems:
        raise ConfigError(problems)
    return settings


def check_settings(values: Mapping[str, Any], base: Settings) -> tuple[Settings, list[str]]:
    """`base` with those of `values` that are right, and a sentence for everything that is wrong.

    A wrong combination, say a size that is no multiple of 8, is told but taken over: it is what the person wants to
    go on from.
    """
    known = _annotations(type(base))
    problems: list[str] = []
    unknown = 0
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            unknown += 1
            problems += [unknown_setting(name, known)] if unknown <= _MOST_UNKNOWN else []
            continue
        hint, meta = known[name]
        try:
            right = msgspec.convert(_from_text(hint, value), Annotated[hint, meta], strict=False)
            msgspec.json.encode(right)  # half of a surrogate pair can't be written
            parsed[name] = right
        except (msgspec.ValidationError, ValueError, OverflowError, RecursionError):
            if value == "":
                problems.append(f"{meta.title}: type {_limits(hint, meta)}.")
                continue
            several = "; for several, use Sweep" if name in _SWEPT and "," in _shown(value) else ""
            problems.append(f"{name} ({meta.title}): {_shown(value)} is not {_limits(hint, meta)}{several}")
    if unknown > _MOST_UNKNOWN:
        problems.append(f"{unknown - _MOST_UNKNOWN:,} more settings that there are not")
    settings = msgspec.structs.replace(base, **parsed)
    return settings, problems + _cross_checks(settings)


def _shown(value: object) -> str:
    """A wrong value, as far as anybody wants to read it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, or lists of lists of lists
        return "this"
    return shown(text)


def _cross_checks(settings: msgspec.Struct) -> list[str]:
    problems: list[str] = []
    for name, value in msgspec.structs.asdict(settings).items():
        numbers: list[Any] = [*value] if isinstance(value, tuple) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            problems.append(f"{name}: {value!r} is not a finite number")
    if isinstance(settings, DatasetSettings):
        problems += _dataset_checks(settings)
    if isinstance(settings, CaptionSettings) and settings.blip_min_length > settings.blip_max_length:
        problems.append(
            f"blip_min_length (Caption min length): {settings.blip_min_length} is more than Caption max length, "
            f"{settings.blip_max_length}"
        )
    if isinstance(settings, GridSettings):
        problems += _grid_checks(settings)
    if isinstance(settings, TrainSettings):
        problems += _train_checks(settings)
    return problems


def _dataset_checks(settings: DatasetSettings) -> list[str]:
    sizes = {
        "width_px (Width)": settings.width_px,
        "height_px (Height)": settings.height_px,
        "multicrop_min_side_px (Dimension lower bound)": settings.multicrop_min_side_px,
        "multicrop_max_side_px (Dimension upper bound)": settings.multicrop_max_side_px,
    }
    problems = [f"{name}: {value} is not a multiple of 8" for name, value in sizes.items() if value % 8]
    bounds = (
        (
            "multicrop_min_side_px (Dimension lower bound)",
            settings.multicrop_min_side_px,
            settings.multicrop_max_side_px,
        ),
        ("multicrop_min_area_px (Area lower bound)", settings.multicrop_min_area_px, settings.multicrop_max_area_px),
    )
    problems += [f"{name}: {low} is more than the upper bound, {high}" for name, low, high in bounds if low > high]
    return problems


def _grid_checks(settings: GridSettings) -> list[str]:
    sizes = {"width_px (Width)": settings.width_px, "height_px (Height)": settings.height_px}
    return [
        f"{name}: {value} is not 0 or a multiple of 8 from 32 to 2048"
        for name, value in sizes.items()
        if value and (value < 32 or value % 8)
    ]


def _train_checks(settings: TrainSettings) -> list[str]:
    problems = argument_problems(settings)
    if settings.hold_out not in (-1.0, 0.0) and not (
        0 < settings.hold_out < 1 or (settings.hold_out >= 1 and settings.hold_out.is_integer())
    ):
        problems.append(
            f"hold_out (Held-out pictures): {settings.hold_out:g} is not -1, 0, a share below 1 or a whole number"
        )
    if settings.repeats == 0:
        problems.append("repeats (Train number of repetitions): 0 would train nothing; use -1 or 1 and more")
    if settings.min_timestep >= settings.max_timestep:
        problems.append(
            f"min_timestep (Lowest timestep): {settings.min_timestep} is not below the highest, {settings.max_timestep}"
        )
    for name in ("resolution", "preview_size_px"):
        value = getattr(settings, name)
        if value and (value < 32 or value % 8):
            problems.append(f"{name}: {value} is not 0 or a multiple of 8 from 32 to 2048")
    if settings.bucket_step_px % 8:
        problems.append(f"bucket_step_px: {settings.bucket_step_px} is not 0 or a multiple of 8 up to 256")
    return problems


def _from_text(hint: Any, value: Any) -> Any:
    """What a person typed into a list setting, as a list."""
    if get_origin(hint) is not tuple or not isinstance(value, str):
        return value
    kind = _kind(hint)
    if kind == "texts":
        return [line.strip() for line in value.splitlines() if line.strip()]
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if kind == "ints":
        return [int(part) for part in parts]
    return parts if kind == "choices" else [float(part) for part in parts]


def _kind(hint: Any) -> Kind:
    origin = get_origin(hint)
    if origin is Literal:
        return "choice"
    if origin is tuple:
        item = get_args(hint)[0]
        if item is str:
            return "texts"
        if get_origin(item) is Literal:
            return "choices"
        return "ints" if get_args(item)[0] is int else "floats"
    kinds: dict[Any, Literal["int", "float", "bool", "text"]] = {
        int: "int",
        float: "float",
        bool: "bool",
        str: "text",
    }
    return kinds[hint]


def _limits(hint: Any, meta: Meta) -> str:
    """The allowed values in words, e.g. "a whole number from 1 to 12"."""
    kind = _kind(hint)
    if kind == "choices":
        return "some of " + ", ".join(str(choice) for choice in get_args(get_args(hint)[0]))
    if kind == "choice":
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if kind == "bool":
        return "true or false"
    if kind == "text":
        return "text"
    if kind == "texts":
        return "a list of texts"
    if kind in ("ints", "floats"):
        item = get_args(hint)[0]
        low, high = get_args(item)[1].ge, get_args(item)[1].le
        nouns = "whole numbers" if kind == "ints" else "numbers"
        least = ", at least one" if meta.min_length else ""
        return f"a comma list of {nouns} from {_plain(low)} to {_plain(high)}{least}"
    noun = "a whole number" if kind == "int" else "a number"
    low = f"more than {meta.gt:g}" if meta.gt is not None else f"from {meta.ge:g}"
    high = f"up to {meta.le:g}" if meta.gt is not None else f"to {_plain(meta.le)}"
    return f"{noun} {low} {high}"


def _plain(number: float | None) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """What to tell somebody who asked for a setting that is none of the `known` ones."""
    if len(name) > MOST_SHOWN or not name.isprintable():
        return f"{_shown(name)}: there is no setting of this name"
    close = difflib.get_close_matches(name, [*known], n=1)
    return f"{name}: there is no setting of this name" + (f" (did you mean {close[0]}?)" if close else "")
