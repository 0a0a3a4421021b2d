"""Pictures: every pixel of every cell is the image's, cells do not touch, and readers of PNG and TensorBoard agree."""

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rolekd_ray.reporting.pictures import BLOCK_GAP, GAP, LEAST_SIDE, MARGIN, Block, Grid, png
from rolekd_ray.reporting.tensorboard import add_pictures


def noise(columns: int, rows: int, height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(columns).integers(0, 256, (columns, rows, height, width, channels), dtype=np.uint8)


def block(images: np.ndarray, *title: str) -> Block:
    return Block(title or ("title",), [f"epoch {k}" for k in range(len(images))], images)


@pytest.mark.parametrize(("side", "channels", "factor"), [(8, 1, 12), (28, 1, 4), (32, 3, 3), (100, 3, 1)])
def test_every_pixel_of_every_cell_is_the_images(side, channels, factor):
    images = [noise(2, 3, side, side, channels), noise(1, 3, side, side, channels)]
    grid = Grid(["a", "b", "c"], [block(each) for each in images])
    assert grid.factor == factor and side * factor >= LEAST_SIDE
    picture = np.asarray(Image.open(io.BytesIO(png(grid.draw()))))
    assert picture.shape == (grid.size[1], grid.size[0], 3) and picture.dtype == np.uint8
    for number, columns in enumerate(images):
        for column, row in np.ndindex(columns.shape[:2]):
            left, top, right, bottom = grid.box(number, column, row)
            assert (right - left, bottom - top) == (side * factor, side * factor)
            for y in range(0, side, 3):
                for x in range(0, side, 3):
                    shown = picture[top + y * factor : top + (y + 1) * factor, left + x * factor :][:, :factor]
                    assert (shown == columns[column, row, y, x]).all(), (number, column, row, y, x)


def test_where_cells_lie():
    grid = Grid(["a", "b"], [block(noise(2, 2, 48, 32, 3)), block(noise(3, 2, 48, 32, 3))])
    width, height = 32 * 2, 48 * 2
    left, top, *_ = grid.box(0, 0, 0)
    assert grid.box(0, 1, 1) == (left + width + GAP, top + height + GAP, left + 2 * width + GAP, top + 2 * height + GAP)
    second = left + 2 * width + GAP + BLOCK_GAP
    assert grid.box(1, 0, 0)[:2] == (second, top)
    assert grid.size == (second + 3 * width + 2 * GAP + MARGIN, top + 2 * height + GAP + MARGIN)


def test_text_stays_out_of_the_cells_and_inside_its_block():
    """Long words are broken, so that a title never runs into the next block's."""
    images = np.full((1, 1, 8, 8, 1), 7, np.uint8)
    long = ("trivial_augment_wide+learned+cutmix+pick", "x" * 90)
    grids = [Grid(["row"], [block(images, *title), block(images)]) for title in (("",), long)]
    plain, written = (np.asarray(grid.draw()) for grid in grids)
    top = grids[1].box(0, 0, 0)[1]
    assert top > grids[0].box(0, 0, 0)[1], "the header grew with its lines"
    assert plain.shape[1] == written.shape[1]
    for block_number in range(2):
        left, top, right, bottom = grids[1].box(block_number, 0, 0)
        assert (written[top:bottom, left:right] == 7).all()
    between = slice(grids[1].box(0, 0, 0)[2] + 2, grids[1].box(1, 0, 0)[0] - 2)  # ink may lean over by a pixel
    assert (written[: top - 20, between] == written[0, 0]).all(), "text runs out of its block"
    inside = slice(grids[1].box(0, 0, 0)[0], grids[1].box(0, 0, 0)[2])
    assert (written[: top - 20, inside] != written[0, 0]).any(), "there is text"


def test_tensorboards_reader_finds_the_pictures(tmp_path):
    teacher, student = (Image.fromarray(noise(1, 1, 9, 7 + k, 3)[0, 0]) for k in range(2))
    add_pictures(tmp_path / "views", {"views/teacher": teacher, "views/student": student}, step=5)
    add_pictures(tmp_path / "views", {"views/student": teacher}, step=8)
    events = EventAccumulator(str(tmp_path / "views"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"views/teacher", "views/student"}
    assert [event.step for event in events.Images("views/student")] == [5, 8]
    first = events.Images("views/student")[0]
    assert (first.width, first.height) == (8, 9)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first.encoded_image_string))), np.asarray(student))
