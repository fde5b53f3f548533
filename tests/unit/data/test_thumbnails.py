"""Pictures of cards: 2:3 from previews of any shape, with their parameters."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from lora_train.core.errors import DatasetError
from lora_train.data.thumbnails import CARD_SIZE_PX, card_thumbnail


def thumbnail(tmp_path: Path, picture: Image.Image, parameters: str = "") -> Image.Image:
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_itxt("parameters", parameters)
    picture.save(tmp_path / "preview.png", pnginfo=info)
    made = Image.open(io.BytesIO(card_thumbnail(tmp_path / "preview.png")))
    made.load()
    return made


@pytest.mark.parametrize("size", [(64, 64), (512, 768), (768, 512), (1024, 256), (256, 1024), (8, 8), (1, 300)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_size_and_parameters(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    made = thumbnail(tmp_path, Image.new(mode, size, "white"), "猫, <lora:x:0.8>\nSteps: 3, Seed: 1")
    assert (made.size, made.mode, made.format) == (CARD_SIZE_PX, "RGB", "PNG")
    assert made.info["parameters"] == "猫, <lora:x:0.8>\nSteps: 3, Seed: 1"
    assert made.getpixel((256, 384)) == (255, 255, 255)


def test_a_picture_of_the_cards_size_is_itself(tmp_path: Path) -> None:
    picture = Image.radial_gradient("L").resize(CARD_SIZE_PX).convert("RGB")
    assert thumbnail(tmp_path, picture).tobytes() == picture.tobytes()


def test_a_square_loses_a_third_of_its_width(tmp_path: Path) -> None:
    """The outer sixths are red, and gone."""
    picture = Image.new("RGB", (600, 600), "red")
    picture.paste("blue", (100, 0, 500, 600))
    made = thumbnail(tmp_path, picture)
    assert [made.getpixel((x, 384)) for x in (6, 256, 505)] == [(0, 0, 255)] * 3


def test_a_wide_picture_keeps_two_thirds_in_a_frame_of_itself(tmp_path: Path) -> None:
    """900 x 300: 600 px of it fill the width; they are 256 px high, and above them is a darker blue."""
    picture = Image.new("RGB", (900, 300), "red")
    picture.paste("blue", (150, 0, 750, 300))
    made = thumbnail(tmp_path, picture)
    assert [made.getpixel((x, 384)) for x in (6, 256, 505)] == [(0, 0, 255)] * 3
    assert [made.getpixel((256, y))[2] for y in (10, 250, 260, 508, 518)] == [153, 153, 255, 255, 153]


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError):
        card_thumbnail(tmp_path / "x.png")
