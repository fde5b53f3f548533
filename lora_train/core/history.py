"""What a training was made from: `made_from.json`, written when it is planned, and `versions.json`, by its worker."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import msgspec

from lora_train import __version__
from lora_train.core.files import DAMAGED_JSON, write_bytes
from lora_train.core.sealed import sealed_json, unsealed

MADE_FROM = "made_from.json"
VERSIONS = "versions.json"

_PACKAGES = ("torch", "diffusers", "transformers", "safetensors")


class PictureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One picture of the trained set as it was."""

    path: str
    """Relative to the set, as `data.dataset.Picture.path`."""
    content: str
    """BLAKE2b, 128 bits, hex, over the picture file."""
    caption: str = ""
    mask: str = ""
    """The same over the mask file; empty where there is none."""
    repeats: int = 1
    is_held_out: bool = False
    is_regularisation: bool = False
    width_px: int = 0
    height_px: int = 0


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A large file as it was when a training was planned: enough to see that nobody has touched it since."""

    name: str
    size_bytes: int = 0
    """0 for a folder."""
    mtime_ns: int = 0


class MadeFrom(msgspec.Struct, frozen=True, kw_only=True):
    """`made_from.json`: the dataset and the base model of a training."""

    fingerprint: str
    """Of the whole set, as in the training's `job.json`."""
    pictures: tuple[PictureFacts, ...]
    base_model: FileFacts
    vae: FileFacts | None = None
    continue_from: FileFacts | None = None


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """`versions.json`: what computed a training. Of a training that was resumed, the last part."""

    packages: dict[str, str] = {}
    """By name, with ours and Python."""
    platform: str = ""
    processor: str = ""
    device: str = ""
    """Its name, or "CPU"."""
    cpu_threads: int = 0
    """0 is unknown."""
    base_model_sha256: str = ""
    """Empty for a folder, and until it is known."""
    vae_sha256: str = ""
    is_mixed: bool = False
    """It was resumed with other packages than it began with."""


_Record = TypeVar("_Record", MadeFrom, Versions)


def read_made_from(folder: Path) -> MadeFrom | None:
    """What a training was made from; None where an earlier release trained it, or the file is damaged."""
    return _read(folder / MADE_FROM, MadeFrom)


def read_versions(folder: Path) -> Versions | None:
    """What computed a training; None before its start, and as `read_made_from`."""
    return _read(folder / VERSIONS, Versions)


def write_record(folder: Path, record: MadeFrom | Versions) -> None:
    """Put it into a training's folder. Raises OSError where that can't be written."""
    name = MADE_FROM if isinstance(record, MadeFrom) else VERSIONS
    write_bytes(folder / name, sealed_json(record))


@cache
def package_versions() -> dict[str, str]:
    """The versions that a worker started now would have, as the packages' own metadata tell: nothing is imported."""
    found = {"Python": platform.python_version(), "Train Tools": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the base model may not need it
            continue
    return found


@cache
def platform_name() -> str:
    """Say `Linux x86_64`."""
    return f"{platform.system()} {platform.machine()}"


@cache
def processor_name() -> str:
    """The CPU as its maker calls it; what rounds how depends on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _read(path: Path, schema: type[_Record]) -> _Record | None:
    try:
        return msgspec.json.decode(unsealed(path.read_bytes()), type=schema)
    except (OSError, *DAMAGED_JSON):
        return None
