"""Which pictures a training is measured with instead of trained on: chosen by the seed, with nothing of them left in.

Pieces of one original, their flipped copies and equal files are held out together: a training that has seen one of
them knows the others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.original import origin_stem
from lora_train.core.seeds import derive_seed
from lora_train.data.dataset import Dataset, Picture
from lora_train.data.manifest import read_manifest

LEAST_PICTURES = 10
"""With fewer, each is worth more to the training than to its measurement."""
_AUTOMATIC_FROM = 16
_AUTOMATIC_SHARE = 8
_REPEATS = re.compile(r"^[0-9]+_")


def held_out(dataset: Dataset, settings: TrainSettings) -> tuple[str, ...]:
    """Paths of the held-out pictures, in the dataset's order; regularisation pictures never are.

    As near to what `settings.hold_out` asks for as whole groups of pictures allow without exceeding it, at least one
    group, and at most half of the pictures.
    """
    training = [picture for picture in dataset.pictures if not picture.is_regularisation]
    wanted = wanted_count(len(training), settings.hold_out)
    if not wanted:
        return ()
    origins = _origins(dataset.root)
    known = (_Known(own.path, _origin(own, origins), own.content or own.path) for own in training)
    return _held_out(tuple(known), wanted, settings.seed)


def lasting_name(path: str) -> str:
    """A picture's path without the repeats in its folder's name, which change with the number of pictures: what is
    drawn for it stays the same when others come or go.
    """
    folder, slash, name = path.rpartition("/")
    outer, outer_slash, own = folder.rpartition("/")
    return outer + outer_slash + _REPEATS.sub("", own) + slash + name


def wanted_count(count: int, hold_out: float) -> int:
    """How many of `count` training pictures a value of the setting means."""
    if count < LEAST_PICTURES:
        return 0
    if hold_out < 0:
        return count // _AUTOMATIC_SHARE if count >= _AUTOMATIC_FROM else 0
    wanted = round(count * hold_out) if hold_out < 1 else int(hold_out)
    return min(max(wanted, 1), count // 2) if hold_out else 0


def not_shown(dataset: Dataset, held: Collection[str]) -> Dataset:
    """The dataset with no repeats of these pictures: an epoch shows none of them, every other place stays."""
    pictures = (
        msgspec.structs.replace(picture, repeats=0) if picture.path in held else picture for picture in dataset.pictures
    )
    return msgspec.structs.replace(dataset, pictures=tuple(pictures))


def parted(dataset: Dataset, held: Collection[str]) -> tuple[Dataset, Dataset]:
    """What is trained, and what it is measured with."""
    trained = tuple(picture for picture in dataset.pictures if picture.path not in held)
    measured = tuple(picture for picture in dataset.pictures if picture.path in held)
    return msgspec.structs.replace(dataset, pictures=trained), msgspec.structs.replace(dataset, pictures=measured)


class _Known(NamedTuple):
    """A picture, and what others have in common with it."""

    path: str
    origin: str
    content: str


@lru_cache(maxsize=8)
def _held_out(pictures: tuple[_Known, ...], wanted: int, seed: int) -> tuple[str, ...]:
    """Every plan and forecast of a set asks, whatever else is set; of thousands of pictures it takes a while."""
    by_chance = sorted(_groups(pictures), key=lambda group: derive_seed(seed, "hold out", lasting_name(group[0])))
    chosen: list[str] = []
    for group in by_chance:
        if len(chosen) + len(group) <= wanted:
            chosen += group
    if not chosen:
        smallest = min(by_chance, key=len)
        chosen = smallest if len(smallest) <= len(pictures) // 2 else []
    held = set(chosen)
    return tuple(picture.path for picture in pictures if picture.path in held)


def _groups(pictures: Sequence[_Known]) -> list[list[str]]:
    """Paths that belong together, each group in the order of the dataset."""
    group_of: dict[str, _Group] = {}
    for picture in pictures:
        keys = [f"origin {picture.origin}", f"content {picture.content}"]
        known = [group_of[key] for key in keys if key in group_of]
        group = known[0] if known else _Group([], [])
        for other in known[1:]:
            if other is not group:
                group.paths.extend(other.paths)
                group.keys.extend(other.keys)
                group_of.update(dict.fromkeys(other.keys, group))
        group.paths.append(picture.path)
        group.keys.extend(keys)
        group_of.update(dict.fromkeys(keys, group))
    return [group.paths for group in {id(group): group for group in group_of.values()}.values()]


class _Group(NamedTuple):
    """Pictures that belong together, and what they are known by."""

    paths: list[str]
    keys: list[str]


def _origin(picture: Picture, origins: dict[str, str]) -> str:
    """What the picture was made from, as well as the set's memory or its name tells."""
    if origin := origins.get(picture.path):
        return origin
    name = picture.path.rpartition("/")[2]
    return origin_stem(name.rpartition(".")[0] or name) or picture.path


def _origins(root: Path) -> dict[str, str]:
    try:
        changed_ns = (root / ".made.json").stat().st_mtime_ns
    except OSError:
        return {}
    return _read_origins(root, changed_ns)


@lru_cache(maxsize=16)  # the page asks every second
def _read_origins(root: Path, changed_ns: int) -> dict[str, str]:  # noqa: ARG001
    return {file: made.origin for file, made in read_manifest(root.parent).files.items()}
