"""Foregrounds as pixels: polygons filled, run lengths unrolled, masks laid onto squares; pure functions.

Coordinates are pixels: x to the right, y down; pixel (0, 0) covers [0, 1) x [0, 1), its centre is (0.5, 0.5).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlkd.images import Fit

Polygon = NDArray[np.float64]  # [point, 2]: x and y
Mask = NDArray[np.bool_]  # [height, width]

MOST_EDGES = 256  # of a polygon, filled at a time


def fill(mask: Mask, polygon: Polygon) -> None:
    """Add a polygon to a mask, in place: the pixels whose centre lies in it by the even-odd rule.

    Of centres on an edge, those on a left or an upper one belong and the others do not, so that polygons that share an
    edge share no pixel and leave none out. What lies outside of the mask is cut off.
    """
    height, width = mask.shape
    begin, end = polygon, np.roll(polygon, -1, axis=0)
    # Every edge is followed downwards, whichever way it was drawn: neighbours then round alike.
    down = (begin[:, 1] <= end[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(down, begin, end).T, np.where(down, end, begin).T
    # An edge concerns the rows whose centre y has y0 <= y < y1.
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (y0, y1))
    crossed = last - first
    if not crossed.any():
        return
    top, bottom = first[crossed > 0].min(), last[crossed > 0].max()
    left, right = (int(np.clip(np.ceil(x - 0.5), 0, width)) for x in (polygon[:, 0].min(), polygon[:, 0].max()))
    odd = np.zeros((bottom - top, right - left + 1), np.uint8)
    ends = np.cumsum(crossed)
    for start in range(0, len(polygon), MOST_EDGES):  # a few edges at a time: each may cross all rows
        part = slice(start, start + MOST_EDGES)
        edges = start + np.repeat(np.arange(len(crossed[part])), crossed[part])
        rows = np.arange(len(edges)) + (ends - crossed)[start] - (ends - last)[edges]
        # The product first: exact where it can be.
        crossing = x0[edges] + (rows + 0.5 - y0[edges]) * (x1[edges] - x0[edges]) / (y1[edges] - y0[edges])
        columns = np.clip(np.ceil(crossing - 0.5), left, right).astype(np.int64)  # the first centre not left of it
        np.bitwise_xor.at(odd, (rows - top, columns - left), 1)
    inside = np.bitwise_xor.accumulate(odd, axis=1)[:, :-1].astype(np.bool_)  # the last column is where all has ended
    mask[top:top + inside.shape[0], left:left + inside.shape[1]] |= inside


def counts_of(text: str) -> list[int]:
    """COCO's compressed runs as numbers of pixels; raises `ValueError`.

    A number is base 32, lowest digit first, one character (code 48 + digit) each, 32 added where more follow; its top
    bit is its sign. From the fourth number on, each is the difference from the one two before. (pycocotools, maskApi.c)
    """
    counts: list[int] = []
    number, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"{text[:20]!r} is no compressed text of counts")
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            number -= (1 << shift) if code & 16 else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    if shift:
        raise ValueError(f"{text[-20:]!r} breaks off")
    return counts


def unroll(counts: list[int], width: int, height: int) -> Mask:
    """Runs of background and foreground by turns, down the columns from the left, as a mask."""
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def lay(mask: Mask, side: int, size: int, fit: Fit) -> Mask:
    """A mask `[height, width]` as `images.fit_image` lays its image onto `side` pixels, seen at `size` x `size`.

    Each pixel takes the value of the one that its centre falls on; what `pad` adds is background. In one step, since
    a network's input is the stored square resized: at `side` itself this is `fit_image(..., NEAREST)`.
    """
    laid = np.zeros((size, size), np.bool_)
    rows, columns = (_nearest(axis, side, size) for axis in axes(mask.shape[1], mask.shape[0], side, fit)[::-1])
    inside = np.ix_(rows >= 0, columns >= 0)
    laid[inside] = mask[np.ix_(rows[rows >= 0], columns[columns >= 0])]
    return laid


class Axis(NamedTuple):
    """One axis of an image on a square: its pixels `first` to `first + extent` become `start` to `start + length`."""

    first: int
    extent: int
    start: int
    length: int


def axes(width: int, height: int, side: int, fit: Fit) -> tuple[Axis, Axis]:
    """How columns and rows go onto a square of `side` pixels; the arithmetic is that of `images.fit_image`."""
    if fit == "stretch":
        return Axis(0, width, 0, side), Axis(0, height, 0, side)
    short, longer = min(width, height), max(width, height)
    if fit == "crop":
        return Axis((width - short) // 2, short, 0, side), Axis((height - short) // 2, short, 0, side)
    across, along = (max(1, round(extent * side / longer)) for extent in (width, height))
    return Axis(0, width, (side - across) // 2, across), Axis(0, height, (side - along) // 2, along)


def _nearest(axis: Axis, side: int, size: int) -> NDArray[np.int64]:
    """The original's pixel under each of `size` pixels' centres, -1 where there is none; whole numbers, so exact."""
    numerator = (2 * np.arange(size, dtype=np.int64) + 1) * side - 2 * size * axis.start  # the centre, times 2 size
    pixel = axis.first + numerator * axis.extent // (2 * size * axis.length)
    return np.where((numerator >= 0) & (numerator < 2 * size * axis.length), pixel, -1)
