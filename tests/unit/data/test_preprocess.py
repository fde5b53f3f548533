"""What is cut out of pictures, by examples; `test_crop_arithmetic` has the rules."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_train.core.dataset_settings import DatasetSettings
from lora_train.data.images import open_picture
from lora_train.data.preprocess import (
    MOST_TILES,
    auto_size,
    debug_picture,
    least_px,
    pieces,
    plan,
    planned_cuts,
    tile_boxes,
    why_not,
)


def colours(width_px: int, height_px: int) -> Image.Image:
    """Red is the place from left to right, green the one from top to bottom."""
    pixels = np.zeros((height_px, width_px, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width_px)[None]
    pixels[..., 1] = np.linspace(0, 255, height_px)[:, None]
    return Image.fromarray(pixels)


def settings_of(target_px: tuple[int, int], **values: object) -> DatasetSettings:
    return DatasetSettings(width_px=target_px[0], height_px=target_px[1], **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size_px", "target_px", "overlap", "count"),
    [
        # L = 512 * long / short; ceil((L - 512 o) / (512 (1 - o))), worked out by hand.
        ((1024, 512), (512, 512), 0.2, 3),  # (1024 - 102.4) / 409.6 = 2.25
        ((512, 1024), (512, 512), 0.0, 2),  # 1024 / 512 = 2
        ((2000, 500), (512, 512), 0.5, 7),  # L = 2048: (2048 - 256) / 256 = 7
        ((4000, 800), (512, 512), 0.2, 6),  # L = 2560: (2560 - 102.4) / 409.6 = 6 exactly
        ((1000, 3000), (512, 768), 0.2, 3),  # L = 1536, l = 768: (1536 - 153.6) / 614.4 = 2.25
        ((1000, 1001), (512, 512), 0.2, 0),
    ],
)
def test_numbers_of_tiles(size_px: tuple[int, int], target_px: tuple[int, int], overlap: float, count: int) -> None:
    assert len(tile_boxes(size_px, settings_of(target_px, split=True, split_overlap=overlap))) == count


def test_too_many_tiles_are_told() -> None:
    settings = settings_of((512, 512), split=True)
    assert [cut.kind for cut in planned_cuts((1, 30_000), settings)] == ["plain"]
    (reason,) = why_not((1, 30_000), settings)
    assert "would become 37500 pictures" in reason
    assert f"the limit is {MOST_TILES}." in reason


def test_auto_sizes_by_hand() -> None:
    """The defaults: sides of 384, 448 ... 768, at most 640 x 640."""
    settings = DatasetSettings(multicrop=True)
    assert auto_size((1000, 1000), settings) == (640, 640)
    assert auto_size((1500, 1000), settings) == (768, 512)  # 393216; 704 x 576 is 0.185 off
    assert auto_size((5000, 1000), settings) is None  # the longest is 768 x 384
    (reason,) = why_not((5000, 1000), settings)
    assert "768x384, is off by 0.60, and the limit is 0.10" in reason
    assert why_not((1500, 1000), settings) == []


def test_what_is_cut_is_what_the_box_says() -> None:
    """Colours tell the place: each piece shows the part of the original that it claims."""
    picture = colours(1200, 400)
    settings = settings_of((256, 256), split=True, focal_crop=True, multicrop=True, multicrop_threshold=0.5)
    made = list(pieces(picture, plan(picture, settings)))
    # L = 768: ceil((768 - 51.2) / 204.8) = 4 tiles; the largest size of 3:1 within half is 768 x 512.
    assert [piece.kind for piece in made] == ["tile"] * 4 + ["focal", "auto-sized"]
    assert [piece.picture.size for piece in made] == [(256, 256)] * 5 + [(768, 512)]
    assert made[0].box_px == (0, 0, 400, 400)
    assert made[3].box_px == (800, 0, 1200, 400)
    assert made[5].box_px == (300, 0, 900, 400)
    for piece in made:
        pixels = np.asarray(piece.picture, dtype=float)
        left, top, right, bottom = piece.box_px
        for found, low, high, side in (
            (pixels[..., 0].mean(axis=0), left, right, 1200),
            (pixels[..., 1].mean(axis=1), top, bottom, 400),
        ):
            assert abs(found[0] - 255 * low / side) < 3
            assert abs(found[-1] - 255 * high / side) < 3


def test_tiny_pictures() -> None:
    for size_px in ((1, 1), (1, 7), (9, 1)):
        picture = Image.new("RGB", size_px, (9, 8, 7))
        settings = settings_of((64, 128), split=True, focal_crop=True, multicrop=True, multicrop_threshold=1)
        for piece in pieces(picture, plan(picture, settings)):
            assert np.abs(np.asarray(piece.picture).astype(int) - (9, 8, 7)).max() == 0


def test_the_focus_moves_the_cut() -> None:
    """A colourful thing in a grey picture: the cut holds all of it, wherever it is, as the middle would not."""
    rng = np.random.default_rng(0)
    thing = Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8))
    for left in (20, 590):
        picture = Image.new("RGB", (700, 200), (120, 120, 120))
        picture.paste(thing, (left, 60))
        its_plan = plan(picture, settings_of((256, 256), focal_crop=True))
        (piece,) = pieces(picture, its_plan)
        assert piece.kind == "focal"
        assert piece.box_px[0] <= left
        assert left + 90 <= piece.box_px[2]
        drawn = debug_picture(picture, its_plan)
        assert drawn.size == picture.size
        assert drawn.getpixel((piece.box_px[0] + 1, 100)) == (0, 255, 0)
        assert [its.kind for its in its_plan.found] == ["subject", "entropy", "edges"]


def test_no_weight_is_the_middle() -> None:
    picture = colours(600, 200)
    weights = {"focal_face_weight": 0, "focal_entropy_weight": 0, "focal_edges_weight": 0}
    (piece,) = pieces(picture, plan(picture, settings_of((64, 64), focal_crop=True, **weights)))
    assert piece.box_px == (200, 0, 400, 200)


def test_the_same_shape_needs_no_focus() -> None:
    its_plan = plan(colours(400, 300), settings_of((512, 384), focal_crop=True))
    assert (its_plan.cuts[0].kind, its_plan.found) == ("plain", [])


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_jpeg_gives_the_same_for_the_eye(tmp_path: Path, orientation: int) -> None:
    """Decoded at half size, a piece differs by less than the eye sees: 40 dB and more (measured: 48 and 51 dB)."""
    rng = np.random.default_rng(1)
    picture = Image.new("RGB", (2000, 1500))
    for side, share in ((9, 0.5), (60, 0.3), (400, 0.2)):  # things, their parts, and fine detail
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        picture = Image.blend(picture, noise.resize(picture.size, Image.Resampling.BICUBIC), share)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    picture.save(path, quality=95, exif=exif)
    whole = open_picture(path)
    settings = settings_of((256, 320), split=True, split_threshold=1)
    least = least_px(whole.size, planned_cuts(whole.size, settings))
    reduced = open_picture(path, least)
    assert reduced.size == (whole.width // 2, whole.height // 2)
    assert reduced.width >= least[0]
    assert reduced.height >= least[1]
    for one, other in zip(
        pieces(whole, plan(whole, settings)), pieces(reduced, plan(reduced, settings, whole.size)), strict=True
    ):
        assert (one.box_px, one.picture.size) == (other.box_px, other.picture.size)
        error = np.asarray(one.picture, dtype=float) - np.asarray(other.picture, dtype=float)
        assert 10 * math.log10(255**2 / np.mean(error**2)) > 40


def test_what_is_enlarged_is_decoded_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    colours(300, 200).save(path)
    assert open_picture(path, least_px((300, 200), planned_cuts((300, 200), settings_of((512, 512))))).size == (
        300,
        200,
    )
