"""The network of a run: a new one, or a finished LoRA that is taught more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.errors import ModelError
from lora_train.core.events import Note
from lora_train.core.ranks import ranks_of
from lora_train.engine.dropout import DropoutRates
from lora_train.engine.loading import BaseModel
from lora_train.engine.metadata import NetworkFacts
from lora_train.engine.network import LoraNetwork, Target, text_encoder_targets, unet_targets
from lora_train.engine.network_file import LoraFile
from lora_train.engine.network_protocol import Network
from lora_train.engine.reporting import Reporter

_GOES_ON = "Goes on from a LoRA: its layers, ranks and alphas are kept; those of the settings don't count."
_NO_TEXT_ENCODER = "The LoRA that it goes on from has no text encoder, so none is trained."


class Continued:
    """A finished LoRA that a run begins with. Its file decides which layers there are, and their ranks and alphas.

    Layers of a part of the model that is not trained stay in force, and in every file that is saved, as they are.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.file = LoraFile(path)
        self.sha256 = self.file.sha256()
        self.has_text_encoder = self.file.has_text_encoder
        self._texts: LoraNetwork | None = None

    def settle(self, settings: TrainSettings, report: Reporter) -> TrainSettings:
        """The settings as this file allows them, told of in notes."""
        report.events.write(Note("info", _GOES_ON))
        if self.has_text_encoder or not (settings.train_text_encoder or settings.train_sdxl_text_encoders):
            return settings
        report.events.write(Note("info", _NO_TEXT_ENCODER))
        return msgspec.structs.replace(settings, train_text_encoder=False, train_sdxl_text_encoders=False)

    def attach_texts(self, model: BaseModel) -> None:
        """Let captions be encoded with the file's text encoder layers, before there is a UNet."""
        self._texts = LoraNetwork(self.file.take(text_encoder_targets(*model.text_encoders)))
        self._texts.attach()

    def pairs(self, model: BaseModel) -> list[tuple[Target, Any]]:
        """All layers of the file, none attached. Raises ModelError when the base model lacks some."""
        pairs = self.file.take(unet_targets(model.unet, with_convolutions=True))
        if self._texts is not None:
            self._texts.detach()
            pairs += self._texts.pairs()
        elif self.has_text_encoder:
            pairs += self.file.take(text_encoder_targets(*model.text_encoders))
        self.file.require_all_taken()
        return pairs

    def facts(self) -> NetworkFacts:
        """For the metadata, once all layers are taken."""
        ranks, alphas = sorted(self.file.ranks), sorted(self.file.alphas)
        return NetworkFacts(continued_from=self.name, ranks=tuple(ranks), alphas=tuple(alphas))


def build_network(
    settings: TrainSettings, model: BaseModel, continued: Continued | None, *, trains_text: bool
) -> Network:
    """The network that a run trains, not attached. What belongs to a part that is not trained has no gradients."""
    options: dict[str, Any] = {
        "dropout": DropoutRates(settings.network_dropout, settings.rank_dropout, settings.module_dropout),
        "largest_norm": settings.scale_weight_norms,
    }
    if continued is None:
        targets = unet_targets(model.unet, with_convolutions=settings.conv_rank > 0)
        if trains_text:
            targets += text_encoder_targets(*model.text_encoders)
        return LoraNetwork.new(targets, ranks_of(settings), settings.seed, **options)
    network = LoraNetwork(continued.pairs(model), **options)
    for target, lora in network.pairs():
        lora.requires_grad_(trains_text or target.part == "unet")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelError(
            f"{continued.name} has no layers of the UNet, and its text encoder is not to be trained.",
            "Switch Train text encoder on, or continue from another LoRA.",
        )
    return network
