"""Copies a person's pictures into a version: untouched into `origin`, ready to train into `processed`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lora_train.core.files import replace, write_text
from lora_train.core.workspace import folder_name, move_to_trash
from lora_train.data.captions import caption_path
from lora_train.data.dataset import Dataset, Picture, fingerprint, scan_dataset


def take_in(
    source: Path, *, origin_dir: Path, processed_dir: Path, trash_dir: Path, concept: str, repeats: int
) -> Dataset:
    """Make `processed_dir` hold exactly the usable pictures and captions of `source`, in kohya's layout.

    Nothing is lost: the files also go to `origin_dir` (a file of the same name and other content gets a new name),
    and a processed set that was there before and differs goes to the trash. Returns the dataset as it was found,
    with its problems. Raises DatasetError where no picture is usable.
    """
    found = scan_dataset(source, repeats=repeats)
    fresh = processed_dir.with_name(f"{processed_dir.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for picture in found.pictures:
        kept = _keep_original(source / picture.path, origin_dir)
        _place(kept, picture, fresh, concept)
    if processed_dir.exists():
        same = fingerprint(scan_dataset(processed_dir, repeats=repeats)) == fingerprint(
            scan_dataset(fresh, repeats=repeats)
        )
        if same:
            shutil.rmtree(fresh)
            return found
        move_to_trash(processed_dir, trash_dir)
    replace(fresh, processed_dir)
    return found


def _keep_original(path: Path, origin_dir: Path) -> Path:
    """Copy a picture and its caption file to `origin_dir`, untouched; a copy that is there already is used."""
    origin_dir.mkdir(parents=True, exist_ok=True)
    target = origin_dir / path.name
    number = 1
    while target.exists() and target.read_bytes() != path.read_bytes():
        number += 1
        target = origin_dir / f"{path.stem}-{number}{path.suffix}"
    if not target.exists():
        shutil.copy2(path, target)
    caption = caption_path(path)
    if caption is not None:
        shutil.copy2(caption, target.with_suffix(caption.suffix))
    return target


def _place(kept: Path, picture: Picture, root: Path, concept: str) -> None:
    """Put a kept picture (a hard link where the disk can) and its caption (UTF-8) where they are trained from."""
    name = f"{picture.repeats}_{folder_name(picture.concept or concept)}"
    folder = root / "reg" / name if picture.is_regularisation else root / name
    folder.mkdir(parents=True, exist_ok=True)
    source_name = Path(picture.path)
    target = folder / source_name.name
    number = 1
    while target.exists():
        number += 1
        target = folder / f"{source_name.stem}-{number}{source_name.suffix}"
    try:
        os.link(kept, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(kept, target)
    if picture.caption:
        write_text(target.with_suffix(".txt"), picture.caption)
