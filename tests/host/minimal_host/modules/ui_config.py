"""`ui-config.json`: the first default that is seen of a widget is kept, and then taken from the file for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

_FIELDS: dict[type, tuple[str, ...]] = {
    gr.Slider: ("value", "minimum", "maximum", "step", "visible"),
    gr.Radio: ("value", "visible"),
    gr.Dropdown: ("value", "visible"),
    gr.Checkbox: ("value", "visible"),
    gr.Textbox: ("value", "visible"),
    gr.Number: ("value", "visible"),
    gr.Button: ("visible",),
}


class UiConfig:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def add(self, block: Any, tab: str) -> None:
        """Keep or set the values of every widget below a tab's block. Equal labels share an entry."""
        for child in getattr(block, "children", []):
            self.add(child, tab)
        if getattr(block, "do_not_save_to_config", False):
            return
        if type(block) is gr.Tabs and block.elem_id:
            self._saved.setdefault(f"{tab}/Tabs@{block.elem_id}/selected", None)
        label = block.value if type(block) is gr.Button else getattr(block, "label", None)
        for name in _FIELDS.get(type(block), ()) if label else ():
            key = f"{tab}/{label}/{name}"
            if key in self._saved:
                setattr(block, name, self._saved[key])
            else:
                self._saved[key] = getattr(block, name)

    def save(self) -> None:
        self._path.write_text(json.dumps(self._saved, indent=4, ensure_ascii=False), encoding="utf-8")
