"""What page and plan know of base models of every family, by their headers; no weights are needed."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_train.app import planning
from lora_train.core import presets
from lora_train.core.config import TrainSettings

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk


def save(desk: Desk, **settings: Any) -> None:
    desk.version()
    assert desk.app.settings.save("cat", "v1", train=settings) == []


SD2_TEXT = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
SD2_TELLTALE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
SDXL_TEXT = "conditioner.embedders.1.model.ln_final.weight"
SDXL_MIDDLE = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


def _header(path: Path, shapes: dict[str, list[int]], raw: bytes = b"") -> Path:
    """A checkpoint of full channels whose tensors are empty but for the last, which is `raw`."""
    shapes = {"model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3], **shapes}
    header = {}
    content = b""
    for name, shape in shapes.items():
        length = len(raw) if raw and name == list(shapes)[-1] else 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(content), len(content) + length]}
        content += raw if raw and name == list(shapes)[-1] else bytes(length)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content)
    return path


def test_families_on_the_page(desk: Desk, tmp_path: Path) -> None:
    """What is trained, as the header tells it: family, prediction, size, and whether clip skip does anything."""
    spread = struct.pack("<4e", 0.2, -0.2, 0.2, -0.2)  # over 0.09: it predicts v
    told = {
        _header(tmp_path / "sd2.safetensors", {SD2_TEXT: [6, 1024]}): ("Stable Diffusion 2.x", "epsilon", 512),
        _header(tmp_path / "sd2 v.safetensors", {SD2_TEXT: [6, 1024], SD2_TELLTALE: [4]}, spread): (
            *("Stable Diffusion 2.x", "v_prediction"),
            768,
        ),
        _header(tmp_path / "sdxl.safetensors", {SDXL_TEXT: [2], SDXL_MIDDLE: [1, 1]}): ("SDXL", "epsilon", 1024),
        _header(tmp_path / "sdxl v.safetensors", {SDXL_TEXT: [2], SDXL_MIDDLE: [1, 1], "v_pred": [0]}): (
            *("SDXL", "v_prediction"),
            1024,
        ),
    }
    for path, expected in told.items():
        snapshot = desk.app.base_models.look(str(path))
        assert snapshot.problem == ""
        assert (snapshot.family, snapshot.prediction, snapshot.resolution_px) == expected
        assert not snapshot.clip_skip_matters


def test_choices_of_prediction_are_planned_with(desk: Desk, tmp_path: Path) -> None:
    path = _header(tmp_path / "sd2.safetensors", {SD2_TEXT: [6, 1024]})
    facts = planning.check_base_model(TrainSettings(base_model=str(path), prediction="v_prediction"))
    assert (facts.prediction, presets.native_resolution_px(facts)) == ("v_prediction", 768)
    desk.trained("4_cat/a.png")
    save(desk, base_model=str(path), zero_terminal_snr="on")
    assert desk.app.training.forecast("cat", "v1").problems == [
        "Zero terminal SNR: this model predicts epsilon; only v-prediction models can learn so."
    ]
    path.with_suffix(".yaml").write_text("    parameterization: v\n", encoding="utf-8")
    assert desk.app.training.forecast("cat", "v1").problems == [], (
        "the yaml beside a file counts as soon as it is there"
    )
