"""Picture grids with labels in any script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from lora_train.core.assets import ASSETS

_FONT_PX = 16
_GAP_PX = 8
_LABEL_WIDTH_PX = 200
_SMALLEST_CELL_PX = 160
_BACKGROUND = (250, 250, 250)
_INK = (30, 30, 30)


def make_grid(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
) -> Image.Image:
    """Pictures in rows and columns, each row labelled at the left, each column above. Small ones are enlarged."""
    factor = max(1, -(-_SMALLEST_CELL_PX // rows[0][0].width))
    cell_width, cell_height = (side * factor for side in rows[0][0].size)
    left = _LABEL_WIDTH_PX if any(row_labels) else _GAP_PX
    top = _GAP_PX + (_FONT_PX + _GAP_PX) * (bool(title) + any(column_labels))
    width = left + len(column_labels) * (cell_width + _GAP_PX)
    height = top + len(rows) * (cell_height + _GAP_PX)
    grid = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    if title:
        _write(draw, (_GAP_PX, _GAP_PX), title, width - 2 * _GAP_PX, 1)
    for column, label in enumerate(column_labels):
        x = left + column * (cell_width + _GAP_PX)
        _write(draw, (x, top - _FONT_PX - _GAP_PX), label, cell_width, 1)
    for row, (label, pictures) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + row * (cell_height + _GAP_PX)
        _write(draw, (_GAP_PX, y), label, left - 2 * _GAP_PX, cell_height // (_FONT_PX + 2))
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((cell_width, cell_height), Image.Resampling.BICUBIC)
            grid.paste(enlarged, (left + column * (cell_width + _GAP_PX), y))
    return grid


def save_png(picture: Image.Image, path: Path, parameters: str = "") -> None:
    """Write a PNG, with generation parameters as WebUIs read them from the text chunk "parameters"."""
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_itxt("parameters", parameters)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    picture.save(temporary, format="PNG", pnginfo=info)
    temporary.replace(path)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width_px: int, lines: int) -> None:
    x, y = at
    for line in _wrap(text, width_px, max(1, lines)):
        _write_line(draw, (x, y), line)
        y += _FONT_PX + 2


def _write_line(draw: ImageDraw.ImageDraw, at: tuple[int, int], line: str) -> None:
    """Runs of one font at a time: where Pillow has Raqm, it shapes joined scripts and orders right-to-left ones."""
    x, y = at
    for font, run in groupby(line, key=_font):
        text = "".join(run)
        draw.text((x, y), text, fill=_INK, font=font)
        x += round(font.getlength(text))


def _wrap(text: str, width_px: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of `width_px`; an ellipsis ends what is cut. Breaks at blanks where it can."""
    wrapped: list[str] = []
    line = ""
    for char in text:
        if _length_px(line + char) <= width_px:
            line += char
            continue
        head, blank, tail = line.rpartition(" ")
        wrapped.append(head if blank else line)
        line = (tail if blank else "") + char
    wrapped.append(line)
    if len(wrapped) > lines:
        wrapped = wrapped[:lines]
        while wrapped[-1] and _length_px(wrapped[-1] + "…") > width_px:
            wrapped[-1] = wrapped[-1][:-1]
        wrapped[-1] += "…"
    return wrapped


def _length_px(text: str) -> float:
    return sum(font.getlength("".join(run)) for font, run in groupby(text, key=_font))


def _font(char: str) -> Any:
    """GNU Unifont: the Basic Multilingual Plane, or the file with emoji and the other upper planes."""
    return _load_font("unifont.woff" if ord(char) <= 0xFFFF else "unifont_upper.woff")


@cache
def _load_font(name: str) -> Any:
    return ImageFont.truetype(str(ASSETS / "font" / name), _FONT_PX)
