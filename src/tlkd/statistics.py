"""Tests, intervals and verdicts on paired differences; pure functions, no files.

Throughout, `differences [seed, image]` holds TL+KD minus TL, so that positive means TL+KD is the better, scaled such
that its mean is the gain: for accuracy it is correct minus correct, -1, 0 or 1. `level` is the level of a test, 0.05
say; an interval covers 1 - `level`. Monte Carlo draws come from generators seeded by a name, so every answer repeats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tlkd import power
from tlkd.power import Needed
from tlkd.spreads import Spread, half_width, spread

Floats = NDArray[np.float64]

FLIPS = 99_999  # Monte Carlo sign flips
RESAMPLES = 9_999  # bootstrap resamples
EXACT_SEEDS = 20  # sign flips are enumerated up to this many values, of seeds or of images
BOOTSTRAP_SEEDS = 10  # fewer seeds than this are too few to resample, and so are fewer images
SMALLEST_EXACT_P = 1e-10  # the Fourier sum in `_exact_flips` is good to about 1e-12
_LONGEST_SUM = 2**22  # of `_exact_flips`; beyond it the Monte Carlo test is the cheaper
_CELLS = 2**21  # numbers held at once while resampling: 16 MiB of float64
_WHOLE = 1e-7  # how far a sum may lie from a whole number of units
_TIE = 1e-9  # relative: equal sums added up in another order differ in their last bits


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _table(differences: ArrayLike) -> Floats:
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"differences: expected finite numbers [seed, image], found shape {table.shape}")
    return table


def _vector(values: ArrayLike) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise ValueError(f"expected finite numbers [n], n at least 1, found shape {vector.shape}")
    return vector


def _spread(values: Floats) -> float:
    """The standard deviation of a sample, 0 where its values differ by rounding alone, nan for a single one."""
    if values.size < 2:
        return math.nan
    spread = float(values.std(ddof=1))
    return spread if spread > 1e-12 * float(np.abs(values).max()) else 0.0


def sign_flip(differences: ArrayLike) -> float:
    """Two-sided sign-flip test that paired differences `[n]` are symmetric about zero: its p.

    Exact over all 2^n signs for n <= 20, so p lies in [2^(1-n), 1]; beyond, Monte Carlo with p = (b + 1) / (m + 1)
    (Phipson and Smyth, "Permutation p-values should never be zero", 2010). All differences zero: p = 1. Raises
    `ValueError` unless the differences are finite and at least one. Source: Fisher, "The design of experiments",
    1935, section 21.
    """
    values = _vector(differences)
    largest = np.abs(values).max()
    if largest == 0:
        return 1.0
    values = values / largest
    if values.size > EXACT_SEEDS:
        return _monte_carlo_flips(values, "sign_flip")
    sums = values[:1]  # the first sign may stay as it is: the other half of the signs mirrors this one
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(values.sum()) - _TIE * np.abs(values).sum()))


def image_permutation(differences: ArrayLike) -> float:
    """Two-sided permutation test over test images of each image's seed-averaged difference: its p.

    Under the null hypothesis the arms may be swapped image by image, which flips the sign of the image's average over
    `differences [seed, image]`. Where the sums over seeds are multiples of one unit, as for accuracy and for means of
    several accuracies, the permutation distribution is computed exactly, and a p below 1e-10 is given as 1e-10; other
    sums exactly for up to 20 images, and beyond by Monte Carlo over 99,999 flips with p = (b + 1) / (m + 1) (Phipson
    and Smyth, 2010). All differences zero: p = 1. Raises `ValueError` unless the differences are finite and at least
    one.
    """
    sums = _table(differences).sum(axis=0)
    for unit in (1.0, _smallest_step(sums)):
        whole = np.rint(sums / unit)
        if np.abs(sums / unit - whole).max() < _WHOLE and np.abs(whole).sum() <= _LONGEST_SUM:
            return _exact_flips(whole.astype(np.int64))
    if sums.size <= EXACT_SEEDS:
        return sign_flip(sums)
    return _monte_carlo_flips(sums / np.abs(sums).max(), "image_permutation")


def _smallest_step(sums: Floats) -> float:
    """The smallest distance between different sizes among the sums and 0; 1 where all are 0."""
    sizes = np.unique(np.abs(np.append(sums, 0.0)))
    steps = np.diff(sizes)
    return float(min(steps[steps > _WHOLE * sizes[-1]], default=1.0))


def _exact_flips(values: NDArray[np.int64]) -> float:
    """P(|sum of signed values| >= |sum observed|), from the characteristic function of the sum, product of cosines."""
    observed = abs(int(values.sum()))
    if observed == 0:
        return 1.0
    magnitudes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    total = int(magnitudes @ counts)
    length = 2 * total + 1  # sums from -total to total, each its own residue
    angles = 2 * np.pi / length * np.arange(total + 1)
    spectrum = np.ones(total + 1)
    for magnitude, count in zip(magnitudes, counts, strict=True):
        spectrum *= np.cos(magnitude * angles) ** int(count)
    chances = np.fft.irfft(spectrum, n=length)
    return float(np.clip(2 * chances[observed:total + 1].sum(), SMALLEST_EXACT_P, 1))


def _monte_carlo_flips(values: Floats, name: str) -> float:
    """(b + 1) / (m + 1) over random signs; values of one magnitude share one binomial draw, which is the same law."""
    magnitudes, counts = np.unique(np.round(np.abs(values[values != 0]), 12), return_counts=True)
    least = abs(float(values.sum())) - _TIE * float(np.abs(values).sum())
    random, beyond = _generator(name), 0
    step = max(1, _CELLS // len(magnitudes))
    for start in range(0, FLIPS, step):
        rows = min(step, FLIPS - start)
        positive = (_coins(random, rows, len(counts)) if counts.max() == 1
                    else random.binomial(counts, 0.5, size=(rows, len(counts))))
        beyond += int(np.sum(np.abs((2 * positive - counts) @ magnitudes) >= least))
    return (beyond + 1) / (FLIPS + 1)


def _coins(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.int8]:
    """Fair zeros and ones `[row, column]`: a bit each, ten times as fast as binomial draws of one trial."""
    width = (columns + 7) // 8
    drawn = np.frombuffer(random.bytes(rows * width), np.uint8).reshape(rows, width)
    return np.unpackbits(drawn, axis=1, count=columns).astype(np.int8)


@dataclass(frozen=True)
class Interval:
    """An interval for a gain: its ends (nan where there is none), which chance it covers, and how it was made."""

    low: float
    high: float
    covers: str
    method: str


def t_interval(values: ArrayLike, level: float, least_spread: float = 0.0) -> tuple[float, float]:
    """Student's interval for the mean of `values [n]`, in their unit; (nan, nan) for one value.

    `least_spread` is a lower bound for the standard deviation, for values that were rounded. Raises `ValueError`
    unless the values are finite and at least one.
    """
    vector = _vector(values)
    if vector.size < 2:
        return math.nan, math.nan
    from scipy.stats import t

    spread = max(_spread(vector), least_spread)
    half = float(t.ppf(1 - level / 2, vector.size - 1)) * spread / math.sqrt(vector.size)
    return float(vector.mean()) - half, float(vector.mean()) + half


def interval(differences: ArrayLike, level: float, given: str = "") -> Interval:
    """The interval for the mean of `differences [seed, image]`.

    Student's, of both chances at once (`spreads.half_width`), for any number of seeds and images from 2 on; for one
    image over seeds alone, for one seed none. `given` adds a condition to `covers`, "one teacher" say. Raises
    `ValueError` unless the differences are finite and at least one.
    """
    table = _table(differences)
    return _interval(table, spread(table), level, given)


def _interval(table: Floats, parts: Spread, level: float, given: str) -> Interval:
    condition, (seeds, images) = f", given {given}" if given else "", table.shape
    if seeds == 1:
        return Interval(math.nan, math.nan, "nothing", "one seed: no interval")
    mean, half = float(table.mean()), half_width(parts, seeds, images, level)
    if images == 1:
        return Interval(mean - half, mean + half, "seeds, on this one test set" + condition,
                        f"Student's t over {seeds} seeds")
    return Interval(mean - half, mean + half, "seeds and test images" + condition,
                    f"Student's t over {seeds} seeds and {images} images, two-way")


def intervals(contrasts: Mapping[str, ArrayLike], level: float, given: Mapping[str, str]) -> dict[str, Interval]:
    """The interval of each contrast (name -> differences `[seed, image]`)."""
    return {name: interval(table, level, given.get(name, "")) for name, table in contrasts.items()}


def resampled_by_name(tables: Mapping[str, Floats]) -> dict[str, Floats]:
    """Means `[resample]` of the tables (name -> `[seed, image]`) that have seeds and images enough for a bootstrap."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, table in tables.items():
        if min(table.shape) >= BOOTSTRAP_SEEDS:
            shapes.setdefault(table.shape, []).append(name)
    return {name: means for names in shapes.values()
            for name, means in zip(names, resampled([tables[name] for name in names]), strict=True)}


def resampled(tables: ArrayLike) -> Floats:
    """Means `[table, resample]` of tables `[table, seed, image]`, seeds and images drawn anew with replacement.

    The draws are the same for all tables, and each time. Source: Owen, "The pigeonhole bootstrap", 2007.
    """
    stack = np.asarray(tables, dtype=np.float64)
    count, seeds, images = stack.shape
    random, means = _generator("bootstrap"), np.empty((count, RESAMPLES))
    rows = stack.reshape(count * seeds, images)
    step = max(1, _CELLS // images)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
        drawn = np.empty((size, images))
        for each in drawn:  # one resample at a time stays in the cache
            each[:] = np.bincount(random.integers(0, images, images, dtype=np.int32), minlength=images)
        some = max(1, _CELLS // (seeds * size))  # tables at a time: hundreds of them would take gigabytes at once
        for first in range(0, count, some):
            last = min(first + some, count)
            by_seed = (rows[first * seeds:last * seeds] @ drawn.T).reshape(last - first, seeds, size)
            means[first:last, start:start + size] = np.einsum("tsr,rs->tr", by_seed, weights) / images
    return means


def holm(ps: ArrayLike) -> Floats:
    """Holm's adjusted p of a family `[contrast]`, in the order given ("A simple sequentially rejective multiple test
    procedure", 1979). Raises `ValueError` for a p outside [0, 1].
    """
    values = np.asarray(ps, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"ps: expected numbers in [0, 1], found {values.tolist()}")
    # Written out: statsmodels collects garbage at every call, which took a quarter of a report's time.
    order, adjusted = np.argsort(values, kind="stable"), np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.arange(values.size, 0, -1) * values[order])
    return np.minimum(adjusted, 1.0)


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """McNemar's exact two-sided p for one seed's two networks, `[image]` true where correct; descriptive only.

    It takes the networks as given, so it says nothing of other seeds. Through statsmodels. Raises `ValueError` where
    the shapes differ. Source: McNemar, 1947; Dietterich, "Approximate statistical tests", 1998.
    """
    first, second = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected two [image] of one length, found shapes {first.shape} and {second.shape}")
    from statsmodels.stats.contingency_tables import mcnemar as exact

    table = [[int(np.sum(first & second)), int(np.sum(first & ~second))],
             [int(np.sum(~first & second)), int(np.sum(~first & ~second))]]
    return min(1.0, float(exact(table, exact=True).pvalue))


def wilcoxon(a: ArrayLike, b: ArrayLike) -> float:
    """Wilcoxon's exact two-sided paired p for `a [n]` and `b [n]`; pairs without a difference are left out.

    Through SciPy where no two differences tie in size; with ties by flipping the signs of the mid-ranks, all ways (a p
    below 1e-10 is then given as 1e-10), as SciPy's table is for untied ranks only. All pairs equal: p = 1. Raises
    `ValueError` where the lengths differ. Source: Wilcoxon, "Individual comparisons by ranking methods", 1945.
    """
    from scipy import stats

    first, second = _vector(a), _vector(b)
    if first.shape != second.shape:
        raise ValueError(f"expected two [n] of one length, found {first.size} and {second.size}")
    differences = first - second
    differences = differences[differences != 0]
    if differences.size == 0:
        return 1.0
    if np.unique(np.abs(differences)).size < differences.size:
        halves = 2 * np.sign(differences) * stats.rankdata(np.abs(differences))  # whole numbers
        return image_permutation(halves[None])
    return float(stats.wilcoxon(differences, method="exact").pvalue)


def needed(differences: ArrayLike, smallest_gain: float, level: float, contrasts: int = 1) -> Needed:
    """How many seeds, and test images, would show a gain of `smallest_gain` at 80 % power (`power.needed`).

    From the observed spread of `differences [seed, image]`, never from the observed gain, at Holm's strictest level
    for a family of `contrasts`. Raises `ValueError` for a gain that is not positive.
    """
    table = _table(differences)
    seeds, images = table.shape
    return power.needed(spread(table), seeds, images, smallest_gain, level, contrasts)


@dataclass(frozen=True)
class Verdict:
    """What may be claimed of one contrast, with what stands behind it.

    `word` is supported, refuted or inconclusive. `gain`, `interval` and `smallest_gain` are in the metric's unit;
    `effect` is Cohen's d_z over seeds' mean differences (nan where they do not vary). `too_small`: supported, yet the
    interval lies wholly below `smallest_gain`. `harmful`: the interval lies wholly below zero. `needed` is there
    only for inconclusive.
    """

    word: str
    gain: float
    interval: Interval
    p_seed: float
    p_image: float
    p_seed_adjusted: float
    p_image_adjusted: float
    n_seeds: int
    n_images: int
    effect: float
    contrasts: int
    smallest_gain: float
    level: float
    too_small: bool
    harmful: bool
    needed: Needed | None


def verdicts(contrasts: Mapping[str, ArrayLike], smallest_gain: float, level: float,
             given: Mapping[str, str] | None = None) -> dict[str, Verdict]:
    """A verdict for each contrast (name -> differences `[seed, image]`) of one family on the primary endpoint.

    Supported: interval above 0 and both p, over seeds and over images, each Holm-adjusted over the family, below
    `level`. Refuted: not supported, and the interval wholly below `smallest_gain`. Otherwise inconclusive. The
    intervals are not adjusted for the family. `given` is by contrast what `interval` takes. Raises `ValueError` as
    `needed` and `interval` do.
    """
    tables = {name: _table(differences) for name, differences in contrasts.items()}
    by_seed = [sign_flip(table.mean(axis=1)) for table in tables.values()]
    by_image = [image_permutation(table) for table in tables.values()]
    tests = zip(by_seed, by_image, holm(by_seed), holm(by_image), strict=True)
    ends = intervals(tables, level, given or {})
    return {name: _verdict(table, ps, (smallest_gain, level, len(tables)), ends[name])
            for (name, table), ps in zip(tables.items(), tests, strict=True)}


def _verdict(table: Floats, ps: tuple[float, float, float, float], rule: tuple[float, float, int],
             ends: Interval) -> Verdict:
    smallest_gain, level, contrasts = rule
    # A nan end, as one seed has, fails every comparison: inconclusive.
    supported = ends.low > 0 and ps[2] < level and ps[3] < level
    below = ends.high < smallest_gain
    word = "supported" if supported else "refuted" if below else "inconclusive"
    spread = _spread(table.mean(axis=1))
    return Verdict(
        word=word, gain=float(table.mean()), interval=ends,
        p_seed=ps[0], p_image=ps[1], p_seed_adjusted=float(ps[2]), p_image_adjusted=float(ps[3]),
        n_seeds=table.shape[0], n_images=table.shape[1], effect=float(table.mean()) / spread if spread else math.nan,
        contrasts=contrasts, smallest_gain=smallest_gain, level=level,
        too_small=supported and below, harmful=ends.high < 0,
        needed=needed(table, smallest_gain, level, contrasts) if word == "inconclusive" else None)
