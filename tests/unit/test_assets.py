"""The files that ship in lora_train/assets are whole, consistent and can be drawn again."""

from __future__ import annotations

import importlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

REPOSITORY = Path(__file__).parents[2]
ASSETS = REPOSITORY / "lora_train" / "assets"
DEMO = ASSETS / "demo"
TRAINING_FOLDERS = ("pictures/1_sks", "pictures/reg/1_ordinary")


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The format's JSON header: 8 bytes of little-endian length, then the JSON itself."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def test_everything_together_stays_small() -> None:
    # The installed package carries all of it; 25 MB is what the product allows itself.
    size_bytes = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size_bytes < 25_000_000


def test_vocabulary_is_the_whole_clip_vocabulary() -> None:
    folder = ASSETS / "clip_vocabulary"
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    header, *merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    # CLIP: 256 bytes, the same 256 at a word's end, a token per merge, start and end of text.
    assert header == "#version: 0.2"
    assert len(merges) == 48_894
    assert len(vocabulary) == 256 + 256 + 48_894 + 2 == 49_408
    assert sorted(vocabulary.values()) == list(range(49_408))
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49_406, 49_407)
    # Merge number n makes token 512 + n.
    assert all(vocabulary["".join(m.split())] == 512 + n for n, m in enumerate(merges))
    assert not (DEMO / "tiny_clip" / "vocab.json").exists(), "one copy in the package is enough"


@pytest.mark.parametrize("folder", TRAINING_FOLDERS)
def test_every_training_picture_has_a_caption_and_the_model_size(folder: str) -> None:
    pictures = sorted((DEMO / folder).glob("*.png"))
    assert len(pictures) == 16
    for path in pictures:
        assert _pixels(path).shape == (64, 64, 3)
        caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert re.fullmatch(r"(sks|\w+, \w+), (white|black|gray) background", caption), path.name
        assert caption.startswith("sks, ") == path.name.startswith("sks_")


def test_heldout_pictures_are_none_of_the_training_pictures() -> None:
    heldout = [_pixels(path) for path in sorted((DEMO / "heldout").glob("*.png"))]
    trained = [_pixels(path) for path in (DEMO / "pictures" / "1_sks").glob("*.png")]
    assert len(heldout) == 8
    assert all(picture.shape == (64, 64, 3) for picture in heldout)
    assert not any(np.array_equal(a, b) for a in heldout for b in trained)


def test_demo_pictures_are_drawn_again_pixel_for_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "tests" / "assets")
    drawn = list(importlib.import_module("make_demo_pictures").demo_pictures())

    shipped = {p.relative_to(DEMO).as_posix() for p in DEMO.rglob("*.png")}
    assert {str(picture.path) for picture in drawn} == shipped
    differing_pixels = 0
    for picture in drawn:
        path = DEMO / picture.path
        difference = _pixels(path) != np.asarray(picture.image)
        differing_pixels += int(difference.any(axis=-1).sum())
        if picture.caption is not None:
            assert path.with_suffix(".txt").read_text(encoding="utf-8") == picture.caption + "\n"
    # 0 with the Pillow they were made with (13.0). Pillow 9.5 rounds one edge of ordinary_12.png
    # the other way: 1 pixel of 163,840.
    assert differing_pixels <= 1


def test_demo_config_names_a_folder_beside_it() -> None:
    text = (DEMO / "tiny_sd.yaml").read_text(encoding="utf-8")
    match = re.search(r"^\s+version: (\S+)$", text, flags=re.MULTILINE)
    assert match is not None
    assert match[1].startswith("./"), "relative, so that it holds wherever the package is installed"
    assert (DEMO / match[1] / "config.json").is_file()


def test_demo_model_is_complete_and_agrees_with_its_configs() -> None:
    header = _safetensors_header(DEMO / "tiny_sd.safetensors")
    header.pop("__metadata__", None)
    parts = {
        prefix: sum(name.startswith(prefix) for name in header)
        for prefix in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    }
    # SD 1.x has 686 UNet tensors; with 64 channels everywhere the two skip convolutions of the way
    # down, weight and bias each, are not needed. The 53 include the position ids.
    assert list(parts.values()) == [682, 112, 53]
    assert len(header) == sum(parts.values()) == 847
    assert {entry["dtype"] for entry in header.values()} == {"F16", "I64"}

    text_config = json.loads((DEMO / "tiny_clip" / "config.json").read_text(encoding="utf-8"))
    embedding = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert header[embedding]["shape"] == [text_config["vocab_size"], text_config["hidden_size"]]


@pytest.mark.parametrize(
    ("file_name", "text"),
    [
        ("unifont.woff", "Шаг 0.6 重み 権重 权重 무게 ♥ น้ำ العربية"),
        ("unifont_upper.woff", "😀🎨🚀"),
    ],
)
def test_fonts_have_glyphs_for_labels_in_any_script(file_name: str, text: str) -> None:
    font = ImageFont.truetype(str(ASSETS / "font" / file_name), 16)

    def drawn(character: str) -> bytes:
        image = Image.new("L", (32, 32))
        ImageDraw.Draw(image).text((8, 8), character, fill=255, font=font)
        return image.tobytes()

    # U+10FFFE is no character, so it gets the box that stands for "no glyph".
    missing = drawn("\U0010fffe")
    assert [c for c in text if not c.isspace() and drawn(c) == missing] == []
    assert (ASSETS / "font" / "OFL.txt").is_file(), "the licence travels with the fonts"
