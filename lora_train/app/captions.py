"""The caption editor: all captions of a version seen, filtered, edited at once, undone, and as they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from lora_train.app.caption_writing import (
    EditTitle,
    HistoryStamp,
    history_stamp,
    unknown_picture,
    version_history,
    write_step,
    write_version_history,
)
from lora_train.app.datasets import Datasets
from lora_train.app.planning import check_base_model, make_plan
from lora_train.app.remembered import Remembered, RememberedByKey
from lora_train.app.version_settings import train_settings
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, DatasetError, JobError, TrainToolsError
from lora_train.core.families import CheckpointFacts
from lora_train.core.workspace import Version, Workspace
from lora_train.data.caption_edits import Context, Operation, apply, title
from lora_train.data.caption_files import write_captions
from lora_train.data.caption_filters import FilterMode, matching, parse_filter
from lora_train.data.caption_history import Direction, History, Step, moved
from lora_train.data.caption_tags import TagCount, common_tags, count_tags, one_off_tags, tag_key
from lora_train.data.captions import split_tags
from lora_train.data.expressions import LONGEST_CAPTION
from lora_train.data.tokens import cut_count, token_count
from lora_train.data.trained_text import TrainedText, plain_texts, trained_text

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset, Picture

RowOrder = Literal["name", "caption", "most tokens", "fewest tokens"]


class CaptionRow(msgspec.Struct, frozen=True):
    """One picture and its caption."""

    file: str
    """Relative to `dataset/processed`."""
    caption: str
    """As it is in its file."""
    tags: list[str]
    tokens: int | None
    """Of the text that is trained: trigger word included, or the concept's name for an empty caption. None where it
    could not be counted."""
    cut_tokens: int
    """How many of them training cuts off; more than 0 is over the limit."""
    is_regularisation: bool
    stamp: str
    """Changes with the file, for the address of its thumbnail."""


class StepTitle(msgspec.Struct, frozen=True):
    """A step that can be undone or redone."""

    what: str
    """Fixed words, e.g. "Add tags"."""
    detail: str
    """What the person typed."""
    pictures: int
    time: float
    """Unix seconds."""


class CaptionsSnapshot(msgspec.Struct):
    """All that the caption editor shows."""

    rows: list[CaptionRow] = []
    """Those that the filter lets through; regularisation pictures last."""
    total: int = 0
    """Pictures of the trained set, with and without what the filter hides."""
    tags: list[TagCount] = []
    """Of all training pictures, the most frequent first."""
    common: list[str] = []
    """Tags of more than 80 % of the training pictures."""
    one_off: list[str] = []
    """Tags of a single one."""
    undo: StepTitle | None = None
    redo: StepTitle | None = None
    trigger_word: str = ""
    max_tokens: int = 0
    problems: list[str] = []
    """Why tokens could not be counted, or the history not be read."""


class AllPictures(msgspec.Struct, frozen=True, tag_field="kind", tag="all", forbid_unknown_fields=True):
    """Every training picture; regularisation pictures have captions of their own."""


class FilteredPictures(msgspec.Struct, frozen=True, tag_field="kind", tag="filtered", forbid_unknown_fields=True):
    """The training pictures that a filter lets through."""

    filter: str
    mode: FilterMode = "and"


class ChosenPictures(msgspec.Struct, frozen=True, tag_field="kind", tag="chosen", forbid_unknown_fields=True):
    """These, regularisation pictures too."""

    files: list[str]


Scope = AllPictures | FilteredPictures | ChosenPictures

_THE_REST: dict[Direction, str] = {
    "undo": "Press Undo again for the others.",
    "redo": "Press Redo again for the others.",
}


class CaptionChange(msgspec.Struct, frozen=True):
    """What an edit makes of one caption."""

    file: str
    before: str
    after: str


class EditResult(msgspec.Struct, frozen=True):
    """What was done."""

    what: str
    detail: str
    changed: int
    """Captions that are others now."""
    problems: list[str] = []
    """One sentence for every caption that could not be put back."""


class Captions:
    def __init__(self, workspace: Workspace, datasets: Datasets) -> None:
        self._workspace = workspace
        self._datasets = datasets
        self._histories: RememberedByKey[Path, tuple[HistoryStamp, History]] = RememberedByKey()
        self._tables: Remembered[_Table] = Remembered()

    def view(
        self, project: str, version: str, filter_text: str = "", mode: FilterMode = "and", order: RowOrder = "name"
    ) -> CaptionsSnapshot:
        """The captions that a filter lets through (see `data.caption_filters`), and what is known of all.

        Raises WorkspaceError for an unknown version, ConfigError for a filter that can't be read.
        """
        found = self._workspace.find_version(project, version)
        chosen = parse_filter(filter_text, mode)
        snapshot = CaptionsSnapshot()
        try:
            history = self._history(found)
        except DatasetError as error:
            snapshot.problems.append(error.message)
        else:
            snapshot.undo, snapshot.redo = _step_title(history.to_undo()), _step_title(history.to_redo())
        settings = train_settings(found)
        snapshot.trigger_word, snapshot.max_tokens = settings.trigger_word, settings.max_tokens
        try:
            dataset = self._datasets.scan(found)
        except DatasetError:
            matching({}, chosen)  # a wrong filter is told all the same
            return snapshot
        shown = set(matching(_captions_of(dataset.pictures), chosen))
        concept = found.project.info().name
        table = self._tables.of(
            dataset, (settings, concept), lambda: _table(dataset, settings, concept), lambda made: not made.problem
        )
        if table.problem:
            snapshot.problems.append(table.problem)
        snapshot.rows = _ordered([row for row in table.rows if row.file in shown], order)
        snapshot.total = len(table.rows)
        snapshot.tags, snapshot.common, snapshot.one_off = table.tags, table.common, table.one_off
        return snapshot

    def in_scope(self, project: str, version: str, scope: Scope) -> list[str]:
        """The pictures that an edit is for. Raises as `preview`."""
        pictures = self._datasets.pictures(self._workspace.find_version(project, version))
        training = _captions_of([picture for picture in pictures if not picture.is_regularisation])
        return [*_in_scope(scope, pictures, training)]

    def preview(self, project: str, version: str, operation: Operation, scope: Scope) -> list[CaptionChange]:
        """What an edit would change; nothing is written.

        Raises WorkspaceError for an unknown version or picture, ConfigError for an edit or filter that can't be.
        """
        found = self._workspace.find_version(project, version)
        pictures = self._datasets.pictures(found)
        captions = _captions_of(pictures)
        changed = _edited(found, pictures, operation, scope)
        return [CaptionChange(file, captions[file], text) for file, text in changed.items()]

    def edit(self, project: str, version: str, operation: Operation, scope: Scope) -> EditResult:
        """Change the captions of some pictures, as one step that can be undone.

        Raises as `preview`; JobError while a training or an update needs the captions, DatasetError for what can't be
        written.
        """
        found = self._workspace.find_version(project, version)
        edit_title = EditTitle(*title(operation))
        with self._datasets.changing_captions(found) as pictures:
            changed = _edited(found, pictures, operation, scope)
            write_step(found, edit_title, _captions_of(pictures), changed)
        return EditResult(edit_title.what, edit_title.detail, len(changed))

    def undo(self, project: str, version: str) -> EditResult:
        """Take the last edit back, wherever its captions are still there. Raises JobError where there is none."""
        return self._move(project, version, "undo")

    def redo(self, project: str, version: str) -> EditResult:
        """Do again what was undone last. Raises JobError where there is nothing."""
        return self._move(project, version, "redo")

    def trained_text(self, project: str, version: str, file: str, epoch: int = 1) -> TrainedText:
        """Exactly what a picture is trained with in an epoch (from 1), as *Begin Train* would do now.

        Raises WorkspaceError for an unknown version or picture, ConfigError for an epoch that is not trained,
        DatasetError where tokens can't be counted.
        """
        found = self._workspace.find_version(project, version)
        settings = train_settings(found)
        try:
            dataset = self._datasets.scan(found)
        except DatasetError:
            raise unknown_picture(file) from None
        if file not in {picture.path for picture in dataset.pictures}:
            raise unknown_picture(file)
        if not 1 <= epoch <= settings.epochs:
            raise ConfigError([f"Epoch: {epoch} is not a whole number from 1 to {settings.epochs}."])
        try:
            facts = check_base_model(settings)
        except TrainToolsError:
            facts = None
        planner = make_plan(dataset, settings, facts or CheckpointFacts("sd1"), found.project.info().name)
        told = trained_text(dataset, planner, settings, file, epoch)
        return msgspec.structs.replace(told, is_exact=facts is not None)

    # --- details ---

    def _move(self, project: str, version: str, direction: Direction) -> EditResult:
        found = self._workspace.find_version(project, version)
        with self._datasets.changing_captions(found) as pictures:
            outcome = moved(version_history(found), direction, _captions_of(pictures))
            if outcome is None:
                raise JobError("There is nothing to undo." if direction == "undo" else "There is nothing to redo.")
            history, move = outcome
            write_captions(found.dataset_dir, move.captions, self._workspace.trash, _THE_REST[direction])
            write_version_history(found, history)
        return EditResult(move.step.what, move.step.detail, len(move.captions), move.problems)

    def _history(self, version: Version) -> History:
        """Read again only when it has changed, or a job writes captions: the page asks often."""
        stamp = history_stamp(version)
        kept = self._histories.of(version.path)
        if kept is None or kept[0] != stamp:
            kept = stamp, version_history(version)
            self._histories.put(version.path, kept)
        return kept[1]


def _edited(version: Version, pictures: Sequence[Picture], operation: Operation, scope: Scope) -> dict[str, str]:
    """The captions that an edit changes, by picture."""
    training = _captions_of([picture for picture in pictures if not picture.is_regularisation])
    context = Context(
        train_settings(version).trigger_word,
        {tag_key(count.tag): count.pictures for count in count_tags(training.values())},
    )
    return apply(operation, _in_scope(scope, pictures, training), context)


def _captions_of(pictures: Sequence[Picture]) -> dict[str, str]:
    return {picture.path: picture.caption for picture in pictures}


def _in_scope(scope: Scope, pictures: Sequence[Picture], training: Mapping[str, str]) -> Mapping[str, str]:
    """The captions that an edit is for."""
    match scope:
        case AllPictures():
            return training
        case FilteredPictures():
            return {file: training[file] for file in matching(training, parse_filter(scope.filter, scope.mode))}
        case ChosenPictures():
            everything = _captions_of(pictures)
            for file in scope.files:
                if file not in everything:
                    raise unknown_picture(file)
            return {file: everything[file] for file in scope.files}


class _Table(NamedTuple):
    """What is known of all captions, whatever the filter."""

    rows: list[CaptionRow]
    problem: str
    """Why tokens could not be counted; empty where they were."""
    tags: list[TagCount]
    common: list[str]
    one_off: list[str]


def _table(dataset: Dataset, settings: TrainSettings, concept: str) -> _Table:
    counts, problem = _count_tokens(dataset, settings, concept)
    rows = [_row(*pair) for pair in zip(dataset.pictures, counts, strict=True)]
    training = [row.caption for row in rows if not row.is_regularisation]
    tags = count_tags(training)
    return _Table(rows, problem, tags, common_tags(tags, len(training)), one_off_tags(tags))


class _Counted(NamedTuple):
    tokens: int | None
    cut: int


def _count_tokens(dataset: Dataset, settings: TrainSettings, concept: str) -> tuple[list[_Counted], str]:
    """The tokens of each picture's text as it is trained, and why they could not be counted."""
    texts = plain_texts(dataset, settings, concept)
    max_tokens = settings.max_tokens
    not_counted = _Counted(None, 0)
    try:
        counts = [
            _Counted(token_count(text), cut_count(text, max_tokens)) if len(text) <= LONGEST_CAPTION else not_counted
            for text in texts
        ]
    except DatasetError as error:
        return [not_counted] * len(texts), error.message
    return counts, ""


def _row(picture: Picture, counted: _Counted) -> CaptionRow:
    return CaptionRow(
        file=picture.path,
        caption=picture.caption,
        tags=split_tags(picture.caption),
        tokens=counted.tokens,
        cut_tokens=counted.cut,
        is_regularisation=picture.is_regularisation,
        stamp=picture.digest[:12],
    )


def _ordered(rows: list[CaptionRow], order: RowOrder) -> list[CaptionRow]:
    """Rows that are equal in it stay in the order of their names."""
    match order:
        case "name":
            pass
        case "caption":
            rows = sorted(rows, key=lambda row: tag_key(row.caption))
        case "most tokens":
            rows = sorted(rows, key=lambda row: -(row.tokens or 0))
        case "fewest tokens":
            rows = sorted(rows, key=lambda row: row.tokens or 0)
    return sorted(rows, key=lambda row: row.is_regularisation)


def _step_title(step: Step | None) -> StepTitle | None:
    return None if step is None else StepTitle(step.what, step.detail, len(step.changes), step.time)
