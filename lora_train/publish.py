"""Copies finished LoRAs into a WebUI's LoRA folder as complete cards: file, settings, thumbnail."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import msgspec

from lora_train.core.errors import TrainToolsError
from lora_train.core.files import replace, write_bytes
from lora_train.core.tensorfiles import read_tensor_file, tensor_part_sha256
from lora_train.core.workspace import fold

_PREFERRED_WEIGHT = 1.0


class Published(msgspec.Struct, frozen=True):
    """A copy in a WebUI's LoRA folder."""

    path: str
    files: list[str]
    """Absolute paths of what was written: copy, card, thumbnail. What stood there before is not among them."""
    tensors_sha256: str
    """Of the copy: a file of this name with other tensors is somebody else's."""


def publish(
    lora: Path, folder: Path, *, thumbnail: Path | None, description: str, root: Path | None = None
) -> Published:
    """Copy a LoRA into `folder` with its card (`.json`) and thumbnail.

    Hosts find LoRAs by bare file name, over all sub-folders of `root` (or of `folder`), and cache them by it. So a copy
    that is there already is left alone, and a file of this name with other content is never touched: the new one gets
    a free name, which its metadata then tells too. Raises TrainToolsError when the folder can't be written, ModelError
    when the LoRA is damaged.
    """
    card_text = _card(lora, description)
    written: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target, is_there = _target(lora, folder, root or folder)
        if not is_there:
            _copy(lora, target)
            written.append(str(target))
        card = target.with_suffix(".json")
        if not card.exists():  # a person may have edited it
            write_bytes(card, card_text)
            written.append(str(card))
        preview = target.with_suffix(".png")
        if thumbnail is not None and thumbnail.is_file() and not preview.exists():
            write_bytes(preview, thumbnail.read_bytes())
            written.append(str(preview))
    except OSError as error:
        for file in written:  # half a card would never be known as ours
            Path(file).unlink(missing_ok=True)
        raise TrainToolsError(
            f"{folder} can't be written: {error.strerror or error}. The LoRA itself is safe at {lora}.",
            "Choose another folder to publish to, or copy the file by hand.",
        ) from None
    return Published(str(target), written, tensor_part_sha256(target))


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


def _copy(lora: Path, target: Path) -> None:
    """Copy with a header that names the target, flushed to the disk before it gets its name."""
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        with lora.open("rb") as source, temporary.open("wb") as copy:
            (header_bytes,) = struct.unpack("<Q", source.read(8))
            header: dict[str, Any] = json.loads(source.read(header_bytes))
            if target.stem != lora.stem:
                names = {"ss_output_name": target.stem, "modelspec.title": target.stem}
                header["__metadata__"] = header.get("__metadata__", {}) | names
                header["__metadata__"].pop("sshs_legacy_hash", None)  # it depends on the length of the name
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
            text += b" " * (-len(text) % 8)  # tensors stay aligned, as the safetensors format asks
            copy.write(struct.pack("<Q", len(text)) + text)
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())
        replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _card(lora: Path, description: str) -> bytes:
    """The host's own card format: an object with these keys, indented by four."""
    metadata = read_tensor_file(lora).metadata
    card = {
        "description": description,
        "sd version": "SD1",
        "activation text": metadata.get("modelspec.trigger_phrase", ""),
        "preferred weight": _PREFERRED_WEIGHT,
        "notes": "",
    }
    return msgspec.json.format(msgspec.json.encode(card), indent=4)
