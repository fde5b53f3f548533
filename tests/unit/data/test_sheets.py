"""Grids: sizes, labels that are really drawn in any script, and text in the PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_train.data.sheets import make_grid, save_png

BACKGROUND = (250, 250, 250)
RED = (255, 0, 0)


def grid_of(rows: int, columns: int, *, size: tuple[int, int] = (64, 64), **labels: Any) -> np.ndarray[Any, Any]:
    pictures = [[Image.new("RGB", size, RED) for _ in range(columns)] for _ in range(rows)]
    labels.setdefault("row_labels", [""] * rows)
    labels.setdefault("column_labels", [""] * columns)
    return np.asarray(make_grid(pictures, **labels))


def ink(area: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where something was written onto the background."""
    return (area != np.array(BACKGROUND)).any(-1)


def title_ink(title: str) -> np.ndarray[Any, Any]:
    return ink(grid_of(1, 1, title=title)[:30])


# --- layout: 8 px gaps, cells of at least 160 px, a line of text is 16 px ---


def test_sizes_without_labels() -> None:
    """64 px are enlarged three times: 8 + 3 x (192 + 8) by 8 + 2 x (192 + 8)."""
    grid = grid_of(2, 3)
    assert grid.shape == (8 + 2 * 200, 8 + 3 * 200, 3)
    for row in range(2):
        for column in range(3):
            y, x = 8 + 200 * row, 8 + 200 * column
            assert (grid[y : y + 192, x : x + 192] == np.array(RED)).all()
    assert int(ink(grid).sum()) == 6 * 192 * 192, "nothing else is drawn"


def test_sizes_with_labels() -> None:
    """200 px for the rows' labels, 24 px each for the title and the columns' labels."""
    grid = grid_of(1, 2, size=(512, 256), row_labels=["row"], column_labels=["a", "b"], title="title")
    assert grid.shape == (8 + 24 + 24 + 256 + 8, 200 + 2 * (512 + 8), 3)
    top = ink(grid[:56])
    assert top[:32].any(), "the title"
    assert top[32:, 200:712].any(), "the first column's label, above its pictures"
    assert top[32:, 720:].any(), "the second column's"
    assert not top[32:, :200].any()
    assert ink(grid[56:312, :200]).any(), "the row's label, at the left"


# --- labels ---

# U+FFFF and U+10FFFF are no characters: every font draws its sign for "missing" there.
MISSING = ("￿", "\U0010ffff")


@pytest.mark.parametrize("char", ["作", "ア", "Ж", "ü", "ש", "한", "€", "🐈", "✨", "😀", "𝕏"])
def test_labels_are_drawn_in_any_script(char: str) -> None:
    drawn = title_ink(char)
    assert drawn.any()
    for missing in MISSING:
        assert not np.array_equal(drawn, title_ink(missing)), f"{char} is drawn as a missing character"


def test_different_texts_look_different() -> None:
    titles = ["自作LORA", "自作LOKA", "Кот", "Код", "a b", "ab", "🐈🐕", "🐕🐈"]
    drawn = {title_ink(title).tobytes() for title in titles}
    assert len(drawn) == len(titles)


@pytest.mark.parametrize(
    "label",
    ["a photo of a cat " * 60, "とても長い説明文" * 60, "word" * 300, "🐈" * 300],
    ids=["words", "japanese", "one word", "emoji"],
)
def test_long_labels_stay_in_their_place(label: str) -> None:
    """They are wrapped, and what does not fit ends in an ellipsis: no picture is written over."""
    grid = grid_of(2, 2, row_labels=[label, ""], column_labels=[label, "b"], title=label)
    plain = grid_of(2, 2, row_labels=["x", ""], column_labels=["", ""], title="x")
    top = grid.shape[0] - plain.shape[0]
    assert top == 24, "one line for each column label"
    pictures = slice(plain.shape[0] - 2 * 200 + top, None)
    cells = grid[pictures, 200:]
    assert np.array_equal(cells, plain[plain.shape[0] - 2 * 200 :, 200:])
    labels = ink(grid[pictures, :200])
    assert labels[:192].any()
    assert not labels[192:].any(), "the second row has no label"
    assert not labels[:, 192:].any(), "8 px before the pictures are free"
    assert not ink(grid[32:56, 200 + 192 : 200 + 200]).any(), "8 px between the columns' labels too"


def test_text_is_wrapped_at_blanks() -> None:
    """Two words that don't fit into one line of 184 px stand below each other, as each alone."""
    first, second = "abcdefghijklmnop", "qrstuvwxyz"
    both = ink(grid_of(1, 1, row_labels=[f"{first} {second}"]))[:, :200]
    alone = [ink(grid_of(1, 1, row_labels=[word]))[:, :200] for word in (first, second)]
    assert np.array_equal(both[8:26], alone[0][8:26])
    assert np.array_equal(both[26:44], alone[1][8:26])


# --- PNG ---


@pytest.mark.parametrize("text", ["自作LORA, кот, 🐈\nSteps: 24", "café"])
def test_parameters_in_the_png(text: str, tmp_path: Path) -> None:
    """WebUIs read `info["parameters"]`; it is always UTF-8, and not Latin-1 where that would do."""
    path = tmp_path / "samples" / "自作.png"
    save_png(Image.new("RGB", (8, 8), RED), path, text)
    with Image.open(path) as picture:
        assert picture.info["parameters"] == text
        assert picture.getpixel((3, 3)) == RED
    assert text.encode("utf-8") in path.read_bytes()
    assert [own.name for own in path.parent.iterdir()] == ["自作.png"]
