"""What the hosts' LoRA extension does; it stands in `sys.modules` as `networks`."""

from __future__ import annotations

import hashlib
import html
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modules import paths

_TAG = re.compile(r"<lora:([^:>]+)(?::([^>]*))?>")
available_networks: dict[str, dict[str, Any]] = {}
"""By stem."""


def list_available_networks() -> None:
    available_networks.clear()
    for file in sorted(paths.lora_dir().rglob("*.safetensors")):
        available_networks[file.stem] = {
            "name": file.stem,
            "alias": _metadata(file).get("ss_output_name", file.stem),
            "path": str(file),
            "metadata": _metadata(file),
        }


def parse_prompt(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    loras = [(name, float(weight or 1)) for name, weight in _TAG.findall(prompt)]
    return _TAG.sub("", prompt).strip(), loras


def fingerprints(loras: list[tuple[str, float]]) -> list[str]:
    """What each LoRA does to a picture; those that are not found, or weigh nothing, do nothing."""
    if any(name not in available_networks for name, _ in loras):
        list_available_networks()  # hosts look for a new file by themselves
    found = [(available_networks[name]["path"], weight) for name, weight in loras if name in available_networks]
    return [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()} {weight}" for path, weight in found if weight]


def cards_html() -> str:
    """As the hosts build a card: user metadata beside the file, and a picture of the same name."""
    return "".join(_card(name, Path(network["path"])) for name, network in available_networks.items())


def _card(name: str, path: Path) -> str:
    card = path.with_suffix(".json")
    user = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    if not isinstance(user, dict):
        raise TypeError(f"{card} is no object")  # breaks the whole page of the hosts too
    weight = user.get("preferred weight") or 1
    prompt = f"<lora:{name}:{weight:g}> {user.get('activation text', '')}".strip()
    preview = path.with_suffix(".png")
    image = f'<img src="sd_extra_networks/thumb?filename={quote(str(preview))}">' if preview.is_file() else ""
    return (
        f'<div class="card" data-name="{html.escape(name)}" data-prompt="{html.escape(prompt)}">{image}'
        f'<span class="name">{html.escape(name)}</span>'
        f'<span class="description">{html.escape(str(user.get("description", "")))}</span></div>'
    )


def _metadata(file: Path) -> dict[str, str]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length)).get("__metadata__", {})


sys.modules["networks"] = sys.modules[__name__]
