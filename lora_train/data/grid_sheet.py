"""The sheet of a preview grid: pictures by any number of lists of values, with labels in any script.

The first list goes along the columns, the second down the rows; with the third, blocks of these stand side by side,
with all further ones below each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import msgspec
from PIL import Image, ImageDraw

from lora_train.data.sheets import BACKGROUND, FONT_PX, write_text

LARGEST_SIDE_PX = 16_384
"""Browsers draw no larger picture."""
LARGEST_AREA_PX = 89_478_485
"""Above, Pillow warns of a decompression bomb, also in the WebUI that reads the grid."""
_SMALLEST_CELL_PX = 160
_SHRINK = 0.95
_PX_PER_FONT = 256
"""A cell so wide has labels of the smallest size, a larger one larger."""
_LARGEST_FONT = 4
_SEAM_PX = 2
"""Between the pictures of one cell."""

PathsOf = Callable[[tuple[int, ...]], Sequence[Path]]
"""Indices into the lists -> the pictures of that cell. One that is not there leaves its place empty."""


class Layout(msgspec.Struct, frozen=True):
    """Sizes in pixels of a sheet, all from the size of a picture."""

    counts: tuple[int, int, int, int]
    """Columns, rows, blocks side by side, blocks below each other."""
    has_labels: tuple[bool, bool, bool]
    """Of columns, rows and blocks."""
    has_title: bool
    tiles: tuple[int, int]
    """Pictures of a cell: side by side, below each other."""
    picture: tuple[int, int]

    @property
    def font(self) -> int:
        return FONT_PX * min(_LARGEST_FONT, max(1, self.cell[0] // _PX_PER_FONT))

    @property
    def gap(self) -> int:
        return self.font // 2

    @property
    def line(self) -> int:
        return self.font + self.gap

    @property
    def cell(self) -> tuple[int, int]:
        width, height = (
            count * side + (count - 1) * _SEAM_PX for count, side in zip(self.tiles, self.picture, strict=True)
        )
        return width, height

    @property
    def left(self) -> int:
        """What the rows' labels take of a block."""
        return self.font * 12 if self.has_labels[1] else 0

    @property
    def top(self) -> int:
        """What the labels of a block and its columns take."""
        return self.line * (self.has_labels[0] + self.has_labels[2])

    @property
    def block(self) -> tuple[int, int]:
        """With the gap behind it."""
        columns, rows, *_ = self.counts
        return self.left + columns * (self.cell[0] + self.gap), self.top + rows * (self.cell[1] + self.gap)

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.block
        return self.gap + self.counts[2] * width, self.head + self.counts[3] * height

    @property
    def head(self) -> int:
        return self.gap + self.line * self.has_title

    @property
    def is_bearable(self) -> bool:
        width, height = self.size
        return max(width, height) <= LARGEST_SIDE_PX and width * height <= LARGEST_AREA_PX


def make_sheet(
    title: str,
    axes: Sequence[Sequence[str]],
    paths_of: PathsOf,
    *,
    picture_px: tuple[int, int],
    pictures: int,
    note: Callable[[str], None],
) -> Image.Image:
    """The sheet of cells with so many pictures each. `axes` are the labels of each list.

    A sheet over the limits above gets smaller pictures, which `note` is told.
    """
    labels = _four(axes)
    layout = _layout(title, labels, picture_px, pictures)
    if layout.picture[0] < picture_px[0]:
        width, height = layout.picture
        note(f"The grid {title!r} is large: its pictures are shown with {width}x{height} pixels in it.")
    sheet = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        write_text(draw, (layout.gap, layout.gap), title, layout.size[0] - 2 * layout.gap, 1, layout.font)
    for block in product(range(layout.counts[3]), range(layout.counts[2])):
        _label_block(draw, layout, labels, block)
    for indices in product(*(range(len(own)) for own in axes)):
        _paste(sheet, layout, _place(layout, indices, axes), paths_of(indices))
    return sheet


def _four(axes: Sequence[Sequence[str]]) -> list[list[str]]:
    """The labels of columns, rows, blocks side by side and below each other; [""] where there is no such list."""
    first = [list(axes[index]) if index < len(axes) else [""] for index in range(3)]
    return [*first, [", ".join(own) for own in product(*axes[3:])]]


def _layout(title: str, labels: Sequence[Sequence[str]], picture_px: tuple[int, int], pictures: int) -> Layout:
    across = math.ceil(math.sqrt(pictures))
    columns, rows, beside, below = labels
    factor: float = max(1, math.ceil(_SMALLEST_CELL_PX / picture_px[0]))
    while True:
        layout = Layout(
            (len(columns), len(rows), len(beside), len(below)),
            (any(columns), any(rows), any(beside) or any(below)),
            bool(title),
            (across, math.ceil(pictures / across)),
            (max(1, round(picture_px[0] * factor)), max(1, round(picture_px[1] * factor))),
        )
        if layout.is_bearable or layout.picture == (1, 1):
            return layout
        factor *= _SHRINK


def _block_corner(layout: Layout, across: int, down: int) -> tuple[int, int]:
    width, height = layout.block
    return layout.gap + across * width, layout.head + down * height


def _label_block(
    draw: ImageDraw.ImageDraw, layout: Layout, labels: Sequence[Sequence[str]], block: tuple[int, int]
) -> None:
    down, across = block
    columns, rows, beside, below = labels
    x, y = _block_corner(layout, across, down)
    if layout.has_labels[2]:
        label = ", ".join(filter(None, (beside[across], below[down])))
        write_text(draw, (x, y), label, layout.block[0] - layout.gap, 1, layout.font)
    for column, label in enumerate(columns):
        at = x + layout.left + column * (layout.cell[0] + layout.gap), y + layout.top - layout.line
        if label:
            write_text(draw, at, label, layout.cell[0], 1, layout.font)
    for row, label in enumerate(rows):
        at = x, y + layout.top + row * (layout.cell[1] + layout.gap)
        if label:
            lines = layout.cell[1] // (layout.font + 2)
            write_text(draw, at, label, layout.left - layout.gap, lines, layout.font)


def _place(layout: Layout, indices: Sequence[int], axes: Sequence[Sequence[str]]) -> tuple[int, int]:
    """The left upper corner of a cell."""
    column, row, across = (*indices[:3], 0, 0, 0)[:3]
    down = 0
    for index, own in zip(indices[3:], axes[3:], strict=True):
        down = down * len(own) + index
    x, y = _block_corner(layout, across, down)
    return (
        x + layout.left + column * (layout.cell[0] + layout.gap),
        y + layout.top + row * (layout.cell[1] + layout.gap),
    )


def _paste(sheet: Image.Image, layout: Layout, corner: tuple[int, int], paths: Sequence[Path]) -> None:
    width, height = layout.picture
    for index, path in enumerate(paths):
        if not path.is_file():
            continue
        down, across = divmod(index, layout.tiles[0])
        with Image.open(path) as picture:
            fitted = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(fitted, (corner[0] + across * (width + _SEAM_PX), corner[1] + down * (height + _SEAM_PX)))
