"""Where the files that ship with the package are."""

from __future__ import annotations

import sysconfig
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
DEMO_MODEL = ASSETS / "demo" / "tiny_sd.safetensors"
DEMO_PICTURES = ASSETS / "demo" / "pictures"
PRESETS = ASSETS / "presets"
DEMO_HELD_OUT = ASSETS / "demo" / "heldout"


def page_folder() -> Path:
    """Where style.css, javascript/ and localizations/ are: the repository's root, or where pip puts data."""
    checkout = ASSETS.parents[1]
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    installed = [Path(sysconfig.get_path("data", scheme)) / "share" / "train-tools" for scheme in schemes]
    return next((folder for folder in (checkout, *installed) if (folder / "style.css").is_file()), checkout)


def resolve_base_model(name: str) -> Path:
    """The path behind a base-model setting; "demo" is the small model that ships with us."""
    return DEMO_MODEL if name == "demo" else Path(name)
