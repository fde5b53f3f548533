"""*Update Dataset*: makes the trained set of a version from the uploaded pictures.

The new set is built beside the old one and takes its place by a rename; the old one goes to the trash. What is there
by hand stays: captions that were edited, folders of other concepts with their repeats, regularisation pictures.
`processed.json` beside the set remembers which original each file came from and the caption it was given, so that an
edited caption is told from a written one.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from lora_train.core.config import CaptionAction, DatasetSettings
from lora_train.core.errors import DatasetError, WorkspaceError
from lora_train.core.events import EventWriter, Note, Phase
from lora_train.core.files import replace, write_bytes, write_text
from lora_train.core.jobs import DatasetSpec, JobFolder, RequestedEnd
from lora_train.core.trash import Trash
from lora_train.core.workspace import fold, folder_name
from lora_train.data.captions import caption_path, read_caption
from lora_train.data.dataset import auto_repeats
from lora_train.data.images import PICTURE_SUFFIXES, open_picture
from lora_train.data.preprocess import crop_and_resize, flipped

REGULARISATION = "reg"
_FLIP = "-flip"


class Made(msgspec.Struct, frozen=True):
    """A file of the trained set: the original it came from, and the caption that was written with it."""

    origin: str
    caption: str


class Manifest(msgspec.Struct):
    """`processed.json`: the files that *Update Dataset* made, relative to the trained set."""

    files: dict[str, Made] = {}


class _Task(NamedTuple):
    origin: Path
    target: Path
    """Of the picture, without suffix."""


def read_manifest(dataset_dir: Path) -> Manifest:
    """An empty one where there is none, or one that can't be read: every caption then counts as edited."""
    try:
        return msgspec.json.decode((dataset_dir / "processed.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return Manifest()


def origins(dataset_dir: Path) -> list[Path]:
    """The uploaded pictures, in the order of their names."""
    try:
        found = [path for path in (dataset_dir / "origin").iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    except FileNotFoundError:
        return []
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: (fold(path.name), path))


def trained_origins(dataset_dir: Path, manifest: Manifest) -> dict[str, str]:
    """Name of each original that is in the trained set -> the sub-folder of the set that it is in.

    Without an entry in the manifest (a set made by `lora-train train`, or by hand) equal names tell.
    """
    processed = dataset_dir / "processed"
    folders: dict[str, str] = {}
    for path in processed.rglob("*"):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            file = path.relative_to(processed).as_posix()
            made = manifest.files.get(file)
            folders[made.origin if made else path.name] = file.rpartition("/")[0]
    return folders


def update_dataset(spec: DatasetSpec, job: JobFolder, events: EventWriter) -> dict[str, object]:
    """Build the new set and put it in place. Pictures that can't be used are told in notes, and left out.

    Raises DatasetError when no picture is left, RequestedEnd when the person asked to stop: the old set then stays.
    """
    dataset_dir = (job.path / spec.dataset).resolve()
    manifest = read_manifest(dataset_dir)
    fresh = dataset_dir / "processed.new"
    shutil.rmtree(fresh, ignore_errors=True)
    tasks = _tasks(dataset_dir, fresh, manifest, spec)
    captions = _edited_captions(dataset_dir, manifest)
    made: dict[str, Made] = {}
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            results = pool.map(partial(_make, fresh=fresh, spec=spec, edited=captions), tasks)
            for done, result in enumerate(results):
                if isinstance(result, str):
                    events.write(Note("warning", result))
                else:
                    made |= result
                events.write(Phase(name="cropping pictures", done=done + 1, total=len(tasks)))
                if (request := job.requested()) is not None:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise RequestedEnd(request)
        if not made:
            raise DatasetError(
                "None of the uploaded pictures can be used." if tasks else "There are no uploaded pictures yet.",
                "Drop 10-20 pictures on Upload Dataset.",
            )
        _swap(dataset_dir, fresh, Trash((job.path / spec.trash).resolve(), _workspace_root(job, spec)))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    write_bytes(dataset_dir / "processed.json", msgspec.json.encode(Manifest(made)))
    return {"pictures": len(made)}


def _workspace_root(job: JobFolder, spec: DatasetSpec) -> Path:
    return (job.path / spec.trash).resolve().parent


def _tasks(dataset_dir: Path, fresh: Path, manifest: Manifest, spec: DatasetSpec) -> list[_Task]:
    """Which original becomes which file."""
    folders = trained_origins(dataset_dir, manifest)
    concept = folder_name(spec.concept)
    chosen: list[tuple[Path, str]] = []
    for origin in origins(dataset_dir):
        folder = folders.get(origin.name, "")
        if folder.split("/")[0].casefold() != REGULARISATION:
            is_own = not folder or folder.partition("_")[2] == concept
            chosen.append((origin, "" if is_own else folder))
    own_count = sum(not folder for _, folder in chosen)
    repeats = spec.repeats if spec.repeats > 0 else auto_repeats(max(1, own_count))
    taken: set[str] = set()
    tasks: list[_Task] = []
    for origin, folder in chosen:
        target = fresh / (folder or f"{repeats}_{concept}") / origin.stem
        number = 1
        while fold(str(target)) in taken:
            number += 1
            target = target.with_name(f"{origin.stem}-{number}")
        taken |= {fold(str(target)), fold(f"{target}{_FLIP}")}
        tasks.append(_Task(origin, target))
    return tasks


def _edited_captions(dataset_dir: Path, manifest: Manifest) -> dict[tuple[str, bool], str]:
    """(original's name, whether it is the flipped copy) -> the caption that a person gave it."""
    processed = dataset_dir / "processed"
    edited: dict[tuple[str, bool], str] = {}
    for path in processed.rglob("*") if processed.is_dir() else ():
        if path.suffix.lower() not in PICTURE_SUFFIXES or caption_path(path) is None:
            continue
        made = manifest.files.get(path.relative_to(processed).as_posix())
        caption = read_caption(path)
        if made is None or made.caption != caption:
            origin = made.origin if made else path.name
            edited[origin, path.stem.endswith(_FLIP) and made is not None] = caption
    return edited


def _make(task: _Task, fresh: Path, spec: DatasetSpec, edited: dict[tuple[str, bool], str]) -> dict[str, Made] | str:
    """Write the picture, its flipped copy if wanted, and their captions; a sentence where it can't be used."""
    settings = spec.settings
    try:
        written = caption_of(read_caption(task.origin), spec.concept, settings.caption_action)
        pictures = _write_pictures(task, settings)
    except DatasetError as error:
        return error.message
    made: dict[str, Made] = {}
    for path, is_flipped in pictures:
        caption = edited.get((task.origin.name, is_flipped), written)
        write_text(path.with_suffix(".txt"), caption)
        made[path.relative_to(fresh).as_posix()] = Made(task.origin.name, written)
    return made


def _write_pictures(task: _Task, settings: DatasetSettings) -> list[tuple[Path, bool]]:
    """The files that were written, each with whether it is the flipped copy."""
    task.target.parent.mkdir(parents=True, exist_ok=True)
    picture = open_picture(task.origin)
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
    """Put the new set in the place of the old one, which goes to the trash; regularisation pictures move over."""
    processed = dataset_dir / "processed"
    if processed.exists():
        regularisation = processed / REGULARISATION
        if regularisation.is_dir():
            shutil.copytree(regularisation, fresh / REGULARISATION)
        try:
            trash.put("the trained set before the update", [processed])
        except WorkspaceError as error:
            raise DatasetError(error.message, error.hint) from None
    replace(fresh, processed)
