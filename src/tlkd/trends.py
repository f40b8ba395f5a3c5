"""Trend and peak of a gain over ordered places, easy to hard; pure functions, no files.

`stack [place, seed, image]` holds differences, an arm minus TL, scaled such that the mean of a place is its gain.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tlkd.statistics import resampled

Floats = NDArray[np.float64]

INNER = 3  # places: with fewer none lies between two ends
EXACT = 14  # seeds: up to as many all signs are gone through
FLIPS = 9_999
TOGETHER = 256  # places that are resampled at a time: 20 MB of means


def linear(stack: ArrayLike) -> Floats:
    """The fitted change of the gain from the first place to the last, `[seed, image]`: its mean is the trend.

    The least-squares slope over the places' ranks, centred, times the number of steps, in the unit of the gain; being
    a contrast of differences, it may be tested as they are. Source: linear ranks over ordered conditions as in Page,
    "Ordered hypotheses for multiple treatments", 1963, with the gains themselves where Page ranks them. Raises
    `ValueError` for fewer than two places.
    """
    values = _stack(stack)
    if len(values) < 2:
        raise ValueError(f"expected at least 2 places, found {len(values)}")
    ranks = np.arange(len(values)) - (len(values) - 1) / 2
    return np.asarray(np.tensordot(ranks, values, axes=1) * (len(values) - 1) / (ranks @ ranks), np.float64)


class Peak(NamedTuple):
    """Where a gain is largest: the place's number, the gain there, and by place how many resamples have theirs."""

    place: int
    gain: float
    shares: tuple[float, ...]  # nan where nothing can be resampled: one seed


def peak(stack: ArrayLike) -> Peak:
    """The place with the largest mean gain (of equal ones the first), and how sure that place is.

    `shares`: the part of bootstrap resamples, over seeds and images and with the same draws for all places, whose
    largest gain is there.
    """
    return peaks([stack])[0]


def peaks(stacks: Sequence[ArrayLike]) -> list[Peak]:
    """The peak of each stack, as `peak` gives it: the draws are the same for all, and made once for many of them."""
    tables = [_stack(stack) for stack in stacks]
    found: list[Peak | None] = [None] * len(tables)
    waiting: dict[tuple[int, ...], list[int]] = {}
    for number, values in enumerate(tables):
        waiting.setdefault(values.shape[1:], []).append(number)
    for alike in waiting.values():
        while alike:
            some = [alike.pop(0)]
            while alike and sum(len(tables[number]) for number in [*some, alike[0]]) <= TOGETHER:
                some.append(alike.pop(0))
            together = np.concatenate([tables[number] for number in some])
            means = resampled(together) if together.shape[1] > 1 else None
            start = 0
            for number in some:
                stop = start + len(tables[number])
                found[number] = _peak(tables[number], None if means is None else means[start:stop])
                start = stop
    return [each for each in found if each is not None]


def _peak(values: Floats, means: Floats | None) -> Peak:
    """The peak of one stack, from its resampled means `[place, resample]`."""
    gains = values.mean(axis=(1, 2))
    place = first_largest(gains)
    if means is None:
        return Peak(place, float(gains[place]), (math.nan,) * len(values))
    largest = np.argmax(means >= means.max(axis=0) - _near(means), axis=0)
    counts = np.bincount(largest, minlength=len(values))
    return Peak(place, float(gains[place]), tuple((counts / counts.sum()).tolist()))


def first_largest(gains: ArrayLike) -> int:
    """The first place of the largest number; numbers that differ by rounding alone are equal."""
    values = np.asarray(gains, np.float64)
    return int(np.argmax(values >= values.max() - _near(values)))


def _near(values: Floats) -> float:
    return 1e-12 * float(np.abs(values).max())


class InnerPeak(NamedTuple):
    """Whether the gain is larger at an inner place than at both ends: by how much, and the p of either; `p` is both's.

    `above_first` and `above_last` are mean differences over seeds, nan where there is nothing to test.
    """

    above_first: float
    above_last: float
    p: float


def inner_peak(gains: ArrayLike) -> InnerPeak:
    """Test from `gains [place, seed]` that an inner place has a larger gain than both ends.

    For each seed the inner place is chosen by the other seeds' mean gains, so that choosing it does not favour it; the
    seed then gives its gain there minus that at either end. Sign-flip over seeds for each end, of all of a seed's
    differences at once and with the places chosen anew for every flip: two-sided as elsewhere, twice the part of flips
    that reach what was observed. p is the larger of both (intersection-union: Berger, "Multiparameter hypothesis
    testing and acceptance sampling", 1982) and covers seeds only. Exact for up to 14 seeds, beyond by Monte Carlo. With
    fewer than three places or two seeds nothing is tested: all nan.
    """
    values = np.asarray(gains, np.float64)
    places, seeds = values.shape
    if places < INNER or seeds < 2:
        return InnerPeak(math.nan, math.nan, math.nan)
    signs = _signs(seeds)
    found = [_above(values[1:-1] - values[end], signs) for end in (0, -1)]
    ps = [min(1.0, 2 * float(np.mean(each >= each[0] - 1e-9 * np.abs(values).max()))) for each in found]
    return InnerPeak(float(found[0][0]), float(found[1][0]), max(ps))


def _above(differences: Floats, signs: Floats) -> Floats:
    """By flip: the mean over seeds of `differences [place, seed]` at the place that the other seeds choose."""
    flipped = signs[:, None] * differences  # [flip, place, seed]
    others = flipped.sum(axis=2, keepdims=True) - flipped
    chosen = np.argmax(others >= others.max(axis=1, keepdims=True) - _near(differences), axis=1)
    return np.asarray(np.take_along_axis(flipped, chosen[:, None], axis=1).mean(axis=(1, 2)), np.float64)


def _signs(seeds: int) -> Floats:
    """Signs `[flip, seed]`, the observed ones first: all there are, or for many seeds a draw of them."""
    if seeds <= EXACT:
        bits = (np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1
        return np.asarray(1.0 - 2.0 * bits, np.float64)
    drawn = np.random.default_rng(list(b"inner_peak")).integers(0, 2, (FLIPS, seeds))
    return np.concatenate([np.ones((1, seeds)), 2.0 * drawn - 1])


def _stack(stack: ArrayLike) -> Floats:
    values = np.asarray(stack, np.float64)
    if values.ndim != 3 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"stack: expected finite numbers [place, seed, image], found shape {values.shape}")
    return values
