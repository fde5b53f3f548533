"""The base model that some settings name, with the prediction and the noise schedule that they choose."""

from __future__ import annotations

from pathlib import Path

import torch

from lora_train.core.assets import resolve_base_model
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.engine.loading import BaseModel, load_base_model

_NEEDS_V = (
    "zero_terminal_snr (Zero terminal SNR): on goes with v-prediction only; in pure noise there is nothing that a "
    "model which predicts epsilon could learn"
)


def open_base_model(settings: TrainSettings, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """`load_base_model` of the settings' checkpoint and VAE; what they say of its prediction stands over its own.

    Raises ConfigError for zero terminal SNR with epsilon, and as `load_base_model` does.
    """
    vae_path = Path(settings.vae) if settings.vae else None
    model = load_base_model(resolve_base_model(settings.base_model), vae_path=vae_path, device=device, dtype=dtype)
    if settings.prediction != "auto":
        model.prediction = settings.prediction
    if settings.zero_terminal_snr != "auto":
        model.zero_terminal_snr = settings.zero_terminal_snr == "on"
    if model.zero_terminal_snr and model.prediction == "epsilon":
        if settings.zero_terminal_snr == "on":
            raise ConfigError([_NEEDS_V])
        model.zero_terminal_snr = False
    return model
