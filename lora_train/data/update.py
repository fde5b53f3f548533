"""*Update Dataset*: makes the trained set of a version from the uploaded pictures.

The new set is built beside the old one and takes its place by a rename; the old one goes to the trash. What was done
by hand stays: captions that were edited, folders of other concepts with their repeats, regularisation pictures, and
pictures that were put into the set directly. A file in the set remembers which original each picture came from and
the caption it was given, so that an edited caption is told from a written one.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from lora_train.core.dataset_settings import CaptionAction, DatasetSettings
from lora_train.core.errors import DatasetError, JobError
from lora_train.core.events import EventWriter, Note, Phase
from lora_train.core.failures import file_of
from lora_train.core.files import lock, write_bytes, write_text
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.names import fold, folder_name
from lora_train.core.sealed import sealed
from lora_train.core.specs import DatasetSpec
from lora_train.core.trash import Trash
from lora_train.data.captioner import Captioner
from lora_train.data.captions import caption_stem, captions_by_stem
from lora_train.data.dataset import auto_repeats
from lora_train.data.existing import existing_captions
from lora_train.data.facts import facts_phase
from lora_train.data.generating import generate
from lora_train.data.manifest import Aside, Made, Manifest, gone_from, read_manifest
from lora_train.data.masks import MASK_FOLDER, masks_by_stem
from lora_train.data.pieces import Room, Task, Written, cores, free_targets, piece_count, upright_size, write_pieces
from lora_train.data.preprocess import candidate_sizes, why_not
from lora_train.data.swapping import finish_swap, swap
from lora_train.data.trained_set import Key, OldSet, files_in, is_regularisation, origins, read_old_set

_Result = tuple[Task, list[Written]]
_Files = dict[Path, Made]


def update_dataset(
    spec: DatasetSpec, job: JobFolder, events: EventWriter, captioner: Captioner | None = None
) -> dict[str, object]:
    """Build the new set and put it in place. Pictures that can't be used are told in notes, and left out.

    Pictures without a caption get one from the captioner, or the spec's `concept`. Raises DatasetError when no
    picture is left or a file can't be written, JobError while another process updates the same set, RequestedEnd
    when the person asked to stop: the old set then stays.
    """
    dataset_dir = (job.path / spec.dataset).resolve()
    try:
        return _update(dataset_dir, spec, job, events, captioner)
    except OSError as error:
        place = f" ({file})" if (file := file_of(error)) else ""
        raise DatasetError(
            f"The trained set in {dataset_dir} can't be updated, and stays as it was: "
            f"{error.strerror or error}{place}.",
            "Check that the folder can be written and that the disk has room.",
        ) from error


def _update(
    dataset_dir: Path, spec: DatasetSpec, job: JobFolder, events: EventWriter, captioner: Captioner | None
) -> dict[str, object]:
    """Alone in the dataset's folder: build, swap, and leave nothing half-made behind."""
    trash_dir = (job.path / spec.trash).resolve()
    dataset_dir.mkdir(parents=True, exist_ok=True)
    held = lock(dataset_dir / ".update-lock")
    if held is None:
        raise JobError("The dataset is being updated already.", "Wait for its end.")
    with held:
        trash = Trash(trash_dir, trash_dir.parent)
        processed, fresh = dataset_dir / "processed", dataset_dir / "processed.new"
        finish_swap(processed, trash)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            made = _build(dataset_dir, fresh, spec, job, events, captioner)
            swap(processed, fresh, trash)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError, DatasetError):  # the new set is in place; the health check can look again
            facts_phase(dataset_dir, events, job.requested)
    return {"pictures": made}


def _build(
    dataset_dir: Path, fresh: Path, spec: DatasetSpec, job: JobFolder, events: EventWriter, captioner: Captioner | None
) -> int:
    """Make the new set in `fresh`; how many pictures it has."""
    _require_sizes(spec.settings)
    manifest = read_manifest(dataset_dir)
    concept = folder_name(spec.project or spec.concept)
    old = read_old_set(dataset_dir, manifest)
    kept = _copy_kept(old.kept, dataset_dir / "processed", fresh)
    folders = {
        name: "" if not folder or folder.partition("_")[2] in (concept, manifest.concept) else folder
        for name, folder in old.folders.items()
    }
    tasks = _tasks(dataset_dir, fresh, folders, spec, kept)
    debug_dir = dataset_dir / "debug" if spec.settings.focal_debug else None
    written = _write_all(tasks, spec.settings, debug_dir, job, events)
    if not written and all(is_regularisation(file) for file in kept):
        raise DatasetError(
            "None of the uploaded pictures can be used." if tasks else "There are no uploaded pictures yet.",
            "Drop 10-20 pictures on Upload Dataset.",
        )
    generated: dict[Path, str] = {}
    if captioner is not None:
        generated = _generated(written, old, spec.settings.caption_action, captioner, job, events)
    files = _caption(written, old, spec, generated, captioner.fingerprint if captioner else "")
    made = {path.relative_to(fresh).as_posix(): its for path, its in files.items()}
    gone = {file: its for file, its in gone_from(manifest, dataset_dir).items() if file not in made}
    told = Manifest(made, concept, _fallback(spec), gone, _aside(written, old, dataset_dir))
    write_bytes(fresh / ".made.json", sealed(msgspec.json.encode(told)))
    return len(made) + len(kept)


def _fallback(spec: DatasetSpec) -> str:
    return " ".join(spec.concept.split())


def _aside(made: list[_Result], old: OldSet, dataset_dir: Path) -> list[Aside]:
    """The captions of a person for which there is no picture now: the flipped copies or pieces may come back."""
    keys = {_key(task, its) for task, pictures in made for its in pictures}
    present = {path.name for path in origins(dataset_dir)}
    return [Aside(*key, caption) for key, caption in old.edited.items() if key not in keys and key[0] in present]


def _require_sizes(settings: DatasetSettings) -> None:
    """Raise DatasetError for an auto-sized crop that has no size to choose from."""
    if settings.multicrop and not settings.as_is and not candidate_sizes(settings):
        raise DatasetError(
            "No size lies within the bounds of the auto-sized crop: sides from "
            f"{settings.multicrop_min_side_px} to {settings.multicrop_max_side_px} pixels, areas from "
            f"{settings.multicrop_min_area_px} to {settings.multicrop_max_area_px}.",
            "Widen the bounds; sizes go in steps of 64 pixels from the lower one on.",
        )


def _copy_kept(pictures: list[Path], processed: Path, fresh: Path) -> list[str]:
    """Copy pictures, their captions and masks to the same places in the new set; where that is, relative to it."""
    folders = {path.parent for path in pictures}
    captions = {folder: captions_by_stem(files_in(folder)) for folder in folders}
    masks = {folder: masks_by_stem(folder) for folder in folders}
    for path in pictures:
        target = fresh / path.relative_to(processed)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        if (caption := captions[path.parent].get(caption_stem(path))) is not None:
            shutil.copy2(caption, target.with_name(caption.name))
        if (mask := masks[path.parent].get(caption_stem(path))) is not None:
            place = target.parent / MASK_FOLDER / mask.name
            place.parent.mkdir(exist_ok=True)
            shutil.copy2(mask, place)
    return [path.relative_to(processed).as_posix() for path in pictures]


def _tasks(dataset_dir: Path, fresh: Path, folders: dict[str, str], spec: DatasetSpec, kept: list[str]) -> list[Task]:
    """Which original becomes which pictures. Those without a folder in `folders` go into the one of the project."""
    chosen = [path for path in origins(dataset_dir) if not is_regularisation(f"{folders.get(path.name, '')}/")]
    sizes = {path: upright_size(path) for path in chosen}
    counts = {path: piece_count(size, spec.settings) for path, size in sizes.items()}
    own_count = sum(counts[path] for path in chosen if not folders.get(path.name))
    repeats = spec.repeats if spec.repeats > 0 else auto_repeats(max(1, own_count * (2 if spec.settings.flip else 1)))
    own_folder = f"{repeats}_{folder_name(spec.project or spec.concept)}"
    captions = existing_captions(dataset_dir / "origin")
    masks = masks_by_stem(dataset_dir / "origin")
    taken = {fold(str((fresh / file).with_suffix(""))) for file in kept}
    tasks: list[Task] = []
    for path in chosen:
        folder = fresh / (folders.get(path.name) or own_folder)
        targets = free_targets(folder, path.stem, counts[path], taken)
        stem = caption_stem(path)
        tasks.append(Task(path, sizes[path], targets, captions.get(stem, ""), masks.get(stem)))
    return tasks


def _write_all(
    tasks: list[Task], settings: DatasetSettings, debug_dir: Path | None, job: JobFolder, events: EventWriter
) -> list[_Result]:
    """The pictures of all originals that can be used, on all cores: Pillow works without Python's lock."""
    made: list[_Result] = []
    taken: set[str] = set()
    debug_paths = [_debug_path(debug_dir, task, taken) for task in tasks]
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        try:
            results = pool.map(partial(_pieces_or_why, settings=settings, room=Room()), tasks, debug_paths)
            for done, (task, result) in enumerate(zip(tasks, results, strict=True), 1):
                if isinstance(result, str):
                    events.write(Note("warning", result))
                else:
                    made.append((task, result))
                    reasons = why_not(result[0].origin_px, settings)
                    events.write(*(Note("warning", f"{task.origin.name} {reason}") for reason in reasons))
                events.write(Phase(name="cropping pictures", done=done, total=len(tasks)))
                if (request := job.requested()) is not None:
                    raise RequestedEnd(request)
        except BaseException:  # also a full disk: nothing more is begun
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return made


def _pieces_or_why(task: Task, debug_path: Path | None, settings: DatasetSettings, room: Room) -> list[Written] | str:
    """A sentence where the original can't be used."""
    try:
        return write_pieces(task, settings, room, debug_path)
    except DatasetError as error:
        return error.message


def _debug_path(debug_dir: Path | None, task: Task, taken: set[str]) -> Path | None:
    """For the debug picture of an original, beside those of the others."""
    if debug_dir is None:
        return None
    (target,) = free_targets(debug_dir, task.origin.stem, 1, taken)
    return target.with_name(f"{target.name}.png")


def _caption(made: list[_Result], old: OldSet, spec: DatasetSpec, generated: dict[Path, str], by: str) -> _Files:
    """Write the caption of every picture; what the manifest is to tell of each."""
    fallback = _fallback(spec)
    files: _Files = {}
    for task, pictures in made:
        text = ""
        for its in pictures:
            text = text if its.is_flipped else generated.get(its.path, "")
            caption = caption_of(task.caption, text or fallback, spec.settings.caption_action)
            by_hand = old.caption_by_hand(_key(task, its))
            write_text(its.path.with_suffix(".txt"), caption if by_hand is None else by_hand)
            # What was written for these pixels is kept for the next time, used or not.
            wrote = (text, by) if text else old.generated.get(its.digest, ("", ""))
            where = its.origin_px, its.box_px
            files[its.path] = Made(task.origin.name, caption, its.is_flipped, *where, *wrote, its.piece, its.digest)
    return files


def _generated(
    made: list[_Result], old: OldSet, action: CaptionAction, captioner: Captioner, job: JobFolder, events: EventWriter
) -> dict[Path, str]:
    """What the captioner writes for pictures that need it, or wrote for the very same pixels before.

    A flipped copy shares the caption of its twin.
    """
    wanted = [
        its
        for task, pictures in made
        for its in pictures
        if not its.is_flipped
        and not (action == "copy" and task.caption)
        and any(old.caption_by_hand(_key(task, twin)) is None for twin in pictures if twin.piece == its.piece)
    ]
    before = {digest: text for digest, (text, by) in old.generated.items() if by == captioner.fingerprint}
    known = {its.path: before[its.digest] for its in wanted if its.digest in before}
    return known | generate([its.path for its in wanted if its.path not in known], captioner, job, events)


def _key(task: Task, its: Written) -> Key:
    return task.origin.name, its.piece, its.is_flipped


def caption_of(existing: str, generated: str, action: CaptionAction) -> str:
    """The caption of a picture, from the one that came with it and the one that was made for it.

    Joined by a comma, not by the original's blank: tags would run into each other.
    """
    if action == "copy":
        return existing or generated
    parts = {"ignore": (generated,), "prepend": (existing, generated), "append": (generated, existing)}[action]
    return ", ".join(part for part in parts if part)
