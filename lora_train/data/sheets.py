"""Picture grids with labels in any script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from lora_train.core.assets import ASSETS
from lora_train.core.files import write_bytes

FONT_PX = 16
"""The size that the font was drawn for; multiples of it look right too."""
_GAP_PX = 8
_LABEL_WIDTH_PX = 200
_SMALLEST_CELL_PX = 160
BACKGROUND = (250, 250, 250)
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
    top = _GAP_PX + (FONT_PX + _GAP_PX) * (bool(title) + any(column_labels))
    width = left + len(column_labels) * (cell_width + _GAP_PX)
    height = top + len(rows) * (cell_height + _GAP_PX)
    grid = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(grid)
    if title:
        write_text(draw, (_GAP_PX, _GAP_PX), title, width - 2 * _GAP_PX, 1)
    for column, label in enumerate(column_labels):
        x = left + column * (cell_width + _GAP_PX)
        write_text(draw, (x, top - FONT_PX - _GAP_PX), label, cell_width, 1)
    for row, (label, pictures) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + row * (cell_height + _GAP_PX)
        write_text(draw, (_GAP_PX, y), label, left - 2 * _GAP_PX, cell_height // (FONT_PX + 2))
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((cell_width, cell_height), Image.Resampling.BICUBIC)
            grid.paste(enlarged, (left + column * (cell_width + _GAP_PX), y))
    return grid


def save_png(picture: Image.Image, path: Path, parameters: str = "") -> None:
    """Write a PNG, with generation parameters as WebUIs read them from the text chunk "parameters"."""
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_itxt("parameters", parameters)
    stream = BytesIO()
    picture.save(stream, format="PNG", pnginfo=info)
    write_bytes(path, stream.getvalue())


def parameters_in(path: Path) -> str:
    """The generation parameters of a PNG of ours; "" where there are none."""
    with Image.open(path) as picture:
        return str(picture.info.get("parameters", ""))


def write_text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width_px: int, lines: int, font_px: int = FONT_PX
) -> None:
    """Write a text in any script in at most so many lines; an ellipsis ends what is cut."""
    x, y = at
    for line in _wrap(text, width_px, max(1, lines), font_px):
        _write_line(draw, (x, y), line, font_px)
        y += font_px + 2


def _write_line(draw: ImageDraw.ImageDraw, at: tuple[int, int], line: str, font_px: int) -> None:
    """Runs of one font at a time: where Pillow has Raqm, it shapes joined scripts and orders right-to-left ones."""
    x, y = at
    for name, run in groupby(line, key=_font_name):
        text, font = "".join(run), _load_font(name, font_px)
        draw.text((x, y), text, fill=_INK, font=font)
        x += round(font.getlength(text))


def _wrap(text: str, width_px: int, lines: int, font_px: int) -> list[str]:
    """`text` in at most `lines` lines of `width_px`; an ellipsis ends what is cut. Breaks at blanks where it can."""
    wrapped: list[str] = []
    line = ""
    for char in text:
        if _length_px(line + char, font_px) <= width_px:
            line += char
            continue
        head, blank, tail = line.rpartition(" ")
        wrapped.append(head if blank else line)
        line = (tail if blank else "") + char
    wrapped.append(line)
    if len(wrapped) > lines:
        wrapped = wrapped[:lines]
        while wrapped[-1] and _length_px(wrapped[-1] + "…", font_px) > width_px:
            wrapped[-1] = wrapped[-1][:-1]
        wrapped[-1] += "…"
    return wrapped


def _length_px(text: str, font_px: int) -> float:
    return sum(_load_font(name, font_px).getlength("".join(run)) for name, run in groupby(text, key=_font_name))


def _font_name(char: str) -> str:
    """GNU Unifont: the Basic Multilingual Plane, or the file with emoji and the other upper planes."""
    return "unifont.woff" if ord(char) <= 0xFFFF else "unifont_upper.woff"


@cache
def _load_font(name: str, font_px: int) -> Any:
    return ImageFont.truetype(str(ASSETS / "font" / name), font_px)
