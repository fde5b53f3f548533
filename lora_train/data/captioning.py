"""Captions for pictures of the trained set, by whatever writes them: models in a worker, or the host's own in a thread.

What was there before stays recoverable: `captions.jsonl` in the job's folder has each caption before and after, for a
step back, and the replaced files themselves go to the trash.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import msgspec

from lora_train.core.caption_settings import CaptionPolicy
from lora_train.core.dataset_settings import CaptionAction
from lora_train.core.errors import DatasetError, JobError, ModelError, WorkspaceError
from lora_train.core.events import EventWriter, Note, Phase
from lora_train.core.files import DAMAGED_JSON, copy, lock, write_text
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.sealed import sealed, unsealed
from lora_train.core.specs import CaptionSpec
from lora_train.core.trash import Trash
from lora_train.data.captioner import Captioner
from lora_train.data.captions import caption_stem, caption_text, captions_by_stem, read_caption_bytes
from lora_train.data.dataset import Picture, scan_dataset
from lora_train.data.manifest import read_manifest
from lora_train.data.update import caption_of

_ACTIONS: dict[CaptionPolicy, CaptionAction] = {
    "only where empty": "copy",
    "overwrite": "ignore",
    "prepend": "prepend",
    "append": "append",
}
"""What the policies are to `caption_of`."""

_Group = list[Picture]
"""Pictures that get the same caption, from the first of them."""


class Change(msgspec.Struct, frozen=True):
    """A caption that the job replaced; "" where there was none."""

    before: str
    after: str


class _Line(Change, frozen=True):
    """Of the record."""

    file: str


def read_changes(job: JobFolder) -> dict[str, Change]:
    """What a captioning job has written so far, also when it was stopped or killed: picture, relative to the trained
    set -> its caption before and after. The last one may not have been written yet. Empty where it wrote nothing.
    """
    changes: dict[str, Change] = {}
    try:
        lines = record_path(job).read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        with suppress(*DAMAGED_JSON):  # the last one may be half written
            told = msgspec.json.decode(unsealed(line), type=_Line)
            before = changes[told.file].before if told.file in changes else told.before
            changes[told.file] = Change(before, told.after)
    return changes


def write_captions(
    spec: CaptionSpec, job: JobFolder, captioner: Captioner | None, events: EventWriter
) -> dict[str, object]:
    """Caption the chosen pictures, or all that are not for regularisation, as the plan's policy says.

    A picture and its flipped copy get the same caption. A caption that is only `spec.concept`, or what that was at the
    last update, counts as empty; `spec.concept` is written where the captioner has nothing to say. Returns how many
    captions were written and how many stayed.

    Raises DatasetError when there is no usable picture, ModelError when there is no captioner or it can't be used,
    JobError while an update makes the same set anew, RequestedEnd when the person asked to stop: what is written stays.
    """
    if captioner is None:
        raise ModelError("No captioning model was chosen.", "Choose BLIP or a WD14 tagger in the caption settings.")
    dataset_dir = (job.path / spec.dataset).resolve()
    if not dataset_dir.is_dir():
        raise DatasetError(f"There are no pictures in {dataset_dir}.", "Press Update Dataset first.")
    held = lock(dataset_dir / ".update-lock")
    if held is None:
        raise JobError("The dataset is being updated already.", "Wait for its end.")
    with held:
        pictures = _choose(dataset_dir / "processed", spec, events)
        writing = _Writing(dataset_dir, spec, job)
        groups = _groups(dataset_dir, [picture for picture in pictures if not writing.stays(picture.caption)])
        try:
            _caption(groups, captioner, writing, job, events)
        finally:
            writing.put_replaced_away()
    if not writing.changes:
        events.write(Note("info", "All captions stayed as they were: choose another caption policy to replace them."))
    return {"captions": len(writing.changes), "kept": len(pictures) - len(writing.changes)}


def captioned(existing: str, generated: str, policy: CaptionPolicy, fallback: str) -> str:
    """The caption of a picture under a policy. What it has at that end already is not added a second time."""
    if not generated:
        return existing or fallback
    if policy == "only where empty" and existing == fallback:
        return generated
    if policy == "prepend" and f", {existing}".endswith(f", {generated}"):
        return existing
    if policy == "append" and f"{existing}, ".startswith(f"{generated}, "):
        return existing
    return caption_of(existing, generated, _ACTIONS[policy])


def _choose(processed: Path, spec: CaptionSpec, events: EventWriter) -> list[Picture]:
    """The pictures to caption; what can't be is told in notes."""
    found = scan_dataset(processed)
    if not spec.files:
        events.write(*(Note("warning", problem) for problem in found.problems))
        return [picture for picture in found.pictures if not picture.is_regularisation]
    usable = {picture.path: picture for picture in found.pictures}
    for file in spec.files:
        if file not in usable:
            events.write(Note("warning", f"{file} is not among the usable pictures of the dataset."))
    return [usable[file] for file in dict.fromkeys(spec.files) if file in usable]


def _groups(dataset_dir: Path, pictures: list[Picture]) -> list[_Group]:
    """Flipped copies with the pictures that they are copies of, which come first in their group."""
    made = read_manifest(dataset_dir).files
    groups: list[_Group] = []
    by_cut: dict[object, _Group] = {}
    for picture in sorted(pictures, key=lambda its: its.path in made and made[its.path].is_flipped):
        its = made.get(picture.path)
        cut = None if its is None else (its.origin, its.box_px)
        if its is not None and its.is_flipped and cut in by_cut:
            by_cut.pop(cut).append(picture)
            continue
        groups.append([picture])
        if its is not None and not its.is_flipped:
            by_cut[cut] = groups[-1]
    return groups


def _caption(
    groups: list[_Group], captioner: Captioner, writing: _Writing, job: JobFolder, events: EventWriter
) -> None:
    given: deque[_Group] = deque()

    def first_ones() -> Iterator[Path]:
        for group in groups:
            if (path := writing.path_of(group[0])).is_file():  # else it was removed meanwhile
                given.append(group)
                yield path

    _check_request(job)
    events.write(Phase(name="writing captions", done=0, total=len(groups)))
    for done, generated in enumerate(captioner.captions(first_ones())):
        for picture in given.popleft():
            writing.write(picture, generated)
        events.write(Phase(name="writing captions", done=done + 1, total=len(groups)))
        _check_request(job)


def _check_request(job: JobFolder) -> None:
    if (request := job.requested()) is not None:
        raise RequestedEnd(request)


class _Writing:
    """Replaces captions one by one, and keeps what they were."""

    def __init__(self, dataset_dir: Path, spec: CaptionSpec, job: JobFolder) -> None:
        self.changes: dict[str, Change] = {}
        self._processed = dataset_dir / "processed"
        self._listed: dict[Path, dict[str, Path]] = {}
        """Folder -> stem -> the caption file that was there at first."""
        self._replaced = dataset_dir / "captions.old"
        self._policy: CaptionPolicy = spec.plan.settings.policy
        self._fallback = " ".join(spec.concept.split())
        self._fallbacks = {"", self._fallback, read_manifest(dataset_dir).fallback}
        self._record = record_path(job)
        trash_dir = (job.path / spec.trash).resolve()
        self._trash = Trash(trash_dir, trash_dir.parent)
        self.put_replaced_away()  # of a worker that was killed

    def path_of(self, picture: Picture) -> Path:
        return self._processed / picture.path

    def stays(self, caption: str) -> bool:
        """Whether the policy leaves this caption alone, whatever the captioner would write."""
        return self._policy == "only where empty" and caption not in self._fallbacks

    def write(self, picture: Picture, generated: str) -> None:
        """Give the picture its caption. It is read again: a person may have written one meanwhile."""
        path = self.path_of(picture)
        old = self._caption_file(path)
        before = "" if old is None else caption_text(read_caption_bytes(old))
        existing = self._fallback if before and before in self._fallbacks else before
        after = captioned(existing, generated, self._policy, self._fallback)
        if self.stays(before) or after == before:
            return
        self.changes[picture.path] = Change(before, after)
        self._tell(picture.path, before, after)
        if old is not None:
            kept = self._replaced.joinpath(
                *(part for part in PurePosixPath(picture.folder).parts if part != ".."), old.name
            )
            kept.parent.mkdir(parents=True, exist_ok=True)
            copy(old, kept)
        is_text = old is not None and old.suffix.lower() == ".txt"
        write_text(old if old is not None and is_text else path.with_suffix(".txt"), after)

    def _caption_file(self, path: Path) -> Path | None:
        """As `captions.caption_path`; a folder is listed once, not for each of its pictures."""
        if path.parent not in self._listed:
            self._listed[path.parent] = captions_by_stem(path.parent.iterdir())
        listed = self._listed[path.parent].get(caption_stem(path))
        candidates = (path.with_suffix(".txt"), listed, path.with_suffix(".caption"))
        return next((file for file in candidates if file is not None and file.is_file()), None)

    def _tell(self, file: str, before: str, after: str) -> None:
        """A line more in the record, on the disk before the caption is."""
        with self._record.open("ab") as record:
            record.write(sealed(msgspec.json.encode(_Line(before, after, file))) + b"\n")
            record.flush()
            os.fsync(record.fileno())

    def put_replaced_away(self) -> None:
        if self._replaced.exists():
            with suppress(WorkspaceError):  # they stay where they are; the next job tries again
                self._trash.put("the captions before", [self._replaced])


def record_path(job: JobFolder) -> Path:
    """Where a captioning job tells what it changes, a line of JSON for each caption."""
    return job.path / "captions.jsonl"
