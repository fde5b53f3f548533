"""How two trainings differ, as rows of (what, in the one, in the other)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.history import PictureFacts, Versions
from lora_train.core.memory import MemoryPlan, measures_text
from lora_train.core.numbers import number_text
from lora_train.core.settings import setting_fields

PictureChange = Literal["added", "removed", "changed", "mask", "caption", "repeats", "held out"]
_PATHS = ("base_model", "vae", "continue_from")


class PictureDifference(msgspec.Struct, frozen=True):
    """One thing that differs about one picture; `before` and `after` are empty where there is nothing to show."""

    path: str
    kind: PictureChange
    before: str = ""
    after: str = ""


class SettingDifference(msgspec.Struct, frozen=True):
    """A setting, a version or a file that differs, both sides as text."""

    name: str
    label: str
    before: str
    after: str


def picture_differences(before: Sequence[PictureFacts], after: Sequence[PictureFacts]) -> list[PictureDifference]:
    """What is other in `after`, in the order of paths."""
    old, new = ({picture.path: picture for picture in pictures} for pictures in (before, after))
    found: list[PictureDifference] = []
    for path in sorted({*old, *new}):
        if path not in old:
            found.append(PictureDifference(path, "added"))
        elif path not in new:
            found.append(PictureDifference(path, "removed"))
        else:
            found += _of_one(old[path], new[path])
    return found


def _of_one(old: PictureFacts, new: PictureFacts) -> list[PictureDifference]:
    found: list[PictureDifference] = []
    if old.content != new.content:
        found.append(PictureDifference(old.path, "changed"))
    if old.mask != new.mask:
        found.append(PictureDifference(old.path, "mask"))
    if old.caption != new.caption:
        found.append(PictureDifference(old.path, "caption", old.caption, new.caption))
    if old.repeats != new.repeats:
        found.append(PictureDifference(old.path, "repeats", str(old.repeats), str(new.repeats)))
    if old.is_held_out != new.is_held_out:
        found.append(PictureDifference(old.path, "held out", _yes(old.is_held_out), _yes(new.is_held_out)))
    return found


def setting_differences(before: TrainSettings, after: TrainSettings) -> list[SettingDifference]:
    """The settings that differ, in the order of the schema; of files only the names."""
    return [
        SettingDifference(field.name, field.label, shown_setting(before, field.name), shown_setting(after, field.name))
        for field in setting_fields()
        if getattr(before, field.name) != getattr(after, field.name)
    ]


def shown_setting(settings: TrainSettings, name: str) -> str:
    """A setting as text for a person; a path as the file's name, so that no text tells whose computer it was."""
    value = getattr(settings, name)
    if name in _PATHS:
        return file_name(value)
    if isinstance(value, bool):
        return _yes(value)
    if isinstance(value, tuple):
        return ", ".join(map(_plain, value))  # pyright: ignore[reportUnknownArgumentType]
    return _plain(value)


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def version_differences(before: Versions, after: Versions) -> list[SettingDifference]:
    """Packages, platform, processor, device and threads that are known on both sides and differ."""
    rows = [(name, before.packages[name], after.packages.get(name, "–")) for name in before.packages]
    rows += [(name, "–", text) for name, text in after.packages.items() if name not in before.packages]
    rows += [
        ("platform", before.platform, after.platform),
        ("processor", before.processor, after.processor),
        ("device", before.device, after.device),
        ("CPU threads", str(before.cpu_threads or ""), str(after.cpu_threads or "")),
    ]
    return [SettingDifference(name, name, old, new) for name, old, new in rows if old and new and old != new]


def memory_differences(before: MemoryPlan, after: MemoryPlan) -> list[SettingDifference]:
    """How the one saved memory and the other did not: it changes nothing but how numbers are rounded, and the pace."""
    if before == after:
        return []
    old, new = (measures_text(plan) or "–" for plan in (before, after))
    return [SettingDifference("memory", "memory", old, new)]


def base_differences(before: Versions, after: Versions) -> list[SettingDifference]:
    """Base model and VAE, where their hashes are known on both sides and differ."""
    rows = (
        ("base_model_sha256", "Base model", before.base_model_sha256, after.base_model_sha256),
        ("vae_sha256", "VAE", before.vae_sha256, after.vae_sha256),
    )
    return [
        SettingDifference(name, label, old[:10], new[:10])
        for name, label, old, new in rows
        if old and new and old != new
    ]


def told(difference: PictureDifference) -> str:
    """In one sentence, without the full stop of a list of them."""
    texts = {
        "added": "is new",
        "removed": "is gone",
        "changed": "was changed",
        "mask": "has another mask",
        "caption": f"has another caption ({difference.before!r} → {difference.after!r})",
        "repeats": f"has other repeats ({difference.before} → {difference.after})",
        "held out": f"is held out: {difference.before} → {difference.after}",
    }
    return f"{difference.path} {texts[difference.kind]}"


def _plain(value: object) -> str:
    return number_text(value) if isinstance(value, float) else str(value)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
