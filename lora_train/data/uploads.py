"""What a person drops on the page: pictures, captions, folders and zip archives, kept untouched in `origin`."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from lora_train.core.errors import DatasetError
from lora_train.core.files import replace, temporary_folder, walk, write_bytes
from lora_train.core.names import fold, is_reserved
from lora_train.core.progress import StopAskedForError, tell
from lora_train.core.workspace import move_to_trash
from lora_train.data.archives import is_archive, is_hidden, unpack
from lora_train.data.captions import CAPTION_SUFFIXES, LARGEST_CAPTION_BYTES
from lora_train.data.images import PICTURE_SUFFIXES, picture_size, usual_suffix
from lora_train.data.masks import MASK_FOLDER, is_mask_folder

MOST_FILES = 5_000
"""In a folder that is added."""

_MOST_PROBLEMS = 10
"""Sentences about the files of one folder or archive."""
_STEM_LIMIT_BYTES = 180
"""UTF-8 bytes; a number, a suffix and the mark of a flipped copy must fit into 255 with it."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')


class _Name(NamedTuple):
    """A file name that every system allows. The suffix is one of those that we know, or empty."""

    stem: str
    suffix: str

    def __str__(self) -> str:
        return self.stem + self.suffix


class _File(NamedTuple):
    """A picture, caption or mask on its way in."""

    name: _Name
    path: Path
    folder: tuple[int, str]
    """Which folder it comes from: a caption belongs to a picture of its own, a mask to one beside its folder."""
    is_mask: bool = False

    @property
    def is_caption(self) -> bool:
        return not self.is_mask and self.name.suffix.lower() in CAPTION_SUFFIXES


_Source = tuple[tuple[int, str], str]
"""Folder and folded stem of a picture that came in."""


def keep_uploads(
    files: Iterable[tuple[str, Path]],
    origin_dir: Path,
    trash_dir: Path,
    receiving: AbstractContextManager[None] | None = None,
) -> list[str]:
    """Copy uploads (name as told, file) to `origin_dir`: pictures, and caption files of the same names.

    What takes long is done first, and changes nothing that others see: archives are unpacked, pictures copied and
    looked at. Within `receiving`, entered once, everything gets its place.

    Pictures in a folder `mask` are masks of the pictures beside that folder, and go to `origin_dir/mask`.
    A folder gives its files and those of its sub-folders, a zip archive what is in it; hidden files are passed over.
    A picture that is there already, by name and content, is not kept twice; one of the same name and other content
    gets a number. A new caption or mask takes the place of an old one, which goes to the trash. Tells its progress.
    Returns a sentence for everything that can't be used. Raises DatasetError when the folder can't be written, or where
    it is stopped before anything was kept, and what `receiving` raises.
    """
    problems: list[str] = []
    try:
        origin_dir.mkdir(parents=True, exist_ok=True)
        with temporary_folder(origin_dir / ".incoming") as incoming:
            told = list(_find_all(files, incoming, origin_dir, problems))
            found = list(_brought_in(told, incoming, problems))
            masks = [file for file in found if file.is_mask]
            captions = [file for file in found if file.is_caption]
            pictures = [file for file in found if not file.is_mask and not file.is_caption]
            with receiving or nullcontext():
                stems = {
                    fold(path.stem): path for path in origin_dir.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES
                }
                new_stems = {
                    (file.folder, fold(file.name.stem)): _keep_picture(file.name, file.path, origin_dir, stems)
                    for file in pictures
                }
                _keep_captions(captions, new_stems, origin_dir, stems, trash_dir, problems)
                _keep_masks(masks, new_stems, origin_dir, stems, trash_dir, problems)
    except OSError as error:
        raise DatasetError(
            f"{origin_dir} can't be written: {error.strerror or error}.",
            "Check that the disk has room and that the folder may be written.",
        ) from None
    except StopAskedForError:
        raise DatasetError("Stopped: nothing was added.") from None
    return problems


def _find_all(
    files: Iterable[tuple[str, Path]], incoming: Path, origin_dir: Path, problems: list[str]
) -> Iterator[_File]:
    """The files, those in folders, and those in archives, which are unpacked to `incoming`."""
    for number, (told, path) in enumerate(files):
        what = _spoken(told) or str(path)
        try:
            if path.is_dir():
                found, why_not = _files_below(path, what, origin_dir), list[str]()
            elif _is_archive(path):
                found, why_not = unpack(path, what, incoming / f"archive-{number}")
            else:
                yield _incoming(0, told, path)
                continue
        except DatasetError as error:
            problems.append(f"{error.message} {error.hint}".strip())
            continue
        yield from (_incoming(number + 1, name, file) for name, file in found)
        problems += _shortened(why_not, what)
        if not found and not why_not:
            problems.append(f"There is neither a picture nor a caption in {what}.")


def _incoming(source: int, told: str, path: Path) -> _File:
    """A mask counts to the folder in which its `mask` lies."""
    name, folder = _file_name(told), _folder_of(told)
    parent, _, last = folder.rpartition("/")
    if is_mask_folder(last) and name.suffix.lower() not in CAPTION_SUFFIXES:
        return _File(name, path, (source, parent), is_mask=True)
    return _File(name, path, (source, folder))


def _files_below(folder: Path, what: str, origin_dir: Path) -> list[tuple[str, Path]]:
    """Relative name and path of every picture and caption in a folder and its sub-folders.

    Raises DatasetError for a folder with too many files, or one that the pictures would be copied into.
    """
    if origin_dir.resolve().is_relative_to(folder.resolve()):
        raise DatasetError(f"{what} can't be added: this dataset itself lies in it.", "Choose another folder.")
    known = PICTURE_SUFFIXES.union(CAPTION_SUFFIXES)
    base = folder.parent if is_mask_folder(folder.name) else folder
    found: list[tuple[str, Path]] = []
    count = 0
    for root, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        count += len(names)
        if count > MOST_FILES:
            raise DatasetError(
                f"{what} can't be added: it has more than {MOST_FILES} files.", "Choose the folder of the pictures."
            )
        paths = [Path(root) / name for name in sorted(names) if not is_hidden(name)]
        found += [(path.relative_to(base).as_posix(), path) for path in paths if path.suffix.lower() in known]
    return found


def _shortened(problems: list[str], what: str) -> list[str]:
    if len(problems) <= _MOST_PROBLEMS:
        return problems
    more = len(problems) - _MOST_PROBLEMS
    return [*problems[:_MOST_PROBLEMS], f"{more} more files in {what} can't be used."]


def _brought_in(files: Sequence[_File], incoming: Path, problems: list[str]) -> Iterator[_File]:
    """Captions and masks as they are; pictures under their whole names, each as a copy of its own in `incoming`."""
    for number, file in enumerate(files):
        tell(number, len(files))
        if file.is_mask or file.is_caption:
            yield file
            continue
        copy = file.path
        try:
            if not copy.is_relative_to(incoming):
                copy = incoming / f"picture-{number}"
                shutil.copyfile(file.path, copy)
            suffix = _picture_suffix(file.name, copy)
        except DatasetError as error:
            problems.append(error.message.replace(str(copy), str(file.name)))
        except OSError as error:
            problems.append(f"{file.name} can't be kept ({error.strerror}).")
        else:
            yield file._replace(name=file.name._replace(suffix=suffix), path=copy)
            continue
        if copy != file.path:
            with suppress(OSError):  # it makes room for others; there may be none
                copy.unlink()


def _keep_captions(
    captions: list[_File],
    new_stems: Mapping[_Source, str],
    origin_dir: Path,
    stems: Mapping[str, Path],
    trash_dir: Path,
    problems: list[str],
) -> None:
    """After the pictures: a caption follows the new name of its own, and never goes to one of another folder.

    One that comes alone goes to the picture that is there, also where that is written in other letter cases.
    """
    taken = {fold(stem) for stem in new_stems.values()}
    for name, path, folder, _ in captions:
        stem = new_stems.get((folder, fold(name.stem)))
        if stem is None and fold(name.stem) in taken:
            problems.append(f"{name} is left out: the picture of this name came from another folder.")
            continue
        try:
            if path.stat().st_size > LARGEST_CAPTION_BYTES:
                problems.append(f"{name} is no caption: the limit is {LARGEST_CAPTION_BYTES / 2**20:g} MB.")
                continue
            content = path.read_bytes()
        except OSError as error:
            problems.append(f"{name} can't be kept ({error.strerror}).")
        else:
            there = stems.get(fold(name.stem))
            _keep_caption(
                origin_dir, stem or (there.stem if there else name.stem), name.suffix.lower(), content, trash_dir
            )


def _keep_masks(
    masks: list[_File],
    new_stems: Mapping[_Source, str],
    origin_dir: Path,
    stems: Mapping[str, Path],
    trash_dir: Path,
    problems: list[str],
) -> None:
    """After the pictures: a mask follows the new name of its own, or goes to the picture that is there."""
    taken = {fold(stem) for stem in new_stems.values()}
    for file in masks:
        name = file.name
        stem = _masked_stem(file, new_stems)
        there = None if stem is None and fold(name.stem) in taken else stems.get(fold(stem or name.stem))
        if there is None:
            problems.append(f"The mask {name} is left out: no picture of this name lies beside its folder.")
            continue
        try:
            content = file.path.read_bytes()
            _keep_mask(origin_dir / MASK_FOLDER, there.stem, _picture_suffix(name, file.path), content, trash_dir)
        except DatasetError as error:
            problems.append(error.message.replace(str(file.path), f"The mask {name}"))
        except OSError as error:
            problems.append(f"The mask {name} can't be kept ({error.strerror}).")


def _masked_stem(mask: _File, new_stems: Mapping[_Source, str]) -> str | None:
    """The stem that its picture has now: the one beside its folder, or else the only one of the name deeper there."""
    source, parent = mask.folder
    wanted = fold(mask.name.stem)
    if (stem := new_stems.get((mask.folder, wanted))) is not None:
        return stem
    deeper = [
        stem
        for ((number, folder), own), stem in new_stems.items()
        if number == source and own == wanted and (not parent or folder.startswith(f"{parent}/"))
    ]
    return deeper[0] if len(deeper) == 1 else None


def _keep_mask(folder: Path, stem: str, suffix: str, content: bytes, trash_dir: Path) -> None:
    path = folder / f"{stem}{suffix.lower()}"
    for old in [own for own in folder.iterdir() if fold(own.stem) == fold(stem)] if folder.is_dir() else []:
        if old != path or old.read_bytes() != content:
            move_to_trash(old, trash_dir)
    if not path.is_file():  # else it is there already, as it is
        write_bytes(path, content)


def _file_name(told: str) -> _Name:
    """The last part of an uploaded name, as every system allows it."""
    last = told.replace("\\", "/").rpartition("/")[2]
    last = unicodedata.normalize("NFC", "".join(char for char in last if unicodedata.category(char) != "Cs"))
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


def _spoken(told: str) -> str:
    """What a folder or archive is called in sentences: the last part of its name."""
    return told.replace("\\", "/").rstrip("/").rpartition("/")[2][:_STEM_LIMIT_BYTES]


def _is_archive(path: Path) -> bool:
    try:
        return is_archive(path)
    except OSError:  # gone, or without rights: told when it is copied
        return False


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


def _keep_picture(name: _Name, copy: Path, origin_dir: Path, stems: dict[str, Path]) -> str:
    """Give the copied picture its place unless it is there already, and return the stem that it has.

    `stems` tells the pictures that are there by their folded stems, and gets the new one.
    """
    number, stem = 1, name.stem
    while fold(stem) in stems:
        if _have_same_content(stems[fold(stem)], copy):
            return stems[fold(stem)].stem
        number += 1
        stem = f"{name.stem}-{number}"
    stems[fold(stem)] = origin_dir / f"{stem}{name.suffix}"
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
    if not path.is_file():  # else it is there already, as it is
        write_bytes(path, content)
