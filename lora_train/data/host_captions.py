"""Which captions of a new trained set the host's own captioners complete, after the worker has made the set.

A worker can't use them, so it writes the captions without their part, and `.made.json` tells what it wrote. A caption
that reads otherwise by now is a person's, and so is one that came with the picture: both stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lora_train.core.caption_settings import CaptionPolicy
from lora_train.core.dataset_settings import CaptionAction
from lora_train.data.captions import caption_stem
from lora_train.data.manifest import Made, read_manifest
from lora_train.data.trained_set import captions_in


class HostPass(NamedTuple):
    """Pictures of the trained set, relative to it, and how the host's caption goes with what is there."""

    files: tuple[str, ...]
    policy: CaptionPolicy


def joining_policy(kinds: Iterable[str]) -> CaptionPolicy:
    """How the host's part goes with a worker's: a sentence stands before tags, so what is there comes after it."""
    return "append" if "blip" in kinds else "prepend"


def passes_after_update(
    dataset_dir: Path, *, fallback: str, action: CaptionAction, has_models: bool, kinds: Iterable[str]
) -> list[HostPass]:
    """The passes over a version's new set (`dataset_dir` is its `dataset` folder), those without a picture left out.

    Pictures that have only the fallback get the host's caption instead. Where the worker's models wrote
    (`has_models`), or where the captions that came along are to be completed, it is joined to what is there.
    Raises DatasetError for a caption that can't be read.
    """
    alone: list[str] = []
    joined: list[str] = []
    captions: dict[Path, dict[str, str]] = {}
    for file, made in read_manifest(dataset_dir).files.items():
        path = dataset_dir / "processed" / file
        if path.parent not in captions:
            captions[path.parent] = captions_in(path.parent)
        if captions[path.parent].get(caption_stem(path)) != made.caption:
            continue
        if made.caption in ("", " ".join(fallback.split())):
            alone.append(file)
        elif _is_written(made) if has_models else action in ("prepend", "append"):
            joined.append(file)
    policy = action if action in ("prepend", "append") else joining_policy(kinds)
    passes = [HostPass(tuple(alone), "only where empty"), HostPass(tuple(joined), policy)]
    return [one for one in passes if one.files]


def _is_written(made: Made) -> bool:
    """Whether a worker's model has a part in the caption: what one wrote is remembered also where it was not used."""
    return bool(made.generated) and made.generated in made.caption
