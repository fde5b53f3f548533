from __future__ import annotations

from modules import devices, shared


def reload_vae_weights() -> None:
    """Takes the model off the device and puts it back, as hosts do."""
    model = shared.sd_model
    model.to(devices.cpu)
    model.to(devices.device)
