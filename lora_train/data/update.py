"""*Update Dataset*: makes the trained set of a version from the uploaded pictures.

The new set is built beside the old one and takes its place by a rename; the old one goes to the trash. What was done
by hand stays: captions that were edited, folders of other concepts with their repeats, regularisation pictures, and
pictures that were put into the set directly. A file in the set remembers which original each picture came from and
the caption it was given, so that an edited caption is told from a written one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from lora_train.core.dataset_settings import CaptionAction, DatasetSettings
from lora_train.core.errors import DatasetError, JobError, WorkspaceError
from lora_train.core.events import EventWriter, Note, Phase
from lora_train.core.files import lock, replace, write_bytes, write_text
from lora_train.core.jobs import DatasetSpec, JobFolder, RequestedEnd
from lora_train.core.original import origin_stem
from lora_train.core.trash import Trash
from lora_train.core.workspace import fold, folder_name
from lora_train.data.captions import caption_stem, caption_text, captions_by_stem, read_caption_bytes
from lora_train.data.dataset import auto_repeats
from lora_train.data.existing import existing_captions
from lora_train.data.images import PICTURE_SUFFIXES, open_picture
from lora_train.data.preprocess import crop_and_resize, flipped

REGULARISATION = "reg"
_FLIP = "-flip"
_MOST_AT_ONCE = 8
"""Pictures that are decoded at the same time; a large one takes half a gigabyte."""


class Made(msgspec.Struct, frozen=True):
    """A picture of the trained set: the original it came from, and the caption that was written with it."""

    origin: str
    caption: str
    is_flipped: bool = False
    origin_px: tuple[int, int] = (0, 0)
    """Width and height of the upright original; zeros where it is not known."""
    box_px: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Left, top, right, bottom of what was taken, in the upright original; zeros where it is not known."""
    generated: str = ""
    """What a captioner wrote for it, and who: the same one need not write it again."""
    generated_by: str = ""


class Manifest(msgspec.Struct):
    """`.made.json` in the trained set: the pictures that *Update Dataset* made, relative to the set."""

    files: dict[str, Made] = {}
    concept: str = ""
    """The project's name at that time, as a folder."""


class _Task(NamedTuple):
    origin: Path
    target: Path
    """Of the picture, without suffix."""
    caption: str
    """That came with the original."""


class _OldSet(NamedTuple):
    """What is to be known of the set that is replaced."""

    folders: dict[str, str]
    """Name of each original in it -> the sub-folder that it is in."""
    edited: dict[tuple[str, bool], str]
    """(original's name, whether it is the flipped copy) -> the caption that a person gave it."""
    kept: list[Path]
    """Pictures that no original stands for, and regularisation pictures."""


def read_manifest(dataset_dir: Path) -> Manifest:
    """An empty one where there is none, or one that can't be read: every caption then counts as edited."""
    try:
        return msgspec.json.decode((dataset_dir / "processed" / ".made.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return Manifest()


def origins(dataset_dir: Path) -> list[Path]:
    """The uploaded pictures, in the order of their names."""
    found = [path for path in _files(dataset_dir / "origin") if path.suffix.lower() in PICTURE_SUFFIXES]
    return sorted(found, key=lambda path: (fold(path.name), path))


def origin_names(dataset_dir: Path, manifest: Manifest) -> dict[str, str]:
    """Picture of the trained set, relative to it -> name of the original that it stands for.

    An original that was replaced by one of another kind is known by its stem. A set made by `lora-train train`, or by
    hand, has no manifest: equal names tell, or the names that the original extension gave. A picture that was put there
    directly stands for none.
    """
    processed = dataset_dir / "processed"
    files = {path.relative_to(processed).as_posix(): path for path in _pictures_below(processed)}
    present = {path.name: path for path in origins(dataset_dir)}
    stems = {fold(path.stem): path.name for path in present.values()}
    told = {file: manifest.files[file].origin for file in files if file in manifest.files}
    names = {file: name if name in present else stems.get(fold(Path(name).stem), name) for file, name in told.items()}
    uploaded = {name: path for name, path in present.items() if name not in names.values()}
    for file, path in files.items():
        if file in names:
            continue
        if path.name in uploaded:
            is_same_size = path.stat().st_size == uploaded[path.name].stat().st_size
            if not _is_regularisation(file) or is_same_size:
                names[file] = path.name
        elif not manifest.files and not _is_regularisation(file) and (stem := fold(origin_stem(path.stem))) in stems:
            names[file] = stems[stem]
    return names


def captions_in(folder: Path) -> dict[str, str]:
    """The caption of each stem (NFC) in a folder. Raises DatasetError for a file that can't be read."""
    return {stem: caption_text(read_caption_bytes(path)) for stem, path in captions_by_stem(_files(folder)).items()}


def update_dataset(spec: DatasetSpec, job: JobFolder, events: EventWriter) -> dict[str, object]:
    """Build the new set and put it in place. Pictures that can't be used are told in notes, and left out.

    Raises DatasetError when no picture is left, JobError while another process updates the same set, RequestedEnd
    when the person asked to stop: the old set then stays.
    """
    dataset_dir = (job.path / spec.dataset).resolve()
    trash_dir = (job.path / spec.trash).resolve()
    dataset_dir.mkdir(parents=True, exist_ok=True)
    held = lock(dataset_dir / ".update-lock")
    if held is None:
        raise JobError("The dataset is being updated already.", "Wait for its end.")
    with held:
        trash = Trash(trash_dir, trash_dir.parent)
        _finish_swap(dataset_dir, trash)
        fresh = dataset_dir / "processed.new"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            made = _build(dataset_dir, fresh, spec, job, events)
            _swap(dataset_dir, fresh, trash)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return {"pictures": made}


def _build(dataset_dir: Path, fresh: Path, spec: DatasetSpec, job: JobFolder, events: EventWriter) -> int:
    """Make the new set in `fresh`; how many pictures it has."""
    manifest = read_manifest(dataset_dir)
    concept = folder_name(spec.concept)
    old = _read_old_set(dataset_dir, manifest)
    kept = _copy_kept(old.kept, dataset_dir / "processed", fresh)
    tasks = _tasks(dataset_dir, fresh, old.folders, {concept, manifest.concept or concept}, spec, kept)
    made: dict[str, Made] = {}
    with ThreadPoolExecutor(max_workers=min(_MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
        results = pool.map(partial(_make, fresh=fresh, spec=spec, edited=old.edited), tasks)
        for done, result in enumerate(results):
            if isinstance(result, str):
                events.write(Note("warning", result))
            else:
                made |= result
            events.write(Phase(name="cropping pictures", done=done + 1, total=len(tasks)))
            if (request := job.requested()) is not None:
                pool.shutdown(wait=True, cancel_futures=True)
                raise RequestedEnd(request)
    if not made and all(_is_regularisation(file) for file in kept):
        raise DatasetError(
            "None of the uploaded pictures can be used." if tasks else "There are no uploaded pictures yet.",
            "Drop 10-20 pictures on Upload Dataset.",
        )
    write_bytes(fresh / ".made.json", msgspec.json.encode(Manifest(made, concept)))
    return len(made) + len(kept)


def _read_old_set(dataset_dir: Path, manifest: Manifest) -> _OldSet:
    processed = dataset_dir / "processed"
    names = origin_names(dataset_dir, manifest)
    edited: dict[tuple[str, bool], str] = {}
    kept: list[Path] = []
    captions: dict[Path, dict[str, str]] = {}
    for path in _pictures_below(processed):
        file = path.relative_to(processed).as_posix()
        made = manifest.files.get(file)
        if _is_regularisation(file) or file not in names:
            kept.append(path)
            continue
        if path.parent not in captions:
            captions[path.parent] = captions_in(path.parent)
        caption = captions[path.parent].get(caption_stem(path))
        if caption is not None and (made is None or made.caption != caption):
            edited.setdefault((names[file], made is not None and made.is_flipped), caption)
    folders = {name: file.rpartition("/")[0] for file, name in names.items()}
    return _OldSet(folders, edited, kept)


def _copy_kept(pictures: list[Path], processed: Path, fresh: Path) -> list[str]:
    """Copy pictures and their captions to the same places in the new set; where that is, relative to it."""
    captions = {folder: captions_by_stem(_files(folder)) for folder in {path.parent for path in pictures}}
    for path in pictures:
        target = fresh / path.relative_to(processed)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        if (caption := captions[path.parent].get(caption_stem(path))) is not None:
            shutil.copy2(caption, target.with_name(caption.name))
    return [path.relative_to(processed).as_posix() for path in pictures]


def _tasks(
    dataset_dir: Path, fresh: Path, folders: dict[str, str], own: set[str], spec: DatasetSpec, kept: list[str]
) -> list[_Task]:
    """Which original becomes which picture. Those in a folder of one of the `own` concepts go into the new one."""
    chosen: list[tuple[Path, str]] = []
    for origin in origins(dataset_dir):
        folder = folders.get(origin.name, "")
        if not _is_regularisation(f"{folder}/"):
            is_own = not folder or folder.partition("_")[2] in own
            chosen.append((origin, "" if is_own else folder))
    own_count = sum(not folder for _, folder in chosen) * (2 if spec.settings.flip else 1)
    repeats = spec.repeats if spec.repeats > 0 else auto_repeats(max(1, own_count))
    captions = existing_captions(dataset_dir / "origin")
    taken = {fold(str((fresh / file).with_suffix(""))) for file in kept}
    tasks: list[_Task] = []
    for origin, folder in chosen:
        target = fresh / (folder or f"{repeats}_{folder_name(spec.concept)}") / origin.stem
        number = 1
        while taken & {fold(str(target)), fold(f"{target}{_FLIP}")}:
            number += 1
            target = target.with_name(f"{origin.stem}-{number}")
        taken |= {fold(str(target)), fold(f"{target}{_FLIP}")}
        tasks.append(_Task(origin, target, captions.get(caption_stem(origin), "")))
    return tasks


def _make(task: _Task, fresh: Path, spec: DatasetSpec, edited: dict[tuple[str, bool], str]) -> dict[str, Made] | str:
    """Write the picture, its flipped copy if wanted, and their captions; a sentence where it can't be used."""
    settings = spec.settings
    try:
        pictures = _write_pictures(task, settings)
    except DatasetError as error:
        return error.message
    generated = " ".join(spec.concept.split())
    written = caption_of(task.caption, generated, settings.caption_action)
    made: dict[str, Made] = {}
    for path, is_flipped in pictures:
        caption = edited.get((task.origin.name, is_flipped), written)
        write_text(path.with_suffix(".txt"), caption)
        made[path.relative_to(fresh).as_posix()] = Made(task.origin.name, written, is_flipped)
    return made


def _write_pictures(task: _Task, settings: DatasetSettings) -> list[tuple[Path, bool]]:
    """The files that were written, each with whether it is the flipped copy."""
    picture = open_picture(task.origin)
    task.target.parent.mkdir(parents=True, exist_ok=True)
    if settings.as_is:
        path = task.target.with_name(task.target.name + task.origin.suffix)
        shutil.copy2(task.origin, path)
    else:
        path = task.target.with_name(f"{task.target.name}.png")
        picture = crop_and_resize(picture, settings.width_px, settings.height_px)
        picture.save(path)
    if not settings.flip:
        return [(path, False)]
    copy = task.target.with_name(f"{task.target.name}{_FLIP}.png")
    flipped(picture).save(copy)
    return [(path, False), (copy, True)]


def caption_of(existing: str, generated: str, action: CaptionAction) -> str:
    """The caption of a picture, from the one that came with it and the one that was made for it.

    Joined by a comma, not by the original's blank: tags would run into each other.
    """
    if action == "copy":
        return existing or generated
    parts = {"ignore": (generated,), "prepend": (existing, generated), "append": (generated, existing)}[action]
    return ", ".join(part for part in parts if part)


def _swap(dataset_dir: Path, fresh: Path, trash: Trash) -> None:
    """Put the new set in the place of the old one, which goes to the trash."""
    processed, old = dataset_dir / "processed", dataset_dir / "processed.old"
    if processed.exists():
        replace(processed, old)
    replace(fresh, processed)
    with suppress(WorkspaceError):  # the new set is in place; the next update tries again
        _put_away(old, trash)


def _finish_swap(dataset_dir: Path, trash: Trash) -> None:
    """A worker may have died within a swap: between its two renames the old set comes back, else it is put away."""
    processed, old = dataset_dir / "processed", dataset_dir / "processed.old"
    if old.exists() and not processed.exists():
        replace(old, processed)
    _put_away(old, trash)


def _put_away(old: Path, trash: Trash) -> None:
    if old.exists():
        trash.put("the trained set before the update", [old])


def _is_regularisation(file: str) -> bool:
    return file.partition("/")[0].casefold() == REGULARISATION and "/" in file


def _pictures_below(processed: Path) -> Iterator[Path]:
    """In the folders in which a set's pictures are looked for, and any deeper one."""
    for path in sorted(processed.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(processed).parts)
        if path.suffix.lower() in PICTURE_SUFFIXES and not is_hidden and path.is_file():
            yield path


def _files(folder: Path) -> list[Path]:
    """The files in a folder, without hidden ones; none where there is no folder."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
