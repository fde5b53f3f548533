"""Copies finished LoRAs into a WebUI's LoRA folder as complete cards: file, settings, thumbnail."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lora_train.core.cards import CardValue, card_bytes, merged_card, read_card
from lora_train.core.errors import ModelError, TrainToolsError
from lora_train.core.files import replace, temporary_beside, write_bytes
from lora_train.core.lora_files import is_whole
from lora_train.core.names import fold
from lora_train.core.private_use import with_private_use, without_mark
from lora_train.core.records import read_json
from lora_train.core.tensorfiles import read_tensor_file, tensor_part_sha256

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
"""Of a card; a host that finds several takes any of them."""


class Published(msgspec.Struct, frozen=True):
    """A copy in a WebUI's LoRA folder."""

    path: str
    files: list[str]
    """Absolute paths of what was written: copy, card, thumbnail. What stood there before is not among them."""
    tensors_sha256: str
    """Of the copy: a file of this name with other tensors is somebody else's."""
    card: dict[str, CardValue] = {}
    """The card's values as we wrote them: what is another one now, a person wrote."""
    thumbnail_sha256: str = ""
    """Of the thumbnail as we wrote it, likewise; empty where there is none of ours."""
    problem: str = ""
    """What was left as it is, and why, in a sentence."""


class Record(msgspec.Struct):
    """`published.json` in a training's folder: LoRA file -> its copy in the host's folder."""

    loras: dict[str, Published] = {}
    private_use: bool | None = None
    """As it was marked after the training; None is as the training's settings say."""


def read_record(train_dir: Path) -> Record:
    """An empty one where nothing was published, or the file is damaged."""
    return read_json(train_dir / "published.json", Record, Record())


def publish(
    lora: Path,
    folder: Path,
    *,
    card: Mapping[str, CardValue],
    thumbnail: bytes | None = None,
    is_private: bool = False,
    before: Published | None = None,
    root: Path | None = None,
) -> Published:
    """Copy a LoRA into `folder` with its card (`.json`) and thumbnail (a PNG).

    Hosts find LoRAs by bare file name, over all sub-folders of `root` (or of `folder`), and cache them by it. So a copy
    that is there already is left alone, and a file of this name with other content is never touched: the new one gets
    a free name, which its metadata then tells too. `before` is what an earlier call gave for this LoRA: what of it
    nobody changed since is brought up to date, also the header of the copy where `is_private` is another one.
    A card is merged (see `core.cards`). Raises TrainToolsError when the folder can't be written, ModelError when the
    LoRA is damaged.
    """
    if not is_whole(lora):
        raise ModelError(
            f"{lora} is damaged: its weights are not those that were saved.",
            "Publish another LoRA of this training, or train again.",
        )
    new: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target, is_there = _target(lora, folder, root or folder)
        if before is None or Path(before.path) != target:
            before = Published(str(target), [], "")
        header = _header(lora, target.stem, is_private=is_private)
        if not is_there:
            new.append(str(target))
            _copy(lora, target, header)
        elif str(target) in before.files and read_tensor_file(target).metadata != header.get("__metadata__", {}):
            _copy(lora, target, header)
        ours, problem = _put_card(target.with_suffix(".json"), card, before, new)
        digest = _put_thumbnail(target.with_suffix(".png"), thumbnail, before, new)
    except OSError as error:
        for file in new:  # half a card would never be known as ours
            with suppress(OSError):
                Path(file).unlink(missing_ok=True)
        raise TrainToolsError(
            f"{folder} can't be written: {error.strerror or error}. The LoRA itself is safe at {lora}.",
            "Choose another folder to publish to, or copy the file by hand.",
        ) from None
    kept = [file for file in before.files if file not in new and Path(file).exists()]
    return Published(str(target), [*kept, *new], tensor_part_sha256(target), ours, digest, problem)


def _put_card(
    path: Path, values: Mapping[str, CardValue], before: Published, new: list[str]
) -> tuple[dict[str, CardValue], str]:
    """Write or merge the card; gives what of it is ours, and why it was left alone. `new` takes a file that was not
    there.
    """
    is_new = not path.exists()
    existing = {} if is_new else read_card(path.read_bytes())
    if existing is None:
        return before.card, f"{path} is no card that a WebUI could read, and was left as it is."
    card, ours = merged_card(existing, values, before.card)
    if is_new:
        new.append(str(path))
    if is_new or card != existing:
        write_bytes(path, card_bytes(card))
    return ours, ""


def _put_thumbnail(path: Path, content: bytes | None, before: Published, new: list[str]) -> str:
    """Write the thumbnail where there is none, or ours; gives the digest of ours, empty where it is a person's."""
    if not path.exists():
        others = (path.with_suffix(f"{middle}{suffix}") for middle in ("", ".preview") for suffix in _PICTURES)
        if content is None or any(other.exists() for other in others):
            return ""
        new.append(str(path))
    elif not before.thumbnail_sha256 or _sha256(path.read_bytes()) != before.thumbnail_sha256:
        return ""
    elif content is None or _sha256(content) == before.thumbnail_sha256:
        return before.thumbnail_sha256
    write_bytes(path, content)
    return _sha256(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_in_place(published: Published) -> bool:
    """Whether the copy that was written is still there, and not another file under its name."""
    path = Path(published.path)
    return str(path) in published.files and path.is_file() and _has_tensors(path, published.tensors_sha256)


def stems_in(folder: Path) -> set[str]:
    """Stems of all LoRAs below a WebUI's LoRA folder, where each may be used once."""
    suffixes = {".safetensors", ".pt", ".ckpt"}
    return {path.stem for path in folder.rglob("*") if path.suffix.lower() in suffixes}


def _target(lora: Path, folder: Path, root: Path) -> tuple[Path, bool]:
    """Where the copy belongs, and whether it is there already."""
    taken = {fold(stem) for stem in stems_in(root)}
    number, stem = 1, lora.stem
    while fold(stem) in taken:
        existing = folder / f"{stem}.safetensors"
        if existing.is_file() and _has_tensors(existing, tensor_part_sha256(lora)):
            return existing, True
        number += 1
        stem = f"{lora.stem}-{number}"
    return folder / f"{stem}.safetensors", False


def _has_tensors(path: Path, sha256: str) -> bool:
    try:
        return tensor_part_sha256(path) == sha256
    except struct.error:  # shorter than a header
        return False


def _header(lora: Path, stem: str, *, is_private: bool) -> dict[str, Any]:
    """The header of the copy: with its own name, and the private-use mark."""
    with lora.open("rb") as source:
        (header_bytes,) = struct.unpack("<Q", source.read(8))
        header: dict[str, Any] = json.loads(source.read(header_bytes))
    metadata: dict[str, str] = header.get("__metadata__", {})
    if stem != lora.stem:
        metadata = metadata | {"ss_output_name": stem, "modelspec.title": stem}
        metadata.pop("sshs_legacy_hash", None)  # it depends on the length of the name
    metadata = with_private_use(metadata) if is_private else without_mark(metadata)
    return {**header, "__metadata__": metadata} if metadata else header


def _copy(lora: Path, target: Path, header: Mapping[str, Any]) -> None:
    """Copy with this header, flushed to the disk before it gets its name."""
    temporary = temporary_beside(target)
    try:
        with lora.open("rb") as source, temporary.open("wb") as copy:
            (header_bytes,) = struct.unpack("<Q", source.read(8))
            source.seek(header_bytes, os.SEEK_CUR)
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
            text += b" " * (-len(text) % 8)  # tensors stay aligned, as the safetensors format asks
            copy.write(struct.pack("<Q", len(text)) + text)
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())
        replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
