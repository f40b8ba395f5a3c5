"""An outline proposed for a person to correct: GrabCut with a box or with the middle of the image as its prior.

GrabCut: Rother, Kolmogorov and Blake, "GrabCut: interactive foreground extraction using iterated graph cuts",
SIGGRAPH 2004, as OpenCV has it. Coordinates are those of `rasters`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkd.errors import needs
from tlkd.rasters import Mask, Polygon

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

WORKING_SIDE = 256  # pixels: small images grow to it, since outlines run through pixels; large ones shrink, for speed
ROUNDS = 5  # of GrabCut
OUTER, INNER = 0.44, 0.15  # semi-axes of the middle that is probably, and of the one that is surely foreground
EDGE = 0.04  # of each side: surely background, without a box
SMALLEST_PART = 0.15  # of the largest part's area: parts below are left out
TOLERANCE = 0.006  # of the longer side: how far a simplified outline may lie from what was found
LEAST_TOLERANCE = 0.4  # pixels of the image
MOST_POINTS = 40  # more than that nobody corrects


def suggest(pixels: NDArray[np.uint8], box: Box | None = None) -> tuple[Polygon, ...]:
    """Outlines of what is probably the foreground of an image `[height, width, 3]`, largest first; perhaps none.

    `box` has the whole object in it; without one, the middle of the image is taken as a hint. The same image and box
    always give the same outlines.
    """
    cv2 = needs("cv2", "tlkd annotate", "annotate")
    height, width = pixels.shape[:2]
    scale = WORKING_SIDE / max(height, width)
    size = max(8, round(width * scale)), max(8, round(height * scale))
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    image = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=method)[..., ::-1])
    prior = _middle(*size) if box is None else _within(box, width, height, size)
    if not (prior == cv2.GC_BGD).any() and not (prior == cv2.GC_PR_BGD).any():
        return ()  # a box around everything leaves nothing to tell the foreground from
    models = np.zeros((1, 65), np.float64), np.zeros((1, 65), np.float64)
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(image, prior, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # one of the two sides has run empty
        return ()
    found = ((prior == cv2.GC_FGD) | (prior == cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    return _outlines(found, np.array([width, height]) / size)


def trace(mask: Mask) -> tuple[Polygon, ...]:
    """Polygons along the edges of a mask's pixels, largest first: filled, they give the mask again, holes filled."""
    cv2 = needs("cv2", "tlkd annotate", "annotate")
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    traced = []
    for contour in sorted(contours, key=cv2.contourArea, reverse=True):
        corners = np.rint((contour[:, 0, :] + 0.5) / 2)  # a quarter of a pixel off the edge, on the inner side of it
        turns = (corners != np.roll(corners, 1, axis=0)).any(axis=1)
        traced.append(_straightened(corners[turns]))
    return tuple(traced)


def _middle(width: int, height: int) -> NDArray[np.uint8]:
    """The prior of an object in the middle: an ellipse, with a smaller one inside that is sure."""
    cv2 = needs("cv2", "tlkd annotate", "annotate")
    prior = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    middle = (width // 2, height // 2)
    for share, value in ((OUTER, cv2.GC_PR_FGD), (INNER, cv2.GC_FGD)):
        cv2.ellipse(prior, middle, (round(share * width), round(share * height)), 0, 0, 360, int(value), -1)
    rim = max(1, round(EDGE * width)), max(1, round(EDGE * height))
    prior[:rim[1]] = prior[-rim[1]:] = prior[:, :rim[0]] = prior[:, -rim[0]:] = cv2.GC_BGD
    return prior


def _within(box: Box, width: int, height: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The prior of an object in a box: surely background outside, foreground in the middle of it."""
    cv2 = needs("cv2", "tlkd annotate", "annotate")
    prior = np.full((size[1], size[0]), cv2.GC_BGD, np.uint8)
    factor = np.array([size[0] / width, size[1] / height] * 2)
    limits = np.array([size[0], size[1]] * 2)
    left, top, right, bottom = np.clip(np.rint(np.array(box) * factor), 0, limits).astype(int)
    prior[top:bottom, left:right] = cv2.GC_PR_FGD
    middle, axes = ((left + right) // 2, (top + bottom) // 2), (INNER * (right - left), INNER * (bottom - top))
    cv2.ellipse(prior, (int(middle[0]), int(middle[1])), (round(axes[0]), round(axes[1])), 0, 0, 360, cv2.GC_FGD, -1)
    return prior


def _outlines(found: NDArray[np.uint8], scale: NDArray[np.float64]) -> tuple[Polygon, ...]:
    """The outlines of the larger parts of a mask, simplified, in the pixels of the image: `scale` of them to one."""
    cv2 = needs("cv2", "tlkd annotate", "annotate")
    contours, _ = cv2.findContours(found, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contours = sorted(contours, key=cv2.contourArea, reverse=True)
    outlines = []
    for contour in contours:
        if cv2.contourArea(contour) < max(4.0, SMALLEST_PART * cv2.contourArea(contours[0])):
            break
        tolerance = max(TOLERANCE * max(found.shape), LEAST_TOLERANCE / scale.max())
        points = cv2.approxPolyDP(contour, tolerance, True)[:, 0, :]
        while len(points) > MOST_POINTS:
            tolerance *= 1.25
            points = cv2.approxPolyDP(contour, tolerance, True)[:, 0, :]
        if len(points) >= 3:
            outlines.append(np.round((points + 0.5) * scale, 2))
    return tuple(outlines)


def _straightened(corners: NDArray[Any]) -> Polygon:
    """A closed line without the points in the middle of its straight stretches."""
    before, after = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    straight: Polygon = corners[bends].astype(np.float64)
    return straight
