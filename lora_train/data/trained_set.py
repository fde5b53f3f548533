"""What is in a version's trained set: which original each picture stands for, and what a person did to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from lora_train.core.files import walk
from lora_train.core.names import fold
from lora_train.core.original import origin_stem
from lora_train.data.captions import caption_stem, caption_text, captions_by_stem, read_caption_bytes
from lora_train.data.images import PICTURE_SUFFIXES
from lora_train.data.manifest import Manifest
from lora_train.data.masks import is_mask_folder

REGULARISATION = "reg"

Key = tuple[str, int, bool]
"""Name of the original, number of the piece, and whether it is the flipped copy."""


class OldSet(NamedTuple):
    """What is to be known of the set that is replaced."""

    folders: dict[str, str]
    """Name of each original in it -> the sub-folder that it is in."""
    made: set[Key]
    """The pictures in it that originals stand for."""
    edited: dict[Key, str]
    """The captions that a person gave, also to pictures that the settings had not made for a while."""
    generated: dict[str, tuple[str, str]]
    """Digest of a picture -> what a captioner wrote for it, and who."""
    kept: list[Path]
    """Pictures that no original stands for, and regularisation pictures."""

    def caption_by_hand(self, key: Key) -> str | None:
        """What a person wrote for a picture; for one that the old set had not, what was written for its twin that is
        not flipped, or for the whole of which it is a piece.
        """
        origin, piece, is_flipped = key
        keys = [key]
        if is_flipped and key not in self.made:
            keys.append((origin, piece, False))
        if piece > 1 and (origin, 2, False) not in self.made:
            keys.append((origin, 1, False))
        return next((self.edited[own] for own in keys if own in self.edited), None)


def origins(dataset_dir: Path) -> list[Path]:
    """The uploaded pictures, in the order of their names."""
    found = [path for path in files_in(dataset_dir / "origin") if path.suffix.lower() in PICTURE_SUFFIXES]
    return sorted(found, key=lambda path: (fold(path.name), path))


def origin_names(dataset_dir: Path, manifest: Manifest) -> dict[str, str]:
    """Picture of the trained set, relative to it -> name of the original that it stands for.

    An original that was replaced by one of another kind is known by its stem. A set made by `lora-train train`, or by
    hand, has no manifest: equal names tell, or the names that the original extension gave. A picture that was put there
    directly stands for none.
    """
    processed = dataset_dir / "processed"
    files = {path.relative_to(processed).as_posix(): path for path in pictures_below(processed)}
    present = {path.name: path for path in origins(dataset_dir)}
    stems = {fold(path.stem): path.name for path in present.values()}
    names = {file: _now_called(its.origin, stems, present) for file, its in manifest.files.items() if file in files}
    uploaded = present.keys() - names.values()
    for file, path in files.items():
        if file in names:
            continue
        if path.name in uploaded:
            is_same_size = path.stat().st_size == present[path.name].stat().st_size
            if not is_regularisation(file) or is_same_size:
                names[file] = path.name
        elif not manifest.files and not is_regularisation(file) and (stem := fold(origin_stem(path.stem))) in stems:
            names[file] = stems[stem]
    return names


def _now_called(name: str, stems: Mapping[str, str], present: Collection[str]) -> str:
    """The name of an original, which may have been replaced by one of another kind."""
    return name if name in present else stems.get(fold(Path(name).stem), name)


def captions_in(folder: Path) -> dict[str, str]:
    """The caption of each stem (NFC) in a folder. Raises DatasetError for a file that can't be read."""
    files = captions_by_stem(files_in(folder))
    return {stem: caption_text(read_caption_bytes(path)) for stem, path in files.items()}


def read_old_set(dataset_dir: Path, manifest: Manifest) -> OldSet:
    """Raises DatasetError for a caption that can't be read."""
    processed = dataset_dir / "processed"
    names = origin_names(dataset_dir, manifest)
    made: set[Key] = set()
    edited: dict[Key, str] = {}
    kept: list[Path] = []
    captions: dict[Path, dict[str, str]] = {}
    for path in pictures_below(processed):
        file = path.relative_to(processed).as_posix()
        its = manifest.files.get(file)
        if is_regularisation(file) or file not in names:
            kept.append(path)
            continue
        piece, is_flipped = (its.piece, its.is_flipped) if its is not None else (1, False)
        made.add(key := (names[file], piece, is_flipped))
        if path.parent not in captions:
            captions[path.parent] = captions_in(path.parent)
        caption = captions[path.parent].get(caption_stem(path))
        if caption is not None and (its is None or its.caption != caption):
            edited.setdefault(key, caption)
    stems = {fold(path.stem): path.name for path in origins(dataset_dir)}
    for aside in manifest.aside:
        key = _now_called(aside.origin, stems, stems.values()), aside.piece, aside.is_flipped
        if key not in made:
            edited[key] = aside.caption
    folders = {name: file.rpartition("/")[0] for file, name in names.items()}
    generated = {its.digest: (its.generated, its.generated_by) for its in manifest.files.values() if its.generated}
    return OldSet(folders, made, edited, generated, kept)


def is_regularisation(file: str) -> bool:
    return file.partition("/")[0].casefold() == REGULARISATION and "/" in file


def pictures_below(processed: Path) -> list[Path]:
    """In the folders in which a set's pictures are looked for, also where these are links, and any deeper one."""
    found: list[Path] = []
    for root, folders, names in walk(processed):
        folders[:] = [name for name in folders if not name.startswith(".") and not is_mask_folder(name)]
        paths = (Path(root) / name for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()]
    return sorted(found)


def files_in(folder: Path) -> list[Path]:
    """The files in a folder, without hidden ones; none where there is no folder."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    except FileNotFoundError:
        return []
