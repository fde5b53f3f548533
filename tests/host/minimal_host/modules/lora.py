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


class NetworkOnDisk:
    def __init__(self, name: str, filename: str) -> None:
        self.name = name
        self.filename = filename
        self.metadata = _metadata(Path(filename))
        self.alias = self.metadata.get("ss_output_name", name)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "alias": self.alias, "path": self.filename, "metadata": self.metadata}


_TAG = re.compile(r"<lora:([^:>]+)(?::([^>]*))?>")
available_networks: dict[str, NetworkOnDisk] = {}
"""By stem."""
available_network_aliases: dict[str, NetworkOnDisk] = {}
loaded_networks: list[NetworkOnDisk] = []
"""What the last picture was drawn with."""


def list_available_networks() -> None:
    available_networks.clear()
    available_network_aliases.clear()
    for file in sorted(paths.lora_dir().rglob("*.safetensors")):
        entry = NetworkOnDisk(file.stem, str(file))
        available_networks[file.stem] = entry
        available_network_aliases[entry.alias] = available_network_aliases[file.stem] = entry


def parse_prompt(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    loras = [(name, float(weight or 1)) for name, weight in _TAG.findall(prompt)]
    return _TAG.sub("", prompt).strip(), loras


def fingerprints(loras: list[tuple[str, float]]) -> list[str]:
    """What each LoRA does to a picture; those that are not found, or weigh nothing, do nothing."""
    if any(name not in available_network_aliases for name, _ in loras):
        list_available_networks()  # hosts look for a new file by themselves
    named = [(available_network_aliases.get(name), weight) for name, weight in loras]
    loaded_networks[:] = [network for network, _ in named if network is not None]
    found = [(network.filename, weight) for network, weight in named if network is not None]
    return [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()} {weight}" for path, weight in found if weight]


def cards_html() -> str:
    """As the hosts build a card: user metadata beside the file, and a picture of the same name."""
    return "".join(_card(name, Path(network.filename)) for name, network in available_networks.items())


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


sys.modules["networks"] = network = sys.modules[__name__]
"""The classes of a file stand in a module `network` of their own there."""
