"""Foregrounds as pixels: against literal twins, matplotlib, pycocotools' own texts, and the way images are laid."""

import math

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image

from tlkd import images, rasters

FITS = ("crop", "stretch", "pad")


def filled(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    rasters.fill(mask, np.asarray(polygon, np.float64))
    return mask


def twin(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixel by pixel: does a ray from the centre to the left meet the outline an odd number of times?"""
    mask = np.zeros((height, width), np.bool_)
    for row in range(height):
        for column in range(width):
            x, y, meets = column + 0.5, row + 0.5, 0
            for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
                if (y0 <= y) != (y1 <= y):
                    low, high = ((x0, y0), (x1, y1)) if y0 <= y1 else ((x1, y1), (x0, y0))
                    meets += low[0] + (y - low[1]) * (high[0] - low[0]) / (high[1] - low[1]) <= x
            mask[row, column] = meets % 2 == 1
    return mask


@pytest.mark.parametrize("step", [0.5, 1.0, 0.25, 0.0])
def test_filling_is_the_literal_twin(step: float) -> None:
    """With points on pixels' corners, centres and edges, with crossings of themselves, and beyond the mask."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        polygon = rng.uniform(-4, 16, (rng.integers(3, 9), 2))
        polygon = np.round(polygon / step) * step if step else polygon
        np.testing.assert_array_equal(filled(polygon, 13, 9), twin(polygon, 13, 9), err_msg=repr(polygon))


def test_filling_agrees_with_matplotlib() -> None:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:30, :40] + 0.5
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
        polygon = np.stack([20 + rng.uniform(5, 25, 9) * np.cos(angle), 15 + rng.uniform(5, 18, 9) * np.sin(angle)], 1)
        theirs = Outline(polygon).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(30, 40)
        np.testing.assert_array_equal(filled(polygon, 40, 30), theirs)


def test_x_runs_right_and_y_runs_down() -> None:
    mask = filled(np.array([[2, 1], [6, 1], [6, 3], [2, 3]]), 9, 5)
    assert mask.sum() == 8
    assert mask[1:3, 2:6].all()


def test_left_and_upper_edges_belong() -> None:
    mask = filled(np.array([[1.5, 1.5], [4.5, 1.5], [4.5, 3.5], [1.5, 3.5]]), 8, 8)
    np.testing.assert_array_equal(np.argwhere(mask), [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]])


def test_a_centre_on_a_slope_is_on_it() -> None:
    """7 / 25 has no binary fraction, but half way down the edge lies a centre: it is on a left edge, so it belongs."""
    mask = filled(np.array([[0, 0], [20, 0], [20, 25], [7, 25]]), 20, 25)
    assert mask[12].tolist() == [False] * 3 + [True] * 17


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    rng = np.random.default_rng(5)
    for step in (0.5, 0.1, 0.0):
        hub = rng.uniform(4, 16, 2)
        hub = np.round(hub / step) * step if step else hub
        corners = np.array([[0, 0], [9, 0], [20, 0], [20, 7.5], [20, 20], [3, 20], [0, 20], [0, 11.5]])
        pieces = [np.array([hub, corners[k], corners[(k + 1) % 8]])[::(-1) ** k] for k in range(8)]
        np.testing.assert_array_equal(sum(filled(piece, 20, 20).astype(int) for piece in pieces), 1)


def test_filling_adds() -> None:
    mask = filled(np.array([[0, 0], [2, 0], [2, 2], [0, 2]]), 6, 6)
    rasters.fill(mask, np.array([[1.0, 1], [4, 1], [4, 4], [1, 4]]))
    assert mask.sum() == 4 + 9 - 1


@pytest.mark.parametrize("polygon", [[[1, 1.6], [5, 1.7], [9, 1.9]], [[3, 3], [3, 3], [3, 3]],
                                     [[20, 0], [30, 0], [25, 9]]])
def test_what_meets_no_centre_is_empty(polygon: list[list[float]]) -> None:
    assert not filled(np.array(polygon), 10, 5).any()


# Run lengths. The texts are what pycocotools 2.0.11 made of the masks beside them.


def coco_text(counts: list[int]) -> str:
    """maskApi.c's rleToString, line by line."""
    text = ""
    for index, count in enumerate(counts):
        x = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = (x != -1) if c & 0x10 else (x != 0)
            text += chr((c | 0x20 if more else c) + 48)
    return text


def runs(mask: np.ndarray) -> list[int]:
    counts, last = [0], False
    for value in mask.T.ravel():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def test_compressed_runs_of_pycocotools() -> None:
    small = np.zeros((5, 7), np.bool_)
    small[1:4, 2:6] = small[0, 0] = True
    small[2, 3] = False
    bars = np.zeros((50, 70), np.bool_)
    bars[:, 1:60:9] = bars[10:20, 30:40] = True
    tall = np.zeros((300, 400), np.bool_)
    tall[5:290, 100:103] = tall[7, 9] = True
    for mask, text in ((small, "01:2HNO012004"), (np.zeros((3, 4), np.bool_), "<"), (np.ones((3, 4), np.bool_), "0<"),
                       (bars, r"b1b1`<00000\EhN\O00000000000FX1\OhNn00R9X1V20\9"), (tall, "cd21Qej0l8^[UO000WPg2")):
        counts = rasters.counts_of(text)
        assert counts == runs(mask)
        np.testing.assert_array_equal(rasters.unroll(counts, mask.shape[1], mask.shape[0]), mask)


def test_compressed_runs_come_back() -> None:
    rng = np.random.default_rng(6)
    for _ in range(30):
        counts = [int(each) for each in rng.integers(0, 10 ** rng.integers(1, 7), rng.integers(1, 30))]
        assert rasters.counts_of(coco_text(counts)) == counts


@pytest.mark.parametrize(("text", "line"), [("01:2é", "is no compressed text"), ("0 1", "is no compressed text"),
                                            ("o" * 99, "is no compressed text"), ("01:2H^", "breaks off")])
def test_texts_that_are_no_runs(text: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        rasters.counts_of(text)


# Laying onto squares


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(31, 44), (44, 31), (9, 9), (7, 100), (64, 3)])
def test_at_the_stored_side_a_mask_is_laid_as_fit_image_does(fit: images.Fit, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(7).random(shape) > 0.5
    for side in (4, 16, 64):  # powers of two, where Pillow's steps are exact: at others it misses some ties
        theirs = images.fit_image(Image.fromarray(mask.astype(np.uint8)), side, fit, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(rasters.lay(mask, side, side, fit), np.asarray(theirs, np.bool_))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("shape", "side", "size"), [((30, 44), 44, 96), ((44, 30), 20, 16), ((3, 2), 3, 224),
                                                     ((90, 61), 61, 61), ((33, 32), 33, 64)])
def test_a_mask_lies_where_its_image_does(fit: images.Fit, shape: tuple[int, int], side: int, size: int) -> None:
    """An image that is white on its mask, laid and then resized for a network, is white there; edges are blurred."""
    mask = np.zeros(shape, np.bool_)
    mask[shape[0] // 4:, shape[1] // 2:] = True
    mask[:1, :1] = True
    image = images.fit_image(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)), side, fit)
    seen = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    laid = rasters.lay(mask, side, size, fit)
    assert laid[seen > 240].all()
    assert not laid[seen < 15].any()
    assert (laid == (seen > 127)).mean() > (0.95 if side > 8 else 0.85)


@pytest.mark.parametrize("fit", FITS)
def test_every_pixel_is_the_one_under_its_centre(fit: images.Fit) -> None:
    """A literal twin, in fractions: square's centre, stored square, original."""
    mask = np.random.default_rng(8).random((7, 11)) > 0.5
    side, size = 9, 13
    (x, width, left, across), (y, height, top, along) = rasters.axes(11, 7, side, fit)
    laid = rasters.lay(mask, side, size, fit)
    for row in range(size):
        for column in range(size):
            u = x + ((column + 0.5) * side / size - left) * width / across
            v = y + ((row + 0.5) * side / size - top) * height / along
            inside = x <= u < x + width and y <= v < y + height
            assert laid[row, column] == (inside and mask[math.floor(v), math.floor(u)])
