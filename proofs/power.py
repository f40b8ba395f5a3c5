"""How often is a gain found that is there, and does a report name the right number of seeds and images?

    python proofs/power.py [--short] [--write] [--studies 200] [--pool DIR] [--data ARCHIVE]

Gains are planted in runs out of a pool of one arm. Exit code 1 where what `needed` names gives a power that is surely
below .7 or above .9, or where 4 points are surely found in fewer than 7 of 10 studies of 10 seeds and 500 images. By
`--short` one such number is tried, named by a few studies.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import pool as pools
from common import limits, options, points, publish, table
from tlkd import statistics

Floats = NDArray[np.float64]
Random = np.random.Generator

LEVEL = 0.05
GAINS = (0.005, 0.01, 0.02, 0.04)
MOST_CELLS = 200_000  # of a study whose power is tried
CASES = ((10, 1_000, 0.01, 1), (10, 1_000, 0.02, 1), (6, 2_000, 0.01, 1), (10, 2_000, 0.01, 3))
LEAST, MOST = 0.7, 0.9  # what a number that is named for a power of .8 may give: it rests on one small study's spread


def study(pool: pools.Pool, seeds: int, images: int, gain: float, random: Random) -> Floats:
    """Differences `[seed, image]` of a study of the pool's runs and images, `gain` planted in the one arm."""
    chosen = random.integers(0, pool.labels.size, images)
    runs = random.choice(len(pool.predicted), (2, seeds), replace=2 * seeds > len(pool.predicted))
    before, after = (pool.predicted[np.ix_(each, chosen)] for each in runs)
    labels = pool.labels[chosen]
    after = pools.planted(after, labels, gain, 1 - pool.correct.mean(), random) if gain else after
    return np.asarray((after == labels) * 1.0 - (before == labels))


def found(pool: pools.Pool, seeds: int, images: int, gain: float, studies: int, random: Random) -> int:
    """In how many studies a planted gain is supported."""
    return sum(statistics.verdicts({"": study(pool, seeds, images, gain, random)}, gain, LEVEL)[""].word == "supported"
               for _ in range(studies))


def powers(pool: pools.Pool, seeds: tuple[int, ...], sizes: tuple[int, ...], studies: int,
           random: Random) -> tuple[str, list[str]]:
    """The table of powers, a row a gain and a number of test images; and whether a large gain is missed."""
    rows, broken = [], []
    for images in sizes:
        for gain in GAINS:
            hits = dict(zip(seeds, (found(pool, count, images, gain, studies, random) for count in seeds), strict=True))
            rows.append([f"{images:,}", points(gain), *(f"{100 * each / studies:.0f}" for each in hits.values())])
            if gain == GAINS[-1] and limits(hits[10], studies)[1] < LEAST:
                broken.append(f"{points(gain)} points, 10 seeds, {images} images: found in {hits[10]} of {studies}")
    return table(["test images", "planted gain, points", *(f"{count} seeds" for count in seeds)], rows), broken


def named(pool: pools.Pool, cases: Sequence[tuple[int, int, float, int]], reports: int, studies: int,
          random: Random) -> tuple[str, list[str]]:
    """What reports of small studies name as needed, and the power that the middle one of these has.

    A case is the seeds, test images, gain and contrasts of a study.
    """
    rows, broken = [], []
    for seeds, images, gain, contrasts in cases:
        # The gain is there in these studies too: one that falls on some images alone spreads them, which a report sees.
        said = [_needed(study(pool, seeds, images, gain, random), gain, LEVEL, contrasts) for _ in range(reports)]
        for what, numbers in (("seeds", [each.seeds for each in said]), ("images", [each.images for each in said])):
            known = sorted(math.inf if number is None else number for number in numbers)
            if math.isinf(known[len(known) // 2]):
                rows.append([f"{seeds}, {images:,}", points(gain), str(contrasts), f"{what}: no number is enough", "–"])
                continue
            middle, low, high = known[len(known) // 2], known[len(known) // 10], known[-1 - len(known) // 10]
            middle = int(middle)
            least = (middle, images) if what == "seeds" else (seeds, middle)
            cell = f"{middle:,} {what} ({low:,.0f} to {f'{high:,.0f}' if math.isfinite(high) else 'none is enough'})"
            if least[0] * least[1] > MOST_CELLS or 2 * least[0] > len(pool.predicted):
                rows.append([f"{seeds}, {images:,}", points(gain), str(contrasts), cell, "not tried"])
                continue
            hits = _in_family(pool, *least, gain, contrasts, studies, random)
            bounds = limits(hits, studies)
            rows.append([f"{seeds}, {images:,}", points(gain), str(contrasts), cell,
                         f"{hits / studies:.2f} ({bounds[0]:.2f} to {bounds[1]:.2f})"])
            if bounds[1] < LEAST or bounds[0] > MOST:
                broken.append(f"{cell} for {points(gain)} points: power {hits / studies:.2f}, "
                              f"allowed: {LEAST} to {MOST}")
    return table(["study: seeds, images", "gain, points", "family",
                  f"named: the middle of {reports} studies (8 of 10)",
                  "power there (90 % limits)"], rows), broken


def _in_family(pool: pools.Pool, seeds: int, images: int, gain: float, contrasts: int, studies: int,
               random: Random) -> int:
    """The same as `found`, at Holm's strictest level: the p of the others of the family are 1."""
    hits = 0
    for _ in range(studies):
        one = statistics.verdicts({"": study(pool, seeds, images, gain, random)}, gain, LEVEL)[""]
        hits += one.interval.low > 0 and contrasts * max(one.p_seed, one.p_image) < LEVEL
    return hits


_needed = statistics.needed


def main() -> int:
    """Plant, count, write."""
    parser = pools.options(options(__doc__))
    parser.add_argument("--studies", type=int, default=200)
    given = parser.parse_args()
    studies = 30 if given.short else given.studies
    random, pool = np.random.default_rng(given.seed), pools.read(given)
    statistics.needed = lambda *_: statistics.Needed(None, None)  # type: ignore[assignment]
    statistics.FLIPS, statistics.EXACT_SEEDS = 999, 14  # seeds beyond 14 by fewer draws
    seeds, sizes = ((6, 10), (500,)) if given.short else ((3, 6, 10, 20), (500, 2_000))
    spread = float(np.std(pool.correct.mean(axis=1), ddof=1))
    reports, broken = named(pool, CASES[1:2] if given.short else CASES, 11 if given.short else 25, studies, random)
    found_at, missed = powers(pool, seeds, sizes, studies, random)
    text = (f"In how many of {studies:,} studies, in per cent, a planted gain is *supported* (with 3 seeds p "
            f"cannot fall below .25). The pool: {pool.size}, accuracy "
            f"{pool.correct.mean():.3f}, sd over seeds {points(spread)} points.\n\n"
            + found_at + "\n\n*What reports name as needed, and what it gives:*\n\n" + reports)
    publish("power", text, f"python proofs/power.py --studies {studies} --write", given.write)
    print("\n".join(broken + missed), file=sys.stderr)
    return 1 if broken or missed else 0


if __name__ == "__main__":
    sys.exit(main())
