"""The models of diffusers, imported when one is needed and without what they don't need.

diffusers takes scipy along, half a second and 60 MB, for noise schedules and file formats that we don't use.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


def unet_class() -> Any:
    """diffusers' UNet2DConditionModel."""
    with _without("scipy"):
        from diffusers import UNet2DConditionModel
    return UNet2DConditionModel


def vae_class() -> Any:
    """diffusers' AutoencoderKL."""
    with _without("scipy"):
        from diffusers import AutoencoderKL
    return AutoencoderKL


@contextmanager
def _without(package: str) -> Generator[None, None, None]:
    """Within the block an installed package is as good as absent, unless it was imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
