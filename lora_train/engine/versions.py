"""Notes what computes a training: `versions.json` in its folder, at its start and again when the hashes are known."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from lora_train.core.history import (
    Versions,
    package_versions,
    platform_name,
    processor_name,
    read_versions,
    write_record,
)
from lora_train.engine.devices import Device

_LOG = logging.getLogger(__name__)


def note_versions(job_dir: Path, device: Device, base_model_sha256: str = "", vae_sha256: str = "") -> None:
    """Write `versions.json`. That it can't be written is no reason not to train."""
    before = read_versions(job_dir)
    packages = package_versions()
    versions = Versions(
        packages=packages,
        platform=platform_name(),
        processor=processor_name(),
        device="CPU" if device.is_cpu else device.label,
        cpu_threads=torch.get_num_threads(),
        base_model_sha256=base_model_sha256,
        vae_sha256=vae_sha256,
        is_mixed=before is not None and (before.is_mixed or before.packages != packages),
    )
    try:
        write_record(job_dir, versions)
    except OSError as error:
        _LOG.warning("The versions can't be noted: %s", error)
