"""What the page shows of a training's history."""

from __future__ import annotations

import msgspec

from lora_train.core.history_differences import PictureDifference, SettingDifference


class Comparison(msgspec.Struct, kw_only=True):
    """How a training differs from another; `before` is the one, `after` the other."""

    before: str
    """Their names."""
    after: str
    pictures: list[PictureDifference] = []
    settings: list[SettingDifference] = []
    versions: list[SettingDifference] = []
    base: list[SettingDifference] = []
    unknown: list[str] = []
    """A sentence for everything that one of them did not note."""

    @property
    def is_same(self) -> bool:
        return not (self.pictures or self.settings or self.versions or self.base)


class HistoryNote(msgspec.Struct, kw_only=True):
    """What the row of buttons of a training needs."""

    others: list[tuple[str, str]] = []
    """Job and name of the version's other trainings."""
    is_noted: bool = False
    """It remembers what it was made from."""
    is_original: bool = False
    versions: list[SettingDifference] = []
    """Packages that are others than they were."""
    can_undo: bool = False
    """Settings were copied to the version from this training, and those before can be had back."""
