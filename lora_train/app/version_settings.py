"""The settings of a version: saved as they are changed, given back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import ConfigError
from lora_train.core.grid_settings import GridSettings
from lora_train.core.records import Damage
from lora_train.core.sd_script_args import Effective, effective_settings
from lora_train.core.settings import Settings, check_settings, unknown_setting
from lora_train.core.sweep_settings import SweepSettings
from lora_train.core.workspace import Version, Workspace

_DAMAGES: dict[Damage, str] = {
    "changed": "The file of these settings, version.json, was changed by another program or is damaged. "
    "Look through the settings: the next change saves them anew.",
    "set aside": "The file of these settings, version.json, was damaged. These are the settings before the last "
    "change, or the usual ones: look through them, then delete version.json.damaged.",
}


class VersionSettings:
    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def train(self, project: str, version: str) -> dict[str, Any]:
        """Every training setting, saved or default. Raises WorkspaceError where there is no such version."""
        return msgspec.structs.asdict(written_settings(self._workspace.find_version(project, version)))

    def effective(self, project: str, version: str) -> TrainSettings:
        """What a training is done with. Raises WorkspaceError where there is no such version."""
        return train_settings(self._workspace.find_version(project, version))

    def dataset(self, project: str, version: str) -> dict[str, Any]:
        """Every dataset setting, saved or default. Raises WorkspaceError where there is no such version."""
        return msgspec.structs.asdict(dataset_settings(self._workspace.find_version(project, version)))

    def caption(self, project: str, version: str) -> dict[str, Any]:
        """Every captioning setting, saved or default. Raises WorkspaceError where there is no such version."""
        return msgspec.structs.asdict(caption_settings(self._workspace.find_version(project, version)))

    def preview(self, project: str, version: str) -> dict[str, Any]:
        """Every setting of the preview panel, likewise."""
        return msgspec.structs.asdict(grid_settings(self._workspace.find_version(project, version)))

    def sweep(self, project: str, version: str) -> dict[str, Any]:
        """Every setting of the sweep, likewise."""
        return msgspec.structs.asdict(sweep_settings(self._workspace.find_version(project, version)))

    def notes(self, project: str, version: str) -> list[str]:
        """A sentence for every setting of the original extension that could not be taken over, until some are saved;
        or what became of the file with the settings.

        Raises WorkspaceError where there is no such version.
        """
        found = self._workspace.find_version(project, version)
        if damage := found.damage():
            return [_DAMAGES[damage]]
        original = found.original_settings()
        if original is None:
            return []
        title = original.base_model
        if not title or self._workspace.path_of_title(title):
            return [*original.notes]
        return [f"Train base model: {title} is not in the list of checkpoints; choose one.", *original.notes]

    def save(
        self,
        project: str,
        version: str,
        train: Mapping[str, Any] | None = None,
        dataset: Mapping[str, Any] | None = None,
        caption: Mapping[str, Any] | None = None,
        preview: Mapping[str, Any] | None = None,
        sweep: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Save what is right of some settings, and return a sentence for everything that is wrong.

        Raises WorkspaceError where there is no such version.
        """
        with self._workspace.find_version(project, version).changing() as info:
            new_train, train_problems = check_settings(train or {}, _saved(info.train, TrainSettings))
            new_dataset, dataset_problems = check_settings(dataset or {}, _saved(info.dataset, DatasetSettings))
            new_caption, caption_problems = check_settings(caption or {}, _saved(info.caption, CaptionSettings))
            info.train, info.dataset = kept_settings(new_train, info.train), kept_settings(new_dataset, info.dataset)
            info.caption = kept_settings(new_caption, info.caption)
            new_preview, preview_problems = check_settings(preview or {}, _saved(info.preview, GridSettings))
            new_sweep, sweep_problems = check_settings(sweep or {}, _saved(info.sweep, SweepSettings))
            info.preview, info.sweep = kept_settings(new_preview, info.preview), kept_settings(new_sweep, info.sweep)
        return train_problems + dataset_problems + caption_problems + preview_problems + sweep_problems

    def change(self, project: str, version: str, values: Mapping[str, Any]) -> None:
        """Save dataset and captioning settings, by their names alone.

        Raises WorkspaceError where there is no such version, ConfigError with all that is wrong: then none is saved.
        """
        dataset = {name: value for name, value in values.items() if name in DatasetSettings.__struct_fields__}
        caption = {name: value for name, value in values.items() if name in CaptionSettings.__struct_fields__}
        known = (*DatasetSettings.__struct_fields__, *CaptionSettings.__struct_fields__)
        problems = [unknown_setting(name, known) for name in values if name not in known]
        found = self._workspace.find_version(project, version)
        if dataset:
            problems += check_settings(dataset, dataset_settings(found))[1]
        if caption:
            problems += check_settings(caption, caption_settings(found))[1]
        if problems:
            raise ConfigError(problems)
        self.save(project, version, dataset=dataset, caption=caption)


def train_settings(version: Version) -> TrainSettings:
    """What a training is done with: the saved ones over the defaults, and the sd_script args over both.

    What another release wrote and this one doesn't know is left out.
    """
    return effective_settings(written_settings(version)).settings


def effective_of(version: Version) -> tuple[Effective, list[str]]:
    """What a training would be done with, and a sentence for everything that is wrong with it or with what is saved."""
    saved = known_settings(version.info().train, TrainSettings)
    written, told = check_settings(saved, TrainSettings())
    combined = check_settings({}, written)[1]  # which the sd_script args may have put right
    effective = effective_settings(written)
    return effective, [*(problem for problem in told if problem not in combined), *effective.problems]


def written_settings(version: Version) -> TrainSettings:
    """As `train_settings`, but as they stand on the page: the sd_script args are a text among them."""
    return _saved(version.info().train, TrainSettings)


def dataset_settings(version: Version) -> DatasetSettings:
    """As `written_settings`."""
    return _saved(version.info().dataset, DatasetSettings)


def caption_settings(version: Version) -> CaptionSettings:
    """As `written_settings`."""
    return _saved(version.info().caption, CaptionSettings)


def grid_settings(version: Version) -> GridSettings:
    """As `written_settings`."""
    return _saved(version.info().preview, GridSettings)


def sweep_settings(version: Version) -> SweepSettings:
    """As `written_settings`."""
    return _saved(version.info().sweep, SweepSettings)


def fallback_caption(version: Version) -> str:
    """The caption of a picture that has no other: the trigger word, or else the project's name."""
    return train_settings(version).trigger_word.strip() or version.project.info().name


def known_settings(saved: Mapping[str, Any], schema: type[Settings]) -> dict[str, Any]:
    """Without what only another release knows."""
    return {name: value for name, value in saved.items() if name in schema.__struct_fields__}


def kept_settings(settings: msgspec.Struct, saved: Mapping[str, Any]) -> dict[str, Any]:
    """As they are kept, beside what only another release knows."""
    unknown = {name: value for name, value in saved.items() if name not in settings.__struct_fields__}
    return {**unknown, **msgspec.to_builtins(settings)}


def _saved(saved: Mapping[str, Any], schema: type[Settings]) -> Settings:
    return check_settings(saved, schema())[0]
