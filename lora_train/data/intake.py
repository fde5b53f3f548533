"""Takes a folder of the command line into a version: untouched into `origin`, ready to train into `processed`."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_train.core.errors import DatasetError, JobError
from lora_train.core.files import copy as copy_file
from lora_train.core.files import lock, write_text
from lora_train.core.names import folder_name
from lora_train.core.trash import Trash
from lora_train.data.captions import caption_path
from lora_train.data.dataset import Dataset, Picture, fingerprint, own_pictures, scan_dataset
from lora_train.data.masks import MASK_FOLDER
from lora_train.data.swapping import finish_swap, swap


def take_in(found: Dataset, *, origin_dir: Path, processed_dir: Path, trash_dir: Path, concept: str) -> None:
    """Make `processed_dir` hold exactly the pictures and captions that were `found`, in kohya's layout.

    A training picture without a caption gets one, its folder's concept or else `concept`; a regularisation picture
    gets its class, if its folder names one. Nothing is lost: the files also go to `origin_dir` (one of the same name
    and other content gets a new name), and a processed set that was there before and differs goes to the trash.

    Raises JobError while another process makes this set.
    """
    processed_dir.parent.mkdir(parents=True, exist_ok=True)
    held = lock(processed_dir.parent / ".update-lock")
    if held is None:
        raise JobError("The dataset is being updated already.", "Wait for its end.")
    with held:
        _take_in(found, origin_dir, processed_dir, Trash(trash_dir, trash_dir.parent), concept)


def _take_in(found: Dataset, origin_dir: Path, processed_dir: Path, trash: Trash, concept: str) -> None:
    finish_swap(processed_dir, trash)
    fresh = processed_dir.with_name(f"{processed_dir.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for picture in found.pictures:
        mask = found.root / picture.mask if picture.mask else None
        kept = _keep_original(found.root / picture.path, mask, origin_dir)
        _place(kept, mask, picture, fresh, concept)
    if processed_dir.exists() and _fingerprint_of(processed_dir) == _fingerprint_of(fresh):
        shutil.rmtree(fresh)
        return
    swap(processed_dir, fresh, trash)


def _fingerprint_of(folder: Path) -> str:
    try:
        return fingerprint(own_pictures(scan_dataset(folder)))
    except DatasetError:  # emptied by somebody: it differs from anything
        return ""


def _keep_original(path: Path, mask: Path | None, origin_dir: Path) -> Path:
    """Copy a picture, its caption file and its mask to `origin_dir`, untouched.

    A copy that is there already is used; where one of them has other content, all get a new name.
    """
    origin_dir.mkdir(parents=True, exist_ok=True)
    caption = caption_path(path)
    number = 1
    while True:
        stem = path.stem if number == 1 else f"{path.stem}-{number}"
        target = origin_dir / f"{stem}{path.suffix}"
        copies = {target: path}
        if caption is not None:
            copies[origin_dir / f"{stem}{caption.suffix}"] = caption
        if mask is not None:
            copies[origin_dir / MASK_FOLDER / f"{stem}{mask.suffix}"] = mask
        if all(not copy.exists() or copy.read_bytes() == own.read_bytes() for copy, own in copies.items()):
            break
        number += 1
    for copy, own in copies.items():
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            copy_file(own, copy)
    return target


def _place(kept: Path, mask: Path | None, picture: Picture, root: Path, concept: str) -> None:
    """Copy a kept picture, its mask, and its caption as UTF-8, to where they are trained from."""
    what = picture.concept or ("" if picture.is_regularisation else concept)
    folder = root / "reg" if picture.is_regularisation else root
    if what:
        folder /= f"{picture.repeats}_{folder_name(what)}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / kept.name
    shutil.copy2(kept, target)
    if caption := picture.caption or what:
        write_text(target.with_suffix(".txt"), caption)
    if mask is not None:
        place = folder / MASK_FOLDER / f"{target.stem}{mask.suffix}"
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(mask, place)
