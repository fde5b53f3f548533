"""Copies a person's pictures into a version: untouched into `origin`, ready to train into `processed`."""

from __future__ import annotations

import filecmp
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lora_train.core.errors import DatasetError
from lora_train.core.files import replace, write_bytes, write_text
from lora_train.core.workspace import fold, folder_name, is_reserved, move_to_trash
from lora_train.data.captions import CAPTION_SUFFIXES, caption_path
from lora_train.data.dataset import Dataset, Picture, fingerprint, scan_dataset
from lora_train.data.images import PICTURE_SUFFIXES, picture_size, usual_suffix

_STEM_LIMIT_BYTES = 180
"""UTF-8 bytes; a number, a suffix and the mark of a flipped copy must fit into 255 with it."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')


def keep_uploads(files: Iterable[tuple[str, Path]], origin_dir: Path, trash_dir: Path) -> list[str]:
    """Copy uploads (name as told, file) to `origin_dir`: pictures, and caption files of the same names.

    A picture that is there already, by name and content, is not kept twice; one of the same name and other content
    gets a number. A new caption takes the place of an old one, which goes to the trash. Returns a sentence for
    everything that is neither a picture nor a caption.
    """
    problems: list[str] = []
    new_stems: dict[str, str] = {}
    captions: list[tuple[PurePosixPath, Path]] = []
    origin_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=origin_dir) as incoming:
        for told, path in files:
            name = _file_name(told)
            if name.suffix.lower() in CAPTION_SUFFIXES:
                captions.append((name, path))
                continue
            copy = Path(incoming) / name.name
            try:
                shutil.copyfile(path, copy)
                name = _checked(name, copy)
            except DatasetError as error:
                problems.append(error.message.replace(str(copy), name.name))
            except OSError as error:
                problems.append(f"{name} can't be kept ({error.strerror}).")
            else:
                new_stems[fold(name.stem)] = _keep_picture(name, copy, origin_dir)
    for name, path in captions:  # after the pictures: a caption follows the new name of its own
        stem = new_stems.get(fold(name.stem), name.stem)
        _keep_caption(origin_dir / f"{stem}{name.suffix.lower()}", path.read_bytes(), trash_dir)
    return problems


def _file_name(name: str) -> PurePosixPath:
    """The last part of an uploaded name, as every system allows it."""
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    path = PurePosixPath(_FORBIDDEN.sub("_", last).strip() or "picture")
    if path.name.startswith("."):  # an upload may lose a stem of emoji
        path = PurePosixPath(f"picture{path.name}")
    stem = path.stem.rstrip(". ") or "picture"
    stem = stem.encode("utf-8", errors="replace")[:_STEM_LIMIT_BYTES].decode("utf-8", errors="ignore").rstrip(". ")
    return PurePosixPath(f"{stem}_{path.suffix}" if is_reserved(stem) else f"{stem}{path.suffix}")


def _checked(name: PurePosixPath, path: Path) -> PurePosixPath:
    """The name, with the suffix of the content where an upload lost it. Raises DatasetError for what is no picture."""
    if name.suffix.lower() in PICTURE_SUFFIXES:
        picture_size(path)
        return name
    try:
        return PurePosixPath(f"{name}{usual_suffix(path)}")
    except DatasetError:
        known = ", ".join(sorted(PICTURE_SUFFIXES))
        captions = ", ".join(CAPTION_SUFFIXES)
        raise DatasetError(f"{name} is neither a picture ({known}) nor a caption ({captions}).") from None


def _keep_picture(name: PurePosixPath, copy: Path, origin_dir: Path) -> str:
    """Give the copied picture its place unless it is there already, and return the stem that it has."""
    stems = {fold(path.stem): path for path in origin_dir.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES}
    number, stem = 1, name.stem
    while fold(stem) in stems:
        if filecmp.cmp(stems[fold(stem)], copy, shallow=False):
            return stems[fold(stem)].stem
        number += 1
        stem = f"{name.stem}-{number}"
    replace(copy, origin_dir / f"{stem}{name.suffix}")
    return stem


def _keep_caption(path: Path, content: bytes, trash_dir: Path) -> None:
    for suffix in CAPTION_SUFFIXES:
        old = path.with_suffix(suffix)
        if old.is_file() and not (old == path and old.read_bytes() == content):
            move_to_trash(old, trash_dir)
    write_bytes(path, content)


def take_in(found: Dataset, *, origin_dir: Path, processed_dir: Path, trash_dir: Path, concept: str) -> None:
    """Make `processed_dir` hold exactly the pictures and captions that were `found`, in kohya's layout.

    A training picture without a caption gets one, its folder's concept or else `concept`; a regularisation picture
    gets its class, if its folder names one. Nothing is lost: the files also go to `origin_dir` (one of the same name
    and other content gets a new name), and a processed set that was there before and differs goes to the trash.
    """
    fresh = processed_dir.with_name(f"{processed_dir.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for picture in found.pictures:
        kept = _keep_original(found.root / picture.path, origin_dir)
        _place(kept, picture, fresh, concept)
    if processed_dir.exists():
        if _fingerprint_of(processed_dir) == _fingerprint_of(fresh):
            shutil.rmtree(fresh)
            return
        move_to_trash(processed_dir, trash_dir)
    replace(fresh, processed_dir)


def _fingerprint_of(folder: Path) -> str:
    try:
        return fingerprint(scan_dataset(folder))
    except DatasetError:  # emptied by somebody: it differs from anything
        return ""


def _keep_original(path: Path, origin_dir: Path) -> Path:
    """Copy a picture and its caption file to `origin_dir`, untouched.

    A copy that is there already is used; where one of the two has other content, both get a new name.
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
        if all(not copy.exists() or copy.read_bytes() == own.read_bytes() for copy, own in copies.items()):
            break
        number += 1
    for copy, own in copies.items():
        if not copy.exists():
            shutil.copy2(own, copy)
    return target


def _place(kept: Path, picture: Picture, root: Path, concept: str) -> None:
    """Copy a kept picture, and its caption as UTF-8, to where they are trained from."""
    what = picture.concept or ("" if picture.is_regularisation else concept)
    folder = root / "reg" if picture.is_regularisation else root
    if what:
        folder /= f"{picture.repeats}_{folder_name(what)}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / kept.name
    shutil.copy2(kept, target)
    if caption := picture.caption or what:
        write_text(target.with_suffix(".txt"), caption)
