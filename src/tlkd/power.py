"""How many seeds and test images would show the smallest gain that matters; pure functions, no files.

The power is that of the whole rule: the interval above 0 and both corrected p below the level, at once.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlkd.spreads import RARE, Spread, quantile

Floats = NDArray[np.float64]

POWER = 0.8
DRAWS = 2_000
EXACT = 9  # seeds: up to as many, all signs are gone through; beyond, Student's t is as near as a draw can tell
FEW = 5  # ways of signs: where the level allows fewer, as in a large family, t would promise too much
MOST_SEEDS, MOST_IMAGES = 10_000, 10**9


class Needed(NamedTuple):
    """How many would show the smallest gain at 80 % power; None where the spread is not known.

    `seeds`: with the present test images; `images`: with the present seeds; None also where that alone cannot do.
    `together` is there where neither alone can: seeds and images, both multiplied by the same.
    """

    seeds: int | None
    images: int | None
    together: tuple[int, int] | None = None


class _Components(NamedTuple):
    """Variances of a seed's, of an image's and of a cell's own part, and what `spreads.half_width` adds for rarity."""

    seed: float
    image: float
    rest: float
    unit: float  # an image's own, in the unit of its variance


def needed(parts: Spread, seeds: int, images: int, smallest_gain: float, level: float, contrasts: int = 1) -> Needed:
    """How many seeds, and test images, would show a gain of `smallest_gain` at 80 % power.

    From the spread observed over `seeds` and `images`, never from the observed gain, at Holm's strictest level for a
    family of `contrasts`. One seed: nothing is known; one image: seeds alone count. Raises `ValueError` for a gain
    that is not positive.
    """
    if smallest_gain <= 0:
        raise ValueError(f"smallest_gain: expected a positive number, found {smallest_gain}")
    if seeds < 2:
        return Needed(None, None)
    found, rule = _components(parts, seeds, images), (smallest_gain, level, contrasts)

    def enough(some_seeds: int, some_images: int) -> bool:
        return power(found, some_seeds, some_images, rule) >= POWER

    more_seeds = _first(lambda n: enough(n, images), MOST_SEEDS)
    if images < 2:
        return Needed(more_seeds, None)
    more_images = _first(lambda m: enough(seeds, m), MOST_IMAGES)
    if more_seeds is not None or more_images is not None:
        return Needed(more_seeds, more_images)
    both = _first(lambda n: n > seeds and enough(n, math.ceil(images * n / seeds)), MOST_SEEDS)
    return Needed(None, None, (both, math.ceil(images * both / seeds)) if both is not None else None)


def _components(parts: Spread, seeds: int, images: int) -> _Components:
    """Variances out of mean squares, none below 0; a mean square of few is more often too small than too large."""
    over_seeds = parts.seeds / _median(seeds - 1)
    if images < 2:
        return _Components(seeds * over_seeds, 0.0, 0.0, 0.0)
    over_images = parts.images / _median(images - 1)
    own_seed, own_image = seeds * max(0.0, over_seeds - parts.rest), images * max(0.0, over_images - parts.rest)
    of_means = images * over_images
    return _Components(own_seed, own_image, seeds * images * parts.rest, parts.unit / of_means if of_means else 1.0)


def power(parts: _Components, seeds: int, images: int, rule: tuple[float, float, int]) -> float:
    """How often a true gain is supported, from draws that are the same each time: `rule` is gain, level, contrasts.

    Seeds' and images' own parts are drawn from normal laws, variances from chi-squared ones.
    """
    gain, level, contrasts = rule
    strict = level / contrasts
    if 2.0 ** (1 - seeds) >= strict or (images > 1 and 2.0 ** (1 - images) >= strict):
        return 0.0
    drawn = _drawn()
    of_seed, of_image = parts.seed + parts.rest / images, parts.image + parts.rest / seeds
    shared = gain + math.sqrt(parts.image / images) * drawn[:, 0]
    ways = strict * 2.0 ** min(seeds - 1, 99)
    if seeds <= EXACT or ways < FEW:
        own = drawn[:, 3:3 + seeds] if seeds <= EXACT else _drawn_for(seeds)
        by_seed = shared[:, None] + math.sqrt(of_seed) * own
        means, over_seeds = by_seed.mean(axis=1), by_seed.var(axis=1, ddof=1) / seeds
        passed = _flipped(by_seed) < strict if seeds <= EXACT else _ways(by_seed) < ways
    else:
        means = shared + math.sqrt(of_seed / seeds) * drawn[:, 1]
        over_seeds = of_seed / seeds * _chi_squared(drawn[:, 3], seeds - 1)
        passed = means > quantile(strict, seeds - 1) * np.sqrt(over_seeds)
    squares = quantile(level, seeds - 1) ** 2 * over_seeds
    if images > 1:
        over_images = of_image / images * _chi_squared(drawn[:, 2], images - 1)
        passed &= means > quantile(strict, MOST_IMAGES) * np.sqrt(over_images + means**2 / images)
        squared = quantile(level, images - 1) ** 2
        widened = squared * (over_images + RARE * parts.unit * of_image / images**2)
        both = squares + widened - squared * parts.rest / (seeds * images)
        squares = np.maximum(both, np.maximum(squares, widened))
    return float(np.mean(passed & (means > np.sqrt(squares))))


@cache
def _drawn() -> Floats:
    """Standard normal draws `[draw, part]`: an image's part, the seeds' mean, two variances, and each of few seeds."""
    return np.random.default_rng(list(b"power")).standard_normal((DRAWS, 3 + EXACT))


@cache
def _drawn_for(seeds: int) -> Floats:
    """Standard normal draws `[draw, seed]` of more seeds than all signs of which are gone through."""
    return np.random.default_rng([*b"power", seeds]).standard_normal((DRAWS, seeds))


def _chi_squared(normal: Floats, degrees: int) -> Floats:
    """Chi-squared draws over their degrees (Wilson and Hilferty, 1931)."""
    part = 2 / (9 * degrees)
    return np.asarray(np.maximum(1 - part + math.sqrt(part) * normal, 0) ** 3, np.float64)


def _median(degrees: int) -> float:
    """The median of chi-squared over its degrees: divided by it, a mean square is too small as often as too large."""
    from scipy.special import chdtri

    return float(chdtri(degrees, 0.5)) / degrees


def _flipped(values: Floats) -> Floats:
    """The sign-flip p of each row of `[draw, seed]`, as `statistics.sign_flip` gives it."""
    seeds = values.shape[1]
    signs = 1.0 - 2.0 * ((np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)) & 1)
    sums = np.abs(values @ signs.T)
    return np.asarray(np.mean(sums >= sums[:, :1] - 1e-9 * np.abs(values).sum(axis=1, keepdims=True), axis=1),
                      np.float64)


def _ways(values: Floats) -> Floats:
    """How many signs of each row of `[draw, seed]`, its sum positive, give a sum as large; right below `FEW`.

    The smallest values that may be turned decide: were there one more among the others, there would be `FEW` already.
    """
    lowest = np.sort(values, axis=1)[:, :FEW]
    turned = (np.arange(2**FEW)[:, None] >> np.arange(FEW)) & 1
    return np.asarray(np.sum(lowest @ turned.T <= 0, axis=1), np.float64)


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest n from 2 on for which `holds`, which stays true once it is; None where it does not at `most`."""
    if not holds(most):
        return None
    below, above = 1, 2
    while not holds(above):
        below, above = above, min(2 * above, most)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above
