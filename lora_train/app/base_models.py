"""The checkpoints to train on and draw with: what is offered, what each is, and why one can't be used."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lora_train.app.planning import check_base_model, check_continued_lora
from lora_train.app.snapshot import BaseModelSnapshot
from lora_train.core import presets
from lora_train.core.conditioning import conditioning_of
from lora_train.core.config import TrainSettings
from lora_train.core.errors import TrainToolsError
from lora_train.core.families import FAMILY_LABELS, CheckpointFacts
from lora_train.core.host import BaseModelChoice, Host

_SMALL_MODEL = BaseModelChoice("Small demo model", "demo")


class BaseModels:
    def __init__(self, host: Host) -> None:
        self._host = host

    def offered(self) -> list[BaseModelChoice]:
        """The host's checkpoints, and the small model that ships with us."""
        return [*self._host.base_models(), _SMALL_MODEL]

    def look(self, name_or_path: str) -> BaseModelSnapshot:
        """What a checkpoint is, as its header tells; `problem` says why it can't be trained on."""
        name = Path(name_or_path).name
        names = {choice.path: choice.name for choice in self.offered()}
        snapshot = BaseModelSnapshot(name=names.get(name_or_path, name))
        problem, facts = self._check_base_model(TrainSettings(base_model=name_or_path))
        snapshot.problem = problem
        if facts is not None:
            snapshot.family = FAMILY_LABELS.get(facts.family, facts.family)
            snapshot.prediction = facts.prediction
            snapshot.resolution_px = presets.native_resolution_px(facts)
            snapshot.clip_skip_matters = conditioning_of(facts.family).clip_skip_matters
        return snapshot

    def check(self, settings: TrainSettings) -> tuple[list[str], CheckpointFacts | None]:
        """Why base model and VAE can't be used, and what the base model's header tells, if it can be read."""
        problem, facts = self._check_base_model(settings)
        return [sentence for sentence in (problem, self._check_vae(settings)) if sentence], facts

    def check_continued(self, settings: TrainSettings, facts: CheckpointFacts | None) -> str:
        """Why the LoRA to continue from can't be used; empty if it can, or none was chosen."""
        if settings.continue_from and not self._host.takes_paths():
            return "Continue from LoRA: leave it empty; this page is open to others, so it takes no paths."
        try:
            check_continued_lora(settings, facts or CheckpointFacts("unknown"))
        except TrainToolsError as error:
            return f"{error.message}\n{error.hint}".strip()
        except OSError as error:
            return f"Continue from LoRA: {settings.continue_from} can't be read ({error.strerror or error})."
        return ""

    def _check_base_model(self, settings: TrainSettings) -> tuple[str, CheckpointFacts | None]:
        """Why the base model can't be trained on ("" if it can), and what its header tells, if it can be read."""
        offered = {choice.path for choice in self.offered()}
        if settings.base_model and settings.base_model not in offered and not self._host.takes_paths():
            return "Train base model: choose one of the list; this page is open to others, so it takes no paths.", None
        if not settings.base_model:
            return "Train base model: choose a checkpoint.", None
        try:
            return "", check_base_model(msgspec.structs.replace(settings, vae=""))
        except TrainToolsError as error:
            return f"{error.message}\n{error.hint}".strip(), None
        except OSError as error:  # a name that is too long, a folder without rights
            return f"Train base model: {settings.base_model} can't be read ({error.strerror or error}).", None

    def _check_vae(self, settings: TrainSettings) -> str:
        """Why the VAE can't be used; empty if it can, or none was chosen."""
        if settings.vae and not self._host.takes_paths():
            return "VAE: leave it empty; this page is open to others, so it takes no paths."
        return f"VAE: {settings.vae} does not exist." if settings.vae and not Path(settings.vae).is_file() else ""
