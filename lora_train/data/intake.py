"""Copies a person's pictures into a version: untouched into `origin`, ready to train into `processed`."""

from __future__ import annotations

import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lora_train.core.errors import DatasetError
from lora_train.core.files import replace, write_bytes, write_text
from lora_train.core.workspace import fold, folder_name, is_reserved, move_to_trash
from lora_train.data.captions import CAPTION_SUFFIXES, caption_path
from lora_train.data.dataset import Dataset, Picture, fingerprint, own_pictures, scan_dataset
from lora_train.data.images import PICTURE_SUFFIXES, picture_size, usual_suffix

_STEM_LIMIT_BYTES = 180
"""UTF-8 bytes; a number, a suffix and the mark of a flipped copy must fit into 255 with it."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')


def keep_uploads(files: Iterable[tuple[str, Path]], origin_dir: Path, trash_dir: Path) -> list[str]:
    """Copy uploads (name as told, file) to `origin_dir`: pictures, and caption files of the same names.

    A picture that is there already, by name and content, is not kept twice; one of the same name and other content
    gets a number. A new caption takes the place of an old one, which goes to the trash. Returns a sentence for
    everything that is neither a picture nor a caption. Raises DatasetError when the folder can't be written.
    """
    try:
        origin_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=origin_dir) as incoming:
            return _keep_all(files, Path(incoming), origin_dir, trash_dir)
    except OSError as error:
        raise DatasetError(
            f"{origin_dir} can't be written: {error.strerror or error}.",
            "Check that the disk has room and that the folder may be written.",
        ) from None


def _keep_all(files: Iterable[tuple[str, Path]], incoming: Path, origin_dir: Path, trash_dir: Path) -> list[str]:
    problems: list[str] = []
    captions: list[tuple[str, _Name, Path]] = []
    stems = {fold(path.stem): path for path in origin_dir.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES}
    new_stems: dict[tuple[str, str], str] = {}
    for told, path in files:
        name = _file_name(told)
        if name.suffix.lower() in CAPTION_SUFFIXES:
            captions.append((told, name, path))
            continue
        copy = incoming / "picture"
        try:
            shutil.copyfile(path, copy)
            suffix = _picture_suffix(name, copy)
        except DatasetError as error:
            problems.append(error.message.replace(str(copy), str(name)))
        except OSError as error:
            problems.append(f"{name} can't be kept ({error.strerror}).")
        else:
            new_stems[_folder_of(told), fold(name.stem)] = _keep_picture(name.stem, suffix, copy, origin_dir, stems)
    for told, name, path in captions:  # after the pictures: a caption follows the new name of its own
        stem = new_stems.get((_folder_of(told), fold(name.stem)), name.stem)
        try:
            content = path.read_bytes()
        except OSError as error:
            problems.append(f"{name} can't be kept ({error.strerror}).")
        else:
            _keep_caption(origin_dir, stem, name.suffix.lower(), content, trash_dir)
    return problems


class _Name(NamedTuple):
    """A file name that every system allows. The suffix is one of those that we know, or empty."""

    stem: str
    suffix: str

    def __str__(self) -> str:
        return self.stem + self.suffix


def _file_name(told: str) -> _Name:
    """The last part of an uploaded name, as every system allows it."""
    last = unicodedata.normalize("NFC", told).replace("\\", "/").rpartition("/")[2]
    last = "".join(char for char in last if unicodedata.category(char) != "Cs")
    last = _FORBIDDEN.sub("_", last).strip()
    stem, dot, ending = last.rpartition(".")
    suffix = f"{dot}{ending}"
    if suffix.lower() not in PICTURE_SUFFIXES.union(CAPTION_SUFFIXES):
        stem, suffix = last, ""
    stem = stem.strip(". ").encode("utf-8")[:_STEM_LIMIT_BYTES].decode("utf-8", errors="ignore").rstrip(". ")
    stem = stem or "picture"  # an upload may lose a stem of emoji
    if is_reserved(stem):
        head, dot, tail = stem.partition(".")
        stem = f"{head.rstrip()}_{dot}{tail}"
    return _Name(stem, suffix)


def _folder_of(told: str) -> str:
    return told.replace("\\", "/").rpartition("/")[0]


def _picture_suffix(name: _Name, path: Path) -> str:
    """The picture's suffix, that of its content where an upload lost it. Raises DatasetError for what is no picture."""
    if name.suffix:
        picture_size(path)
        return name.suffix
    try:
        return usual_suffix(path)
    except DatasetError:
        known = ", ".join(sorted(PICTURE_SUFFIXES))
        captions = ", ".join(CAPTION_SUFFIXES)
        raise DatasetError(f"{name} is neither a picture ({known}) nor a caption ({captions}).") from None


def _keep_picture(wanted: str, suffix: str, copy: Path, origin_dir: Path, stems: dict[str, Path]) -> str:
    """Give the copied picture its place unless it is there already, and return the stem that it has."""
    number, stem = 1, wanted
    while fold(stem) in stems:
        if _have_same_content(stems[fold(stem)], copy):
            return stems[fold(stem)].stem
        number += 1
        stem = f"{wanted}-{number}"
    stems[fold(stem)] = origin_dir / f"{stem}{suffix}"
    replace(copy, stems[fold(stem)])
    return stem


def _have_same_content(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _keep_caption(origin_dir: Path, stem: str, suffix: str, content: bytes, trash_dir: Path) -> None:
    path = origin_dir / f"{stem}{suffix}"
    for other in CAPTION_SUFFIXES:
        old = origin_dir / f"{stem}{other}"
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
        return fingerprint(own_pictures(scan_dataset(folder)))
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
