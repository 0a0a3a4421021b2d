"""Pictures of views: a grid of images, enlarged, each group of columns under what it shows."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEAST_SIDE = 96
"""Pixels; smaller images are enlarged by the least whole factor that reaches it."""
MARGIN, GAP, BLOCK_GAP = 8, 4, 16
"""Pixels around everything, between cells, and between blocks."""
_LINE, _FONT_SIZE = 15, 12
_PAPER, _INK = (226, 230, 234), (20, 20, 20)  # neither black nor white: the edges of such images stay visible


@dataclass(frozen=True, eq=False)
class Block:
    """Columns that belong together.

    Attributes:
        title: lines above them; what is too long for the block's width is broken, after a + or a space where it can be.
        columns: a short word above each column.
        images: (columns, rows, H, W, C) uint8, C 1 (grey) or 3 (RGB).
    """

    title: Sequence[str]
    columns: Sequence[str]
    images: np.ndarray


class Grid:
    """A picture of blocks side by side; all have the same rows, of images of one size.

    Every cell is an image enlarged by a whole factor, its pixels repeated: what is seen is what is there.

    Args:
        rows: a name for each row, shown to the left of it.
        blocks: at least one.
    """

    def __init__(self, rows: Sequence[str], blocks: Sequence[Block]):
        self.rows, self.blocks = rows, blocks
        self.height, self.width = blocks[0].images.shape[2:4]
        self.factor = -(-LEAST_SIDE // max(self.height, self.width))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, in pixels."""
        right = self.box(len(self.blocks) - 1, len(self.blocks[-1].columns) - 1, len(self.rows) - 1)
        return right[2] + MARGIN, right[3] + MARGIN

    def box(self, block: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Return where a cell lies, in pixels of the picture: left, top, right and bottom, the latter two exclusive."""
        left = self._left + sum(self._block_width(earlier) + BLOCK_GAP for earlier in self.blocks[:block])
        left += column * (self.width * self.factor + GAP)
        top = self._top + row * (self.height * self.factor + GAP)
        return left, top, left + self.width * self.factor, top + self.height * self.factor

    def draw(self) -> Image.Image:
        """Return the picture, RGB."""
        picture = Image.new("RGB", self.size, _PAPER)
        pen = ImageDraw.Draw(picture)
        for row, name in enumerate(self.rows):
            _, top, _, bottom = self.box(0, 0, row)
            pen.text((MARGIN, (top + bottom - _LINE) // 2), name, _INK, _font())
        for number, block in enumerate(self.blocks):
            left = self.box(number, 0, 0)[0]
            for line, text in enumerate(self._titles[number]):
                pen.text((left, MARGIN + line * _LINE), text, _INK, _font())
            for column, word in enumerate(block.columns):
                pen.text((self.box(number, column, 0)[0], self._top - _LINE - 2), word, _INK, _font())
                for row in range(len(self.rows)):
                    picture.paste(self._cell(block.images[column, row]), self.box(number, column, row)[:2])
        return picture

    def _cell(self, image: np.ndarray) -> Image.Image:
        enlarged = image.repeat(self.factor, axis=0).repeat(self.factor, axis=1)
        return Image.fromarray(np.broadcast_to(enlarged, (*enlarged.shape[:2], 3)).copy())

    def _block_width(self, block: Block) -> int:
        return len(block.columns) * (self.width * self.factor + GAP) - GAP

    @cached_property
    def _left(self) -> int:
        return 2 * MARGIN + max(_length(name) for name in self.rows)

    @cached_property
    def _top(self) -> int:
        """Where the first row begins: below titles and the columns' words."""
        return MARGIN + (max(map(len, self._titles)) + 1) * _LINE + GAP

    @cached_property
    def _titles(self) -> list[list[str]]:
        return [
            [part for line in block.title for part in _broken(line, self._block_width(block))] for block in self.blocks
        ]


def png(picture: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _broken(text: str, width: int) -> list[str]:
    """Break a line where it is too long: after + / or spaces, else anywhere."""
    lines = [""]
    for part in re.findall(r"[^ +/]*[ +/]?", text):
        if lines[-1] and _length((lines[-1] + part).rstrip()) > width:
            lines.append("")
        for letter in part:
            if lines[-1] and _length((lines[-1] + letter).rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


def _length(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)
