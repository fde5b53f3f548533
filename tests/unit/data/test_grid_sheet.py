"""Sheets of grids: every picture in its place with its labels, in any script, below what browsers bear."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_train.data import grid_sheet
from lora_train.data.grid_sheet import make_sheet
from lora_train.data.sheets import BACKGROUND


def colour_of(indices: tuple[int, ...], number: int = 0) -> tuple[int, int, int]:
    """A colour for each picture of up to four lists of three values: no other is the same."""
    first, second, third, fourth = (*indices, 0, 0, 0, 0)[:4]
    return 20 * first + 60 * second, 20 * third + 60 * fourth, 40 * number


class Sheets:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.notes: list[str] = []

    def make(
        self,
        *axes: list[str],
        picture_px: tuple[int, int] = (160, 160),
        pictures: int = 1,
        title: str = "",
        missing: tuple[tuple[int, ...], ...] = (),
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        for indices in product(*(range(len(own)) for own in axes)):
            for number in range(pictures):
                if indices not in missing:
                    Image.new("RGB", (8, 8), colour_of(indices, number)).save(self._path(indices, number))
        sheet = make_sheet(
            title,
            axes,
            lambda indices: [self._path(indices, number) for number in range(pictures)],
            picture_px=picture_px,
            pictures=pictures,
            note=self.notes.append,
        )
        return np.asarray(sheet)

    def _path(self, indices: tuple[int, ...], number: int) -> Path:
        return self._folder / f"{'-'.join(map(str, indices))}.{number}.png"


@pytest.fixture
def sheets(tmp_path: Path) -> Sheets:
    return Sheets(tmp_path)


def places(sheet: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], colour: tuple[int, int, int]) -> tuple[int, ...]:
    """Left, top, width and height of an even area; it is full of its colour."""
    found = (sheet == np.array(colour)).all(-1)
    ys, xs = np.nonzero(found)
    assert found[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
    return int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1


def test_columns_and_rows_by_hand(sheets: Sheets) -> None:
    """Cells of 160 px have labels of 16 px: gaps of 8, lines of 24, 192 px for the rows' labels."""
    sheet = sheets.make(["w1", "w2"], ["s1", "s2"], title="t")
    assert sheet.shape == (8 + 24 + 24 + 2 * 168, 8 + 192 + 2 * 168, 3)
    for column, row in product(range(2), range(2)):
        assert places(sheet, colour_of((column, row))) == (200 + 168 * column, 56 + 168 * row, 160, 160)


def test_blocks(sheets: Sheets) -> None:
    """Of the third list side by side, of all others below each other, the last one the fastest."""
    axes = [["a", "b"], ["c", "d"], ["e", "f", "g"], ["h", "i"]]
    sheet = sheets.make(*axes)
    corners = {
        indices: places(sheet, colour_of(indices))[:2] for indices in product(*(range(len(own)) for own in axes))
    }
    assert len({*corners.values()}) == 24
    for (column, row, across, down), (x, y) in corners.items():
        assert x == corners[0, 0, 0, 0][0] + 168 * column + (192 + 2 * 168) * across
        assert y == corners[0, 0, 0, 0][1] + 168 * row + (48 + 2 * 168) * down


def test_five_lists(sheets: Sheets) -> None:
    """All pictures are there; more than four lists have colours in common, so they are counted."""
    axes = [["a", "b"], ["c"], ["d"], ["e", "f"], ["g", "h"]]
    sheet = sheets.make(*axes)
    filled = (sheet == np.array(colour_of((0, 0, 0, 0)))).all(-1).sum()
    assert filled == 2 * 160 * 160, "of the last list, two cells have this colour"


def test_every_list_is_labelled(sheets: Sheets) -> None:
    """A label changes the sheet beside its pictures, and there alone."""
    axes = [["w1", "w2"], ["s1", "s2"], ["c1", "c2"], ["n1", "n2"]]
    plain = sheets.make(*axes, title="t")
    solid = [places(plain, colour_of(own)) for own in product(range(2), repeat=4)]
    for index, label in enumerate(["重み", "семя", "🐈", "שלום"]):
        changed = [*axes]
        changed[index] = [axes[index][0], label]
        sheet = sheets.make(*changed, title="t")
        assert sheet.shape == plain.shape
        differs = (sheet != plain).any(-1)
        assert differs.any(), label
        for x, y, width, height in solid:
            assert not differs[y : y + height, x : x + width].any()


def test_pictures_of_a_cell_are_tiled(sheets: Sheets) -> None:
    """Three: two side by side, one below, 2 px between them. The next cell begins a gap behind."""
    sheet = sheets.make(["a", "b"], pictures=3)
    x, y, width, height = places(sheet, colour_of((0,), 0))
    assert (width, height) == (160, 160)
    assert places(sheet, colour_of((0,), 1))[:2] == (x + 162, y)
    assert places(sheet, colour_of((0,), 2))[:2] == (x, y + 162)
    assert places(sheet, colour_of((1,), 0))[:2] == (x + 322 + 8, y)


def test_a_missing_picture_leaves_its_place_empty(sheets: Sheets) -> None:
    sheet = sheets.make(["a", "b"], missing=((1,),))
    x, y, *_ = places(sheet, colour_of((0,)))
    assert (sheet[y : y + 160, x + 168 :] == np.array(BACKGROUND)).all()


def test_small_pictures_are_enlarged_and_large_ones_have_larger_labels(sheets: Sheets) -> None:
    assert places(sheets.make(["a"], picture_px=(64, 96)), colour_of((0,)))[2:] == (192, 288)
    x, y, width, height = places(sheets.make(["a"], picture_px=(1024, 512)), colour_of((0,)))
    assert (x, y, width, height) == (32, 32 + 96, 1024, 512)
    assert not sheets.notes


def test_a_very_large_sheet_has_smaller_pictures(sheets: Sheets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both limits of a side hold, and that of the area; the person is told."""
    monkeypatch.setattr(grid_sheet, "LARGEST_SIDE_PX", 1000)
    sheet = sheets.make(["a", "b", "c"], ["d"], picture_px=(512, 512), title="cat")
    assert 900 < sheet.shape[1] <= 1000
    (note,) = sheets.notes
    assert "'cat'" in note
    assert "x" in note
    monkeypatch.setattr(grid_sheet, "LARGEST_AREA_PX", 200_000)
    sheet = sheets.make(["a", "b", "c"], ["d"], picture_px=(512, 512))
    assert 150_000 < sheet.shape[0] * sheet.shape[1] <= 200_000
    for column in range(3):
        assert places(sheet, colour_of((column, 0)))[2] < 200


def test_the_limits_are_real() -> None:
    """Browsers refuse canvases of over 16384 px; Pillow warns above its own limit."""
    assert grid_sheet.LARGEST_SIDE_PX == 16_384
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS >= grid_sheet.LARGEST_AREA_PX
