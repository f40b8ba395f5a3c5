"""How far a mean over seeds and images may lie from the truth: both chances taken together; pure functions, no files.

The model is that of two crossed random effects: a difference `[seed, image]` is the gain, plus what is the seed's own,
plus what is the image's own, plus a rest that belongs to that seed and that image together.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RARE = 3  # images: what may have been missed where few images differ, as in the rule of three


class Spread(NamedTuple):
    """The parts of the variance of the mean of a table `[seed, image]`, each in the unit squared.

    `seeds` is the variance of seeds' means over their number, `images` that of images' means over theirs; both contain
    `rest`, the variance of what is left over the number of cells. nan where there is one seed, or one image, alone.
    `unit`: the mean square size of an image's difference, of those that differ, once averaged over seeds.
    """

    seeds: float
    images: float
    rest: float
    unit: float


def spread(table: Floats) -> Spread:
    """The parts of the variance of the mean of `table [seed, image]`, by analysis of variance."""
    seeds, images = table.shape
    mean = float(table.mean())
    over_seeds, over_images = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    squares = _sum_of_squares(over_seeds, table), _sum_of_squares(over_images, table)
    rest = float(np.square(table - mean).sum()) - images * squares[0] - seeds * squares[1]
    cells = (seeds - 1) * (images - 1)
    whole = np.array_equal(table, np.rint(table))
    # Seeds' counts of images are rounded: that they are equal is no certainty.
    least = 1 / (12 * images**2) if whole else 0.0
    # Where no image differs, one that does may differ wholly.
    unit = float(np.power(over_images, 4).sum()) / squares[1] if squares[1] > 0 else float(whole)
    return Spread(
        seeds=max(squares[0] / (seeds - 1), least) / seeds if seeds > 1 else math.nan,
        images=squares[1] / (images - 1) / images if images > 1 else math.nan,
        rest=max(0.0, rest) / cells / table.size if cells else math.nan, unit=unit)


def _sum_of_squares(deviations: Floats, table: Floats) -> float:
    """The sum of squares, 0 where the numbers differ by rounding alone."""
    return float(deviations @ deviations) if np.abs(deviations).max() > 1e-12 * np.abs(table).max() else 0.0


def half_width(parts: Spread, seeds: int, images: int, level: float) -> float:
    """Half of a 1 - `level` interval for a mean over `seeds` and `images`; nan for one seed.

    Student's half-width over seeds' means and that over images' means, added in squares; the rest, which is in both, is
    taken off once, and neither alone is undercut. The images' variance counts `RARE` images more than were seen to
    differ. One image says nothing of others: over seeds alone.
    """
    if seeds < 2:
        return math.nan
    over_seeds = quantile(level, seeds - 1) ** 2 * parts.seeds
    if images < 2:
        return math.sqrt(over_seeds)
    squared = quantile(level, images - 1) ** 2
    over_images = squared * (parts.images + RARE * parts.unit / images**2)
    return math.sqrt(max(over_seeds + over_images - squared * parts.rest, over_seeds, over_images))


def quantile(level: float, degrees: int) -> float:
    """Student's two-sided quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - level / 2))
