"""Suggested outlines lie on the object, are always the same, and never break; traced ones are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from tlkd import shapes, suggestion
from tlkd.errors import BadInput
from tlkd.rasters import Mask, fill
from tlkd.specs import Shapes


def filled(polygons: tuple[NDArray[np.float64], ...], height: int, width: int) -> Mask:
    mask = np.zeros((height, width), np.bool_)
    for polygon in polygons:
        fill(mask, polygon)
    return mask


def overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def disc(height: int, width: int, x: float, y: float, radius: float) -> tuple[NDArray[np.uint8], Mask]:
    """A red disc on a noisy green ground, and its mask."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    mask = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    pixels = np.where(mask[..., None], [200, 40, 30], [40, 140, 60]) + noise
    return pixels.astype(np.uint8), mask


@pytest.mark.parametrize(("height", "width", "x", "y", "radius"), [
    (32, 32, 16, 16, 8), (32, 32, 15, 18, 5), (300, 500, 240, 150, 90), (1200, 700, 350, 640, 220)])
def test_an_object_in_the_middle_is_found(height: int, width: int, x: float, y: float, radius: float) -> None:
    pixels, mask = disc(height, width, x, y, radius)
    found = suggestion.suggest(pixels)
    assert overlap(filled(found, height, width), mask) > 0.75
    assert all(3 <= len(polygon) <= suggestion.MOST_POINTS for polygon in found)
    again = suggestion.suggest(pixels)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


def test_a_box_finds_what_is_not_in_the_middle() -> None:
    pixels, mask = disc(40, 60, 50, 10, 6)
    box = (43.0, 3.0, 57.0, 17.0)
    assert overlap(filled(suggestion.suggest(pixels, box), 40, 60), mask) > 0.8
    assert not filled(suggestion.suggest(pixels, box), 40, 60)[20:].any()


def test_painted_scenes_are_outlined_well_enough_to_correct() -> None:
    settings_of = Shapes(train_per_class=1, test_per_class=2)
    listed = shapes.samples(settings_of, 0)
    found = []
    for name in listed.ids[-8:]:
        mask = shapes.mask(name, settings_of, 0)
        rows, columns = np.nonzero(mask)
        box = (columns.min() - 1.0, rows.min() - 1.0, columns.max() + 2.0, rows.max() + 2.0)
        pixels = np.asarray(shapes.render(name, settings_of, 0))
        found.append(overlap(filled(suggestion.suggest(pixels, box), *mask.shape), mask))
    assert np.mean(found) > 0.6


@pytest.mark.parametrize("pixels", [
    np.zeros((32, 32, 3), np.uint8), np.full((1, 1, 3), 9, np.uint8), np.full((3, 700, 3), 255, np.uint8),
    np.indices((20, 20)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 255])
def test_images_with_nothing_on_them(pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape[:2]
    for box in (None, (0.0, 0.0, float(width), float(height)), (0.0, 0.0, 1.0, 1.0)):
        for polygon in suggestion.suggest(pixels, box):
            assert np.isfinite(polygon).all()
            assert (polygon >= 0).all()
            assert (polygon <= (width, height)).all()


@given(arrays.arrays(np.bool_, (9, 12)))
@settings(max_examples=200, deadline=None)
def test_traced_masks_are_the_masks(mask: Mask) -> None:
    import cv2

    count, parts = cv2.connectedComponents((~np.pad(mask, 1)).astype(np.uint8), connectivity=4)
    outside = parts[1:-1, 1:-1] == parts[0, 0]
    assert count >= 1
    np.testing.assert_array_equal(filled(suggestion.trace(mask), 9, 12), ~outside)  # holes are filled


def test_a_missing_extra_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(BadInput, match=r"^tlkd annotate needs the extra annotate: pip install 'tlkd\[annotate\]'$"):
        suggestion.suggest(np.zeros((8, 8, 3), np.uint8))
