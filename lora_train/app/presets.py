"""Presets: applied to a version, taken back, and a person's own ones kept under names."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lora_train.app.snapshot import (
    AppliedPreset,
    ImportedPreset,
    PresetDetails,
    PresetEntry,
    PresetRow,
    PresetState,
    Undo,
)
from lora_train.app.training import Training
from lora_train.app.version_settings import kept_settings, known_settings, train_settings
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, WorkspaceError
from lora_train.core.files import replace, write_bytes
from lora_train.core.names import fold, folder_name, typed
from lora_train.core.preset_files import (
    Choice,
    Preset,
    family_label,
    preset_bytes,
    preset_family,
    preset_of,
    preset_path,
    purpose,
    read_preset,
)
from lora_train.core.purposes import PURPOSES, PresetFamily
from lora_train.core.settings import check_settings, setting_fields
from lora_train.core.workspace import PresetUse, Version, VersionInfo, Workspace

_SUFFIX = ".json"


class Presets:
    """Those of the package, and a person's own in `<workspace>/presets`; letter case of names does not matter."""

    def __init__(self, workspace: Workspace, training: Training) -> None:
        self._workspace = workspace
        self._training = training
        self._dir = workspace.root / "presets"
        self._changing = threading.Lock()

    # --- which there are ---

    def list(self) -> list[PresetEntry]:
        """Those of the package, then a person's own by name. A file that can't be read has its reason as `problem`."""
        shipped = [PresetEntry(name, purpose(name).about) for name in PURPOSES]
        own: list[PresetEntry] = []
        for path in self._own_paths():
            try:
                preset = read_preset(path.read_bytes())[0]
            except (WorkspaceError, OSError) as error:
                problem = error.message if isinstance(error, WorkspaceError) else str(error.strerror or error)
                own.append(PresetEntry(path.stem, is_own=True, problem=problem))
            else:
                own.append(PresetEntry(preset.name, preset.about, is_own=True))
        return [*shipped, *sorted(own, key=lambda entry: fold(entry.name))]

    def show(self, name: str, family: PresetFamily = "sd1") -> PresetDetails:
        """Every value of a preset for a family of base models, with its reason. Raises ConfigError for no preset."""
        preset = self.find(name)
        rows = _rows(preset.choices(family), {})
        return PresetDetails(preset.name, preset.about, family, family_label(family), rows)

    def find(self, name: str) -> Preset:
        """The preset of this name. Raises ConfigError where there is none, WorkspaceError for a damaged file."""
        wanted = fold(typed(name))
        if wanted in PURPOSES:
            return purpose(wanted)
        path = self._own_path(name)
        if path is None:
            known = ", ".join(entry.name for entry in self.list())
            raise ConfigError([f"preset: there is none called {typed(name)!r}; there are: {known}"])
        return read_preset(path.read_bytes())[0]

    def file_path(self, name: str) -> Path:
        """The file to give to others. Raises as `find`."""
        path = self._own_path(name)
        if path is not None:
            return path
        return preset_path(self.find(name).name)

    # --- for a version ---

    def under(self, name: str, values: Mapping[str, Any], base: TrainSettings) -> tuple[dict[str, Any], PresetFamily]:
        """The preset's values with `values` over them, for the base model that these or `base` choose.

        Raises as `find`.
        """
        base_model = str(values.get("base_model", base.base_model))
        family = self._family(msgspec.structs.replace(base, base_model=base_model))
        return {**self.find(name).values(family), **values}, family

    def apply(self, project: str, version: str, name: str) -> AppliedPreset:
        """Save a preset's values as the version's settings, for the family of its base model.

        Raises as `find`, WorkspaceError for an unknown version.
        """
        found = self._workspace.find_version(project, version)
        preset = self.find(name)
        family = self._family(train_settings(found))
        with found.changing() as info:
            before = _saved(info)
            after, _ = check_settings(preset.values(family), before)
            info.train = kept_settings(after, info.train)
            info.preset = _use(preset, family, before, after, info.preset)
        _remember_type(found, preset.name)
        rows = _rows(preset.choices(family), msgspec.structs.asdict(before), only_changed=True)
        return AppliedPreset(preset.name, family_label(family), rows)

    def note(self, version: Version, name: str, family: PresetFamily, before: TrainSettings) -> None:
        """Remember that a preset was used for settings that are saved by now."""
        preset = self.find(name)
        with version.changing() as info:
            info.preset = _use(preset, family, before, _saved(info), None)
        _remember_type(version, preset.name)

    def undo(self, project: str, version: str) -> None:
        """Put the settings back that the last preset changed, but those that were changed by hand since.

        Raises WorkspaceError for an unknown version, or where no preset is in use.
        """
        found = self._workspace.find_version(project, version)
        with found.changing() as info:
            use = info.preset
            if use is None:
                raise WorkspaceError("No preset is in use, so there is nothing to take back.")
            now = msgspec.structs.asdict(_saved(info))
            given, _ = check_settings(known_settings(use.after, TrainSettings), TrainSettings())
            untouched = {
                name: value
                for name, value in known_settings(use.before, TrainSettings).items()
                if now[name] == getattr(given, name)
            }
            info.train = kept_settings(check_settings(untouched, _saved(info))[0], info.train)
            info.preset = None

    def state(self, project: str, version: str) -> PresetState:
        """The preset of a version, what it changed, what it has for another family, and what is proposed without one.

        Raises WorkspaceError for an unknown version.
        """
        found = self._workspace.find_version(project, version)
        info = found.info()
        settings = _saved(info)
        family = self._family(settings)
        use = info.preset
        if use is None:
            kind = found.project.info().type
            proposed = purpose(kind) if kind in PURPOSES else None
            return PresetState(
                family=family_label(family),
                proposed=proposed.name if proposed else "",
                proposed_about=proposed.about if proposed else "",
            )
        state = PresetState(name=use.name, family=family_label(use.family))
        with suppress(
            ConfigError, WorkspaceError, OSError
        ):  # deleted or renamed: what it changed is known all the same
            preset = self.find(use.name)
            state.about = preset.about
            if preset.saved_for and preset.saved_for != family:
                state.saved_for = family_label(preset.saved_for)
            reasons = preset.choices(use.family)
            if family != use.family:
                state.other_family = family_label(family)
                state.offered = _rows(preset.choices(family), msgspec.structs.asdict(settings), only_changed=True)
            state.changed = _changed(use, reasons, settings)
            return state
        state.is_gone = True
        state.changed = _changed(use, {}, settings)
        return state

    # --- a person's own ---

    def save(self, name: str, project: str, version: str) -> PresetEntry:
        """Keep a version's training settings under a name; what had it before goes to the trash.

        Raises WorkspaceError for a name that can't be one or that a preset of the package has, or an unknown version.
        """
        settings = train_settings(self._workspace.find_version(project, version))
        preset = preset_of(_own_name(name), settings, self._family(settings))
        with self._changing:
            path = self._own_path(name)
            if path is not None:
                self._workspace.trash.put(preset.name, [path])
            write_bytes(path or self._free_path(preset.name), preset_bytes(preset))
        return PresetEntry(preset.name, preset.about, is_own=True)

    def rename(self, name: str, new_name: str) -> PresetEntry:
        """Raises WorkspaceError for a name that is taken or can't be one, or for a preset of the package."""
        new_name = _own_name(new_name)
        with self._changing:
            path = self._require_own(name)
            other = self._own_path(new_name)
            if other is not None and other != path:
                raise WorkspaceError(f"There is a preset {new_name} already.", "Choose another name.")
            preset = msgspec.structs.replace(read_preset(path.read_bytes())[0], name=new_name)
            target = self._free_path(new_name, but=path)
            if target != path:
                replace(path, target)
            write_bytes(target, preset_bytes(preset))  # its name stands in it, so half of this is nothing yet
        return PresetEntry(preset.name, preset.about, is_own=True)

    def delete(self, name: str) -> Undo:
        """Move one to the trash. Raises WorkspaceError where there is none, or for a preset of the package."""
        with self._changing:
            path = self._require_own(name)
            return Undo(typed(name), self._workspace.trash.put(typed(name), [path]))

    def take_in(self, file_name: str, content: bytes) -> ImportedPreset:
        """Keep a preset that somebody made, under its name, or `NAME-2` where that is taken.

        Raises WorkspaceError for a file that is no preset or has nothing that can be used.
        """
        preset, problems = read_preset(content)
        name = preset.name or Path(file_name).stem
        folder_name(name)
        with self._changing:
            free, number = name, 1
            while fold(free) in PURPOSES or self._own_path(free) is not None:
                number += 1
                free = f"{name}-{number}"
            preset = msgspec.structs.replace(preset, name=free)
            write_bytes(self._free_path(free), preset_bytes(preset))
        return ImportedPreset(free, problems)

    # --- details ---

    def _family(self, settings: TrainSettings) -> PresetFamily:
        return preset_family(self._training.base_models.check(settings)[1])

    def _own_paths(self) -> Iterable[Path]:
        if not self._dir.is_dir():
            return []
        return sorted(path for path in self._dir.iterdir() if path.suffix == _SUFFIX and path.is_file())

    def _own_path(self, name: str) -> Path | None:
        """The file of a person's own preset: by its name, or by that of the file where it can't be read."""
        wanted = fold(typed(name))
        for path in self._own_paths():
            if fold(_name_in(path)) == wanted:
                return path
        return None

    def _require_own(self, name: str) -> Path:
        if fold(typed(name)) in PURPOSES:
            raise WorkspaceError(
                f"{typed(name)} belongs to Train Tools, and stays.", "Save your own under another name."
            )
        path = self._own_path(name)
        if path is None:
            raise WorkspaceError(f"There is no preset {typed(name)!r} of your own.", "Refresh the page.")
        return path

    def _free_path(self, name: str, but: Path | None = None) -> Path:
        """Names that differ may want the same file."""
        taken = {fold(path.stem) for path in self._own_paths() if path != but}
        stem = wanted = folder_name(name)
        number = 1
        while fold(stem) in taken:
            number += 1
            stem = f"{wanted}-{number}"
        return self._dir / f"{stem}{_SUFFIX}"


def _own_name(name: str) -> str:
    """Raises WorkspaceError for one that can't be a person's own."""
    folder_name(name)
    if fold(typed(name)) in PURPOSES:
        raise WorkspaceError(f"{typed(name)} is a preset of Train Tools.", "Choose another name for your own.")
    return typed(name)


def _name_in(path: Path) -> str:
    try:
        return read_preset(path.read_bytes())[0].name
    except (WorkspaceError, OSError):
        return path.stem


def _saved(info: VersionInfo) -> TrainSettings:
    return check_settings(info.train, TrainSettings())[0]


def _use(
    preset: Preset, family: PresetFamily, before: TrainSettings, after: TrainSettings, last: PresetUse | None
) -> PresetUse:
    """What has to be known to take it back. The same preset again, for another family, goes back to the beginning."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    if last is not None and last.name == preset.name:
        old |= last.before
    names = [name for name in preset.choices(family) if old[name] != new[name]]
    names += [name for name in last.before if name not in names] if last and last.name == preset.name else []
    return PresetUse(preset.name, family, {name: old[name] for name in names}, {name: new[name] for name in names})


def _remember_type(version: Version, kind: str) -> None:
    """What a project is about, for its next versions, where the preset is one for a purpose."""
    info = version.project.info()
    if not info.type and kind in PURPOSES:
        version.project.write_info(msgspec.structs.replace(info, type=kind))


def _changed(use: PresetUse, reasons: Mapping[str, Choice], settings: TrainSettings) -> list[PresetRow]:
    """What a preset changed, and how it was before."""
    before, _ = check_settings(known_settings(use.before, TrainSettings), settings)
    after, _ = check_settings(known_settings(use.after, TrainSettings), settings)
    choices = {
        name: Choice(getattr(after, name), reasons[name].why if name in reasons else "")
        for name in known_settings(use.after, TrainSettings)
    }
    return _rows(choices, msgspec.structs.asdict(before), only_changed=True)


def _rows(choices: Mapping[str, Choice], before: Mapping[str, Any], *, only_changed: bool = False) -> list[PresetRow]:
    """In the order of the file."""
    labels = {field.name: field.label for field in setting_fields()}
    return [
        PresetRow(name, labels[name], choice.value, before.get(name), choice.why)
        for name, choice in choices.items()
        if not (only_changed and before.get(name) == choice.value)
    ]
