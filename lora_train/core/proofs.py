"""What was found when published LoRAs were read back: `proofs.json` in a training's folder, one proof for each file.

What hosts read of a file's metadata: A1111 1.10.1's and Forge's LoRA extensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from lora_train.core.jobs import JobFolder
from lora_train.core.records import read_json

FILE_NAME = "proofs.json"
SAMPLES_FOLDER = "samples/proof"
PROVING = "proving"
"""The phase of such a job."""

MOST_STEPS = 12
"""Of a picture: enough to see whether a LoRA works."""
LEAST_SPREAD = 1.0
"""Standard deviation, in levels of 255, of a picture that shows anything (see `data.levels.spread`)."""


FactName = Literal[
    "Weights as they were saved",
    "Base models",
    "Layers",
    "Rank",
    "Metadata as WebUIs read it",
    "Card as WebUIs read it",
    "No card",
    "Without weight it changes nothing",
    "With full weight it changes the picture",
    "Not drawn: the base model is not there any more",
    "Drawn by",
    "Not drawn by the WebUI",
    "Not asked: the WebUI has another checkpoint loaded",
]
"""Fixed texts, which the page translates."""


class Fact(msgspec.Struct, frozen=True):
    """Something that was found: what, and its value."""

    name: FactName
    value: str = ""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Of one published copy. `reason` is empty where nothing is wrong with it."""

    published: str
    """Path of the copy."""
    tensors_sha256: str
    """Of the copy that this is about."""
    facts: tuple[Fact, ...] = ()
    reason: str = ""
    """Why the LoRA does not do what it should, and ..."""
    hint: str = ""
    """... what helps."""
    pictures: tuple[str, ...] = ()
    """Without and with the LoRA, relative to the training's folder."""
    made: float = 0.0
    """Unix seconds."""


class Proofs(msgspec.Struct):
    """The content of `proofs.json`: file name in the training's folder -> its last proof."""

    loras: dict[str, Proof] = {}


def read_proofs(train: JobFolder) -> dict[str, Proof]:
    """By file name; none where there is no file, or a damaged one."""
    return read_json(train.path / FILE_NAME, Proofs, Proofs()).loras


def host_version(metadata: Mapping[str, str]) -> str:
    """The kind of base model that hosts take a LoRA for: SD1, SD2, SDXL or Unknown."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"


def metadata_problem(metadata: Mapping[str, str], stem: str, version: str) -> str:
    """Why a host would take the file for something else, or fail to show its card; empty where it would not.

    `version` is the kind of base model that its layers go with, as in `host_version`.
    """
    if (told := host_version(metadata)) != version:
        return f"hosts take it for {told}, but its layers are for {version}"
    if not metadata.get("modelspec.architecture", "").endswith("/lora"):
        return "modelspec.architecture does not say that it is a LoRA"
    if (name := metadata.get("ss_output_name", "")) != stem:
        return f"ss_output_name is {name!r}, but the file is called {stem!r}"
    for key, depth in (("ss_tag_frequency", 2), ("ss_dataset_dirs", 1), ("ss_bucket_info", 1)):
        if key in metadata and not _is_nested(metadata[key], depth):
            return f"{key} is not of the form that card editors read"
    return ""


def _is_nested(text: str, depth: int) -> bool:
    """Whether a JSON text is an object of objects, `depth` deep."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        return False
    if content is None:
        return True
    levels: list[Any] = [content]
    for _ in range(depth):
        if not all(isinstance(level, dict) for level in levels):
            return False
        levels = [value for level in levels for value in level.values()]
    return True


def header_starts_as_hosts_ask(path: Path) -> bool:
    """Whether the JSON of a .safetensors file begins with `{"`: without that A1111 reads no metadata."""
    with path.open("rb") as stream:
        return stream.read(10)[8:] == b'{"'
