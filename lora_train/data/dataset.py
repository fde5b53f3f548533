"""From a folder to a checked list of pictures with captions and repeats.

Two layouts are read. A plain folder: pictures beside their captions. kohya's: sub-folders
`<repeats>_<concept>`, and under `reg` regularisation pictures, directly or in `<repeats>_<class>`.
A folder `mask` in any of them holds the masks of its pictures, under their names.
Both may be mixed. A sub-folder without a number is a concept whose repeats are chosen here.
The trained set of a version, `dataset/processed`, also has the regularisation pictures of `dataset/reg` beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import msgspec

from lora_train.core.errors import DatasetError
from lora_train.data.captions import (
    CAPTION_SUFFIXES,
    caption_stem,
    caption_text,
    captions_by_stem,
    read_caption_bytes,
)
from lora_train.data.images import PICTURE_SUFFIXES, open_picture
from lora_train.data.masks import is_mask_folder, masks_by_stem
from lora_train.data.seen import Seen, SeenPictures

AUTOMATIC = -1
"""Repeats: the folder's number, or else as `auto_repeats` says."""

MOST_REPEATS = 10_000
"""As the setting of this name."""
_REGULARISATION_FOLDER = "reg"
_TRAINED_SET = ("dataset", "processed")
_SEEN_NAME = ".seen.json"
_BESIDE = "../"
_NUMBERED_FOLDER = re.compile(r"([0-9]+)_(.+)", re.DOTALL)
_PICTURES_PER_EPOCH = 160
_MOST_AUTO_REPEATS = 16
_PROBLEMS_IN_ERROR = 5


class Picture(msgspec.Struct, frozen=True):
    """One usable picture."""

    path: str
    """Relative to the root, with forward slashes; `../reg/...` for what lies beside a version's trained set."""

    folder: str
    """The folder part of `path`; "" for the root itself."""

    concept: str
    """From the folder's name; "" for the root itself and for `reg`, where the caller names it."""

    repeats: int
    is_regularisation: bool
    caption: str
    """On one line, before trigger word and shuffle; "" if there is none."""

    width_px: int
    height_px: int
    """Of the upright picture."""

    digest: str
    """BLAKE2b, 128 bits, hex, over the bytes of the picture file, of the caption file and of the mask file."""

    content: str = ""
    """The same over the picture file alone."""

    mask: str = ""
    """The mask file as `path`; "" if there is none. Regularisation pictures have none."""


class Dataset(msgspec.Struct, frozen=True):
    """The usable pictures below a root, and one sentence for everything that was left out."""

    root: Path
    pictures: tuple[Picture, ...]
    """In the order of their paths (NFC), whatever the file system's order is."""

    problems: tuple[str, ...]


class ClassFolder(msgspec.Struct, frozen=True):
    """A folder of regularisation pictures."""

    folder: str
    """As `Picture.folder`."""

    name: str
    """The class; "" for pictures directly in `reg`."""

    repeats: int
    count: int
    """Files that are named like a picture."""


class _Folder(msgspec.Struct, frozen=True):
    path: Path
    told: str
    """As `Picture.folder`."""
    concept: str
    repeats: int
    """AUTOMATIC until all pictures are counted."""
    is_regularisation: bool


class _Candidate(msgspec.Struct, frozen=True):
    """A file that is named like a picture, with its caption and its mask."""

    folder: _Folder
    path: Path
    caption: Path | None
    mask: Path | None

    @property
    def told(self) -> str:
        """As `Picture.path`."""
        return _told(self.folder, self.path.name)


def scan_dataset(root: Path, *, repeats: int = AUTOMATIC, seen: SeenPictures | None = None) -> Dataset:
    """Find and check all pictures below `root`; each is really decoded once, but for those that `seen` knows.

    `repeats` of 1 or more replaces the numbers of the training folders (not of regularisation
    ones, which have their folder's number or 1). Files that can't be used end up in `problems`.

    Raises DatasetError if the folder can't be listed or has no usable training picture.
    """
    problems: list[str] = []
    candidates: list[_Candidate] = []
    for folder in _find_folders(root, problems):
        candidates += _find_candidates(folder, problems)

    pictures: list[Picture] = []
    new: list[_Candidate] = []
    for candidate in candidates:
        if (known := _known(seen, candidate)) is not None:
            pictures.append(known)
        else:
            new.append(candidate)
    # Threads help to decode; what is known already they would only make three times as slow.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(partial(_check, seen), new):
            if isinstance(result, Picture):
                pictures.append(result)
            else:
                problems.append(result)
    if seen is not None:
        seen.keep()
    training_count = sum(not picture.is_regularisation for picture in pictures)
    if training_count == 0:
        raise _no_pictures(root, problems)
    found = Dataset(
        root=root,
        pictures=tuple(sorted(_with_automatic_repeats(pictures), key=_order)),
        problems=tuple(problems),
    )
    return with_repeats(found, repeats)


def scan_trained_set(root: Path, *, repeats: int = AUTOMATIC) -> Dataset:
    """`scan_dataset` that knows of a version's trained set what was decoded before and has not changed; nothing is
    written beside a folder that is a person's own.
    """
    seen = SeenPictures(root.with_name(_SEEN_NAME)) if _is_trained_set(root) else None
    return scan_dataset(root, repeats=repeats, seen=seen)


def training_files(root: Path) -> list[Path]:
    """The files below `root` that `scan_dataset` would look at, without regularisation pictures; none is opened.

    Raises DatasetError if the folder can't be listed.
    """
    folders = [folder for folder in _find_folders(root, []) if not folder.is_regularisation]
    return [candidate.path for folder in folders for candidate in _find_candidates(folder, [])]


def regularisation_folders(root: Path) -> list[ClassFolder]:
    """The folders of regularisation pictures that `scan_dataset` reads, without looking into the pictures.

    Raises DatasetError for one that can't be listed.
    """
    folders = _find_folders(root, []) if root.is_dir() else _beside(root, [])
    found = (
        ClassFolder(folder.told, folder.concept, folder.repeats, len(_find_candidates(folder, [])))
        for folder in folders
        if folder.is_regularisation
    )
    return [entry for entry in found if entry.name or entry.count]


def own_pictures(dataset: Dataset) -> Dataset:
    """The dataset without what lies beside its root."""
    kept = tuple(picture for picture in dataset.pictures if not picture.path.startswith(_BESIDE))
    return msgspec.structs.replace(dataset, pictures=kept)


def with_regularisation(dataset: Dataset, pictures: Iterable[Picture]) -> Dataset:
    """The dataset with these regularisation pictures instead of its own."""
    training = [picture for picture in dataset.pictures if not picture.is_regularisation]
    return msgspec.structs.replace(dataset, pictures=tuple(sorted([*training, *pictures], key=_order)))


def with_repeats(dataset: Dataset, repeats: int) -> Dataset:
    """The dataset with `repeats`, if 1 or more, instead of the numbers of its training folders."""
    if repeats < 1:
        return dataset
    pictures = (
        picture if picture.is_regularisation else msgspec.structs.replace(picture, repeats=repeats)
        for picture in dataset.pictures
    )
    return msgspec.structs.replace(dataset, pictures=tuple(pictures))


def auto_repeats(picture_count: int) -> int:
    """Repeats for that many pictures: an epoch shows about 160, each one 1 to 16 times."""
    return min(_MOST_AUTO_REPEATS, max(1, round(_PICTURES_PER_EPOCH / picture_count)))


def fingerprint(dataset: Dataset) -> str:
    """32 hex digits over path, content, repeats and kind of all pictures; other digits mean that
    a run can't go on with this dataset as if nothing had happened.
    """
    rows = [
        [_path_order(picture)[0], picture.digest, picture.repeats, picture.is_regularisation]
        for picture in dataset.pictures
    ]
    return hashlib.blake2b(msgspec.json.encode(rows), digest_size=16).hexdigest()


def _find_folders(root: Path, problems: list[str]) -> list[_Folder]:
    """The root and its sub-folders, with what their names say."""
    own = _Folder(root, "", "", AUTOMATIC, is_regularisation=False)
    folders = [own]
    for path in _sub_folders(root):
        if path.name.casefold() != _REGULARISATION_FOLDER:
            folders += _named_folder(path, _told(own, path.name), problems, is_regularisation=False)
        else:
            folders += _class_folders(path, _told(own, path.name), problems)
    return folders + _beside(root, problems)


def _beside(root: Path, problems: list[str]) -> list[_Folder]:
    """The class folders of the version whose trained set `root` is; none for any other root."""
    path = root.with_name(_REGULARISATION_FOLDER)
    told = _BESIDE + _REGULARISATION_FOLDER
    return _class_folders(path, told, problems) if _is_trained_set(root) and path.is_dir() else []


def _is_trained_set(root: Path) -> bool:
    """Whether it is that of a version, and no folder of a person's own."""
    return root.parts[-2:] == _TRAINED_SET


def _class_folders(path: Path, told: str, problems: list[str]) -> list[_Folder]:
    own = _Folder(path, told, "", 1, is_regularisation=True)
    folders = [own]
    for class_path in _sub_folders(path):
        folders += _named_folder(class_path, _told(own, class_path.name), problems, is_regularisation=True)
    return folders


def _told(folder: _Folder, *names: str) -> str:
    """What is in a folder, as `Picture.path` says it."""
    return "/".join((folder.told, *names) if folder.told else names)


def _named_folder(path: Path, told: str, problems: list[str], *, is_regularisation: bool) -> list[_Folder]:
    """The folder, or nothing if its name says zero repeats."""
    problems += [
        f"{deeper} is not searched: pictures belong directly into {path.name}." for deeper in _sub_folders(path)
    ]
    numbered = _NUMBERED_FOLDER.fullmatch(path.name)
    if numbered is None:
        without_number = 1 if is_regularisation else AUTOMATIC
        return [_Folder(path, told, path.name, without_number, is_regularisation)]
    repeats = int(numbered[1])
    if repeats == 0:
        problems.append(f"{path} is skipped: the 0 in its name means no repeats.")
        return []
    if repeats > MOST_REPEATS:
        problems.append(f"{path} is skipped: its name asks for more than {MOST_REPEATS:,} repeats.")
        return []
    return [_Folder(path, told, numbered[2], repeats, is_regularisation)]


def _sub_folders(path: Path) -> list[Path]:
    """Where pictures may be: not those of masks."""
    return [path / entry.name for entry in _entries(path) if _holds(entry.is_dir) and not is_mask_folder(entry.name)]


def _holds(is_so: Callable[[], bool]) -> bool:
    """Also for a link that leads nowhere, or to itself."""
    try:
        return is_so()
    except OSError:
        return False


def _entries(path: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in a fixed order, without hidden things and what macOS adds."""
    try:
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(
            f"The folder {path} can't be read ({error.strerror}).",
            hint="Choose a folder of pictures that exists and that you may read.",
        ) from error
    return [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]


def _find_candidates(folder: _Folder, problems: list[str]) -> list[_Candidate]:
    files = [folder.path / entry.name for entry in _entries(folder.path) if _holds(entry.is_file)]
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    captions = captions_by_stem(files)
    stems = {caption_stem(picture) for picture in pictures}
    problems += [
        f"{path} is a caption without a picture of the same name."
        for path in files
        if path.suffix.lower() in CAPTION_SUFFIXES and caption_stem(path) not in stems
    ]
    masks = {} if folder.is_regularisation else masks_by_stem(folder.path)
    problems += [
        f"{path} is a mask without a picture of the same name." for stem, path in masks.items() if stem not in stems
    ]
    found = ((path, caption_stem(path)) for path in pictures)
    return [_Candidate(folder, path, captions.get(stem), masks.get(stem)) for path, stem in found]


def _known(known: SeenPictures | None, candidate: _Candidate) -> Picture | None:
    """The picture as it was when it was looked at before; None where it was not, or has changed since."""
    if known is None:
        return None
    try:
        seen = known.of(candidate.told, _stamps(candidate))
    except OSError:  # it will be told when it is looked at
        return None
    return None if seen is None else _picture(candidate, seen)


def _check(known: SeenPictures | None, candidate: _Candidate) -> Picture | str:
    """The picture, looked at, or a sentence that says why it can't be used."""
    path = candidate.told
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        readable = path.encode("utf-8", errors="replace").decode("utf-8")
        return f"{readable} can't be used: its name is not valid Unicode; rename it."
    try:
        stamps = _stamps(candidate)
        seen = _look(candidate, stamps, known.size_px(path, stamps) if known is not None else None)
    except DatasetError as error:
        return error.message
    except OSError as error:
        return f"{candidate.path} can't be used: it can't be read ({error.strerror})."
    if known is not None:
        known.add(path, seen)
    return _picture(candidate, seen)


def _picture(candidate: _Candidate, seen: Seen) -> Picture:
    folder, mask = candidate.folder, candidate.mask
    return Picture(
        path=candidate.told,
        folder=folder.told,
        concept=folder.concept,
        repeats=folder.repeats,
        is_regularisation=folder.is_regularisation,
        caption=seen.caption,
        width_px=seen.width_px,
        height_px=seen.height_px,
        digest=seen.digest,
        content=seen.content,
        mask="" if mask is None else _told(folder, mask.parent.name, mask.name),
    )


def _stamps(candidate: _Candidate) -> tuple[int, ...]:
    """Of the picture, its caption and its mask; zeros for what there is not."""
    told = [path.stat() if path is not None else None for path in (candidate.path, candidate.caption, candidate.mask)]
    return tuple(number for its in told for number in ((its.st_mtime_ns, its.st_size) if its is not None else (0, 0)))


def _look(candidate: _Candidate, stamps: tuple[int, ...], known_px: tuple[int, int] | None) -> Seen:
    """Decode a picture, unless its width and height are known, and read what belongs to it.

    Raises DatasetError or OSError for what can't be used.
    """
    (width_px, height_px), begun_digest = _read_picture(candidate.path, *stamps[:2], known_px)
    caption = b"" if candidate.caption is None else read_caption_bytes(candidate.caption)
    digest = begun_digest.copy()
    digest.update(caption)
    if candidate.mask is not None:
        digest.update(b"\0mask\0" + candidate.mask.read_bytes())
    return Seen(stamps, width_px, height_px, caption_text(caption), digest.hexdigest(), begun_digest.hexdigest())


@lru_cache(maxsize=10_000)
def _read_picture(
    path: Path,
    mtime_ns: int,  # noqa: ARG001
    size_bytes: int,  # noqa: ARG001
    known_px: tuple[int, int] | None,
) -> tuple[tuple[int, int], hashlib.blake2b]:
    """Width and height in pixels, and the digest so far; a caption that was edited makes no picture be read again.

    Raises as `_look`.
    """
    return known_px or open_picture(path).size, hashlib.blake2b(path.read_bytes(), digest_size=16)


def _with_automatic_repeats(pictures: list[Picture]) -> Iterable[Picture]:
    """Choose the numbers that no folder gave."""
    automatic_count = sum(picture.repeats == AUTOMATIC for picture in pictures)
    for picture in pictures:
        is_open = picture.repeats == AUTOMATIC
        yield msgspec.structs.replace(picture, repeats=auto_repeats(automatic_count)) if is_open else picture


def _order(picture: Picture) -> tuple[bool, tuple[str, str]]:
    """What lies beside the root comes last."""
    return picture.path.startswith(_BESIDE), _path_order(picture)


def _path_order(picture: Picture) -> tuple[str, str]:
    # The path itself decides where two names differ only in their Unicode form.
    return unicodedata.normalize("NFC", picture.path), picture.path


def _no_pictures(root: Path, problems: list[str]) -> DatasetError:
    suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
    shown = problems[:_PROBLEMS_IN_ERROR]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more.")
    return DatasetError(
        "\n".join([f"There is no usable training picture in {root}.", *shown]),
        hint=f"Accepted are {suffixes}, in the folder itself or in folders like 10_name.",
    )
