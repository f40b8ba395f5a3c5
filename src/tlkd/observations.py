"""The thesis's five observations on foreground and background: two networks' sums, compared image by image.

Every difference is the arm minus TL, or positive minus |negative| within one network. The tests are two-sided and
paired; they are shown one by one and not corrected for their number: none of them is the verdict.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tlkd import statistics

Floats = NDArray[np.float64]
Sums = Mapping[str, Floats]  # a quantity of `regions.SUMS` -> [image] or [seed, image]

EXACT_IMAGES = 200  # the signed ranks' own distribution is worked out up to this many; beyond, it is as good as normal
NORMAL = "normal approximation"
WALSH_IMAGES = 3000  # more differences than this are thinned to as many of their quantiles before they are paired
TWO_SCALES = ("Raw sums of two networks are on two scales: one whose outputs are larger has larger sums everywhere, "
              "wherever it looks. Shares, and the comparisons within one network, are free of that.")


@dataclass(frozen=True)
class Paired:
    """Two numbers of each of `n` images; a difference is `after` minus `before`.

    `before`, `after`: medians. `rises`, `falls`: how many differences lie above and below 0. `p`: two-sided paired
    Wilcoxon, by `method`. `shift`: the Hodges-Lehmann estimate, the median of the differences' pairwise means, and its
    interval `low` to `high` (nan where n is too small for one). `rank_biserial`: from -1, all fall, to 1, all rise.
    """

    n: int
    before: float
    after: float
    rises: int
    falls: int
    p: float
    method: str
    shift: float
    low: float
    high: float
    rank_biserial: float


@dataclass(frozen=True)
class Question:
    """What is compared: the thesis's number of the observation (None: not among its five), and the quantity.

    `within` names the one network whose positive is compared with its |negative| mass, `tl` or `arm`; otherwise the
    quantity is compared between the two. `two_scales`: whether `TWO_SCALES` applies.
    """

    number: int | None
    quantity: str
    within: str = ""

    @property
    def two_scales(self) -> bool:
        """Whether raw sums of two networks are compared."""
        return not self.within and self.quantity != "positive_share"

    def words(self, tl: str = "TL", arm: str = "TL+KD") -> str:
        """The comparison as readers see it."""
        if self.within:
            return f"foreground pos against |neg|, {tl if self.within == 'tl' else arm}"
        return f"{QUANTITIES[self.quantity]}, {tl} against {arm}"


QUANTITIES = {"fg_diff": "foreground diff (A, B)", "bg_diff": "background diff (C, D)", "bg_pos": "background pos",
              "fg_neg": "foreground |neg|", "fg_pos": "foreground pos",
              "positive_share": "foreground share of positives"}
QUESTIONS = (Question(1, "fg_pos", "tl"), Question(1, "fg_pos", "arm"), Question(2, "fg_diff"), Question(3, "bg_diff"),
             Question(4, "bg_pos"), Question(5, "fg_neg"), Question(None, "fg_pos"), Question(None, "positive_share"))
"""The five observations of section 6.2, the hypothesis as section 1.2 words it (foreground pos), and the share."""


@dataclass(frozen=True)
class Observation:
    """One question's answer: within each seed, and over seeds.

    `by_seed`: images within one seed's networks. `over_seeds`: images, each averaged over seeds first. `p_seed`:
    sign-flip over the seeds' mean differences.
    """

    question: Question
    by_seed: tuple[Paired, ...]
    over_seeds: Paired
    p_seed: float


def observe(tl: Sums, arm: Sums, level: float) -> tuple[Observation, ...]:
    """Answer all `QUESTIONS` from both arms' sums `[seed, image]`, seeds and images in one order."""
    found = []
    for question in QUESTIONS:
        before, after = sides(question, tl, arm)
        over = paired(before.mean(axis=0), after.mean(axis=0), level)
        finite = np.isfinite(after - before)
        means = [float(row[kept].mean()) for row, kept in zip(after - before, finite, strict=True) if kept.any()]
        found.append(Observation(question, tuple(paired(one, two, level)
                                                 for one, two in zip(before, after, strict=True)),
                                 over, statistics.sign_flip(means) if means else 1.0))
    return tuple(found)


def sides(question: Question, tl: Sums, arm: Sums) -> tuple[Floats, Floats]:
    """What a question compares: before and after, of the shape that the sums have."""
    if question.within:
        network = tl if question.within == "tl" else arm
        return np.abs(network["fg_neg"]), np.asarray(network["fg_pos"], np.float64)
    return _quantity(question.quantity, tl), _quantity(question.quantity, arm)


def _quantity(name: str, sums: Sums) -> Floats:
    if name == "positive_share":
        whole = np.asarray(sums["fg_pos"] + sums["bg_pos"], np.float64)
        return np.asarray(np.divide(sums["fg_pos"], whole, out=np.full(whole.shape, np.nan), where=whole > 0))
    values = np.asarray(sums[name], np.float64)
    return np.abs(values) if name == "fg_neg" else values


def paired(before: ArrayLike, after: ArrayLike, level: float) -> Paired:
    """Compare two numbers of each image, `[image]` both; images where either is nan are left out."""
    one, two = np.asarray(before, np.float64), np.asarray(after, np.float64)
    kept = np.isfinite(one) & np.isfinite(two)
    one, two = one[kept], two[kept]
    if one.size == 0:
        nan = math.nan
        return Paired(0, nan, nan, 0, 0, 1.0, "no image", nan, nan, nan, nan)
    differences = two - one
    p, method = signed_rank(differences)
    shift, low, high = hodges_lehmann(differences, level)
    return Paired(one.size, float(np.median(one)), float(np.median(two)), int((differences > 0).sum()),
                  int((differences < 0).sum()), p, method, shift, low, high, rank_biserial(differences))


def signed_rank(differences: Floats) -> tuple[float, str]:
    """Wilcoxon's two-sided signed-rank p of `[image]`, and how it was computed; zeros are left out.

    Exact up to 200 images, ties included; beyond, the normal approximation with its correction for ties.
    """
    values = differences[differences != 0]
    if values.size == 0:
        return 1.0, "no image differs"
    if values.size <= EXACT_IMAGES:
        return statistics.wilcoxon(values, np.zeros(values.size)), "exact"
    from scipy.stats import norm, rankdata

    ranks = rankdata(np.abs(values))  # their squares' sum over 4 is the variance, ties included
    z = abs(float((np.sign(values) * ranks).sum())) / math.sqrt(float((ranks**2).sum()))
    return 2 * float(norm.sf(z)), NORMAL


def hodges_lehmann(differences: ArrayLike, level: float) -> tuple[float, float, float]:
    """The median of the Walsh averages (x_i + x_j) / 2, i <= j, of `[image]`, and its interval's two ends.

    The interval inverts the signed-rank test at `level` (exact up to 200 images where no sizes tie, normal beyond), so
    that it lies off 0 where that test's p is at most the level; nan where no p is that small. Sources: Hodges and
    Lehmann, "Estimates of location based on rank tests", 1963; Tukey's interval as in Hollander and Wolfe, 3.3.
    """
    values = np.sort(np.asarray(differences, np.float64))
    n = values.size
    skipped, pairs = _outside(n, level), n * (n + 1) // 2
    if n > WALSH_IMAGES:
        values = np.quantile(values, (np.arange(WALSH_IMAGES) + 0.5) / WALSH_IMAGES)
    walsh = np.concatenate([(values[i] + values[i:]) / 2 for i in range(values.size)])
    skipped = skipped * walsh.size // pairs  # the same share of the averages, where they were thinned
    if skipped < 1:
        return float(np.median(walsh)), math.nan, math.nan
    walsh.partition([skipped - 1, walsh.size - skipped])
    return float(np.median(walsh)), float(walsh[skipped - 1]), float(walsh[walsh.size - skipped])


@cache
def _outside(n: int, level: float) -> int:
    """The largest k for which P(signed-rank sum <= k - 1) <= level / 2: the interval runs from the k-th average on."""
    if n > EXACT_IMAGES:
        from scipy.stats import norm

        return math.floor(n * (n + 1) / 4 - norm.ppf(1 - level / 2) * math.sqrt(n * (n + 1) * (2 * n + 1) / 24))
    chances = np.ones(1)
    for rank in range(1, n + 1):
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    return int(np.searchsorted(np.cumsum(chances), level / 2 * (1 + 1e-12), side="right"))


def rank_biserial(differences: ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation: (W+ - W-) / (W+ + W-) of the signed ranks; 0 where nothing differs.

    Source: Kerby, "The simple difference formula", 2014.
    """
    from scipy.stats import rankdata

    values = np.asarray(differences, np.float64)
    values = values[values != 0]
    if values.size == 0:
        return 0.0
    ranks = rankdata(np.abs(values))
    return float((np.sign(values) * ranks).sum() / ranks.sum())
