"""How often is a winner named where there is none, and a gain ruled out that is there?

    python proofs/calibration.py [--short] [--write] [--studies 2000] [--pool DIR] [--data ARCHIVE]

Every study goes through the code that a report goes through: families, Holm, both tests, intervals, words. Exit code 1
where the lower 95 % limit of a rate exceeds .05.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pool as pools
from common import limits, options, publish, table
from tlkd import contrasts, controls, convergence, difficulties, statistics
from tlkd.contrasts import Group
from tlkd.difficulties import NO_TREND
from tlkd.evidence import hurts
from tlkd.reading import validate
from tlkd.specs import Study

Floats = NDArray[np.float64]
Random = np.random.Generator

LEVEL = 0.05
IMAGES = 500  # of the pool's, drawn anew for each study
SMALLEST = 0.005
PLACES = ("clean", "easy", "middle", "hard")


@dataclass
class Rates:
    """Errors by kind and column: counts out of trials."""

    counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, kind: str, column: str, error: bool) -> None:
        """Count one study."""
        found = self.counts.setdefault((kind, column), [0, 0])
        found[0] += error
        found[1] += 1

    def table(self, first: str, columns: Sequence[str]) -> str:
        """A row a kind: rate and, in brackets, its lower 95 % limit, in per cent."""
        kinds = dict.fromkeys(kind for kind, _ in self.counts)
        return table([first, *columns], [[kind, *(self._cell(kind, column) for column in columns)] for kind in kinds])

    def _cell(self, kind: str, column: str) -> str:
        if (kind, column) not in self.counts:
            return "–"
        hits, trials = self.counts[kind, column]
        return f"{100 * hits / trials:.1f} ({100 * limits(hits, trials)[0]:.1f})"

    def broken(self, cells: int = 1) -> list[str]:
        """A line for each rate whose lower limit exceeds the level; of many cells, at a level shared among them."""
        return [f"{kind}, {column}: {hits} of {trials}, lower limit {limits(hits, trials)[0]:.3f} > {LEVEL}"
                for (kind, column), (hits, trials) in self.counts.items()
                if limits(hits, trials, LEVEL / cells)[0] > LEVEL]


Found = tuple[Rates, Rates, Rates]  # winners that are none, gains refuted that are there, a naive test's winners


# --- A/A: studies out of a pool of runs of one arm --------------------------------------------------------------------


def study() -> Study:
    """Two arms, a control, and a series of four places: every verdict that a study can give but hypothesis 2's."""
    teacher = {"model": "packaged:efficientnet_lite1", "input_size": 64, "trainable": "head"}
    fractions = (1.0, 0.5, 0.2, 0.1)
    return validate({
        "name": "calibration", "data": {"source": "mnist5k"},
        "student": {"model": "packaged:efficientnet_lite0", "input_size": 48, "trainable": "head"},
        "teachers": {"big": teacher},
        "arms": [{"name": "tl", "kind": "tl"},
                 {"name": "tl_kd", "kind": "tl_kd", "teacher": "big", "soft_weight": 0.1, "temperature": 10},
                 {"name": "smooth", "kind": "label_smoothing", "teacher": "big"}],
        "conditions": [{"name": name, "train_fraction": fraction}
                       for name, fraction in zip(PLACES, fractions, strict=True)],
        "training": {"epochs": 10}, "seeds": [0, 1],
        "verdict": {"smallest_gain": SMALLEST}}, "calibration")


def drawn(pool: pools.Pool, spec: Study, seeds: int, gain: float,
          random: Random) -> tuple[list[Group], NDArray[np.int64]]:
    """The groups of one study, no run used twice, and its images' labels; `gain` is planted in the arm tl_kd."""
    images = random.integers(0, pool.labels.size, IMAGES)
    labels, groups = pool.labels[images], []
    cells = [(arm, name) for name in PLACES for arm in spec.arms]
    chosen = random.choice(len(pool.predicted), (len(cells), seeds), replace=len(cells) * seeds > len(pool.predicted))
    for (arm, name), runs in zip(cells, chosen, strict=True):
        predicted = pool.predicted[np.ix_(runs, images)]
        if arm.name == "tl_kd" and gain:
            predicted = pools.planted(predicted, labels, gain, 1 - pool.correct.mean(), random)
        groups.append(group(arm, name, predicted, labels, pool.curves[runs]))
    return groups, labels


def group(arm: contrasts.Arm, name: str, predicted: NDArray[np.int64], labels: NDArray[np.int64],
          curves: Floats) -> Group:
    """What the report would have read of these runs; metrics that are described only are left at 0."""
    seeds, classes = len(predicted), int(labels.max()) + 1
    confusions = np.array([np.bincount(classes * labels + row, minlength=classes**2).reshape(classes, classes)
                           for row in predicted])
    nothing = dict.fromkeys(contrasts.METRICS, np.zeros(seeds))
    return Group(arm=arm, condition=name, label=arm.name, seeds=tuple(range(seeds)), metrics=nothing,
                 correct=predicted == labels, confusions=confusions, per_class={}, reliability=None,  # type: ignore
                 curves=tuple(curves), epochs=(10,) * seeds, best_epochs=(10,) * seeds, seconds=(1.0,) * seeds)


def said(spec: Study, groups: list[Group], labels: NDArray[np.int64]) -> dict[str, tuple[bool, bool, bool]]:
    """By kind of verdict: whether any of its family says better, any says worse, any rules the smallest gain out."""
    _near_the_primary(groups)
    (one,) = contrasts.contrast_all(spec, groups, labels)
    hard = difficulties.examine(spec, groups, labels)
    assert hard is not None
    (course,) = hard.courses
    assert course.verdict is not None and course.trend is not None and course.peak is not None
    found = {"1: accuracy": _words([one.verdict]),
             "1: with the confusion": (one.word == "supported", hurts(one), False),
             "3: epochs": (one.speed.word == "supported", False, False),
             "4: average of a series": _words([course.verdict]),
             "4: each condition (family of 3)": _words([each.verdict for each in hard.gains]),
             "4: trend": (course.trend.word != NO_TREND, False, False),
             "4: inner peak": (course.peak.inner, False, False),
             "controls (family of 4)": _words([each.difference for each in controls.examine(spec, groups, labels)])}
    return found


def _near_the_primary(groups: Sequence[Group]) -> None:
    """Leave out thresholds that only describe: around the primary one a few are enough to choose it from."""
    best = np.sort([float(curve.max()) for curve in groups[0].curves])[::-1]
    middle = int(100 * best[(len(best) + 1) // 2 - 1] + 1e-6)
    contrasts.THRESHOLDS = tuple(step / 100 for step in (middle - 1, middle, middle + 1))  # type: ignore[assignment]


def _words(verdicts: Sequence[statistics.Verdict]) -> tuple[bool, bool, bool]:
    return (any(each.word == "supported" for each in verdicts),
            any(each.harmful and max(each.p_seed_adjusted, each.p_image_adjusted) < each.level for each in verdicts),
            any(each.word == "refuted" for each in verdicts))


def from_pool(pool: pools.Pool, count: int, studies: int, random: Random) -> Found:
    """False winners where nothing differs, and false refutations where the smallest gain is there."""
    spec, winners, refuted, column = study(), Rates(), Rates(), f"{count} seeds"
    for _ in range(studies):
        for kind, (better, worse, _) in said(spec, *drawn(pool, spec, count, 0.0, random)).items():
            winners.add(kind, column, better or worse)
        labels = pool.labels
        images = random.integers(0, labels.size, labels.size)
        runs = random.choice(len(pool.predicted), (2, count), replace=False)
        before, after = (pool.predicted[np.ix_(each, images)] for each in runs)
        after = pools.planted(after, labels[images], SMALLEST, 1 - pool.correct.mean(), random)
        differences = (after == labels[images]) * 1.0 - (before == labels[images])
        word = statistics.verdicts({"": differences}, SMALLEST, LEVEL)[""].word
        refuted.add(f"the pool's runs, {images.size:,} images", column, word == "refuted")
    return winners, refuted, Rates()


# --- a null that bites: equal in the population, unequal on every sample of images ------------------------------------


@dataclass(frozen=True)
class Null:
    """Two predictors whose answers are right with chances of their own for each image, by a logistic law.

    `hardness` is what images share between the arms, `own` what each arm alone finds hard (sd on the logistic scale),
    `seed` the sd of a seed's own shift in an arm, `easy` the mean.
    """

    name: str
    hardness: float
    own: float
    seed: float
    easy: float
    contrasts: int = 1

    def chances(self, arms: int, seeds: int, images: int, random: Random) -> Floats:
        """Chances of being right `[arm, seed, image]`."""
        shape = self.hardness * random.normal(size=images) + self.own * random.normal(size=(arms, 1, images))
        return np.asarray(1 / (1 + np.exp(-(self.easy + shape + self.seed * random.normal(size=(arms, seeds, 1))))))

    def tables(self, seeds: int, images: int, random: Random, gain: float = 0.0) -> dict[str, Floats]:
        """Differences `[seed, image]` of each arm from the first; `gain` is planted in whole images of the others."""
        chances = self.chances(1 + self.contrasts, seeds, images, random)
        correct = random.random(chances.shape) < chances
        if gain:
            lucky = random.random((self.contrasts, 1, images)) < gain / (1 - self.accuracy)
            correct[1:] |= lucky
        return {str(number): row * 1.0 - correct[0] for number, row in enumerate(correct[1:])}

    @property
    def accuracy(self) -> float:
        """Accuracy in the population, by Gauss and Hermite's quadrature."""
        points, weights = np.polynomial.hermite_e.hermegauss(64)
        spread = np.sqrt(self.hardness**2 + self.own**2 + self.seed**2)
        return float(weights @ (1 / (1 + np.exp(-(self.easy + spread * points)))) / weights.sum())


NULLS = (
    Null("own images, alike in all seeds", 0.0, 8.0, 0.0, 2.0),
    Null("half shared hardness", 4.0, 4.0, 0.0, 2.0),
    Null("own images and own seeds", 2.0, 1.5, 0.15, 1.0),
    Null("seeds alone", 2.0, 0.0, 0.3, 1.0),
    Null("accuracy near 1", 6.0, 3.0, 0.2, 14.0),
    Null("a family of 3", 4.0, 4.0, 0.1, 2.0, contrasts=3),
)
SIZES = {100: 1, 500: 1, 2000: 5}  # images: one study for each so many


def shares(seeds: int, images: int, random: Random) -> Floats:
    """Differences of foreground shares `[seed, image]`, symmetric about 0: an image's own, a seed's own, and a rest."""
    middle = random.normal(0, 1, images)
    sides = [middle + random.normal(0, 0.4, images) + random.normal(0, 0.1, (seeds, 1))
             + random.normal(0, 0.2, (seeds, images)) for _ in range(2)]
    return np.asarray(np.subtract(*(1 / (1 + np.exp(-side)) for side in sides)))


def biting(null: Null, seeds: Sequence[int], studies: int, random: Random) -> Found:
    """False winners; false refutations of a gain that is there; and what a test over seeds alone would have said."""
    winners, refuted, naive = Rates(), Rates(), Rates()
    for images, each_of in SIZES.items():
        kind, least = f"{null.name}, {images:,} images", max(0.02, 8 / images) if null.easy < 9 else 0.005
        for count in seeds:
            column = f"{count} seeds"
            for _ in range(studies // each_of):
                tables = null.tables(count, images, random)
                found = list(statistics.verdicts(tables, least, LEVEL).values())
                winners.add(kind, column, any(_words(found)[:2]))
                naive.add(kind, column, any(_naive(each) for each in tables.values()))
                moved = null.tables(count, images, random, least)
                first = statistics.verdicts({"": next(iter(moved.values()))}, least, LEVEL)[""]
                refuted.add(kind, column, first.word == "refuted")
    return winners, refuted, naive


def foregrounds(seeds: Sequence[int], studies: int, random: Random) -> Found:
    """The same of foreground shares on few images, hypothesis 2's."""
    winners, refuted, naive = Rates(), Rates(), Rates()
    for images in (5, 10, 50):
        for count in seeds:
            for _ in range(studies):
                differences = shares(count, images, random)
                found = [statistics.verdicts({"": differences}, 0.05, LEVEL)[""],
                         statistics.verdicts({"": differences + 0.05}, 0.05, LEVEL)[""]]
                kind, column = f"2: foreground shares, {images} images", f"{count} seeds"
                winners.add(kind, column, any(_words(found[:1])[:2]))
                naive.add(kind, column, _naive(differences))
                refuted.add(kind, column, found[1].word == "refuted")
    return winners, refuted, naive


def _naive(differences: Floats) -> bool:
    """What many a paper does: Student's interval over seeds leaves 0 out."""
    low, high = statistics.t_interval(differences.mean(axis=1), LEVEL)
    return low > 0 or high < 0


# --- hypothesis 3, whole epochs, ties and runs that never arrive ------------------------------------------------------


def epochs(seeds: Sequence[int], studies: int, random: Random) -> Found:
    """False winners among curves of one law, and a lead of one epoch that is there and is ruled out."""
    spec, winners, refuted = study(), Rates(), Rates()
    arms = [arm for arm in spec.arms if arm.name != "smooth"]
    for name, spread, late in (("no ties", 3.0, 0.0), ("most tie", 0.4, 0.0), ("a third never arrive", 2.0, 0.33)):
        for count in seeds:
            for lead, rates in ((0.0, winners), (1.0, refuted)):
                if lead and late:  # a run that never arrives has no lead: what is planted is no epoch on average
                    continue
                for _ in range(studies):
                    groups = []
                    for arm in arms:
                        arrive = np.rint(14 - lead * (arm.name == "tl_kd") + spread * random.normal(size=count))
                        arrive[random.random(count) < late] = 99
                        curves = np.where(np.arange(1, 31) >= arrive[:, None], 0.805, 0.5)
                        groups.append(group(arm, "clean", np.zeros((count, 2), int), np.arange(2), curves))
                    pairs = contrasts.pairs_with_tl(spec, groups)
                    contrasts.THRESHOLDS = (0.8, 0.81)  # type: ignore[assignment]
                    word = contrasts._speeds(spec, pairs)["tl_kd", "clean"].word
                    rates.add(f"3: {name}", f"{count} seeds", word == ("refuted" if lead else "supported"))
    return winners, refuted, Rates()


def main() -> int:
    """Draw, count, write; 1 where a rate is too high."""
    parser = pools.options(options(__doc__))
    parser.add_argument("--studies", type=int, default=2000, help="of each kind, but a fifth as many on 2,000 images")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    studies, seeds = (24, (3, 6, 10)) if given.short else (given.studies, (2, 3, 6, 10, 20))
    few, pool = [count for count in seeds if count < 20], pools.read(given)
    tasks = [*(("pool", pool, count, studies) for count in few),
             *(("null", null, seeds, studies) for null in NULLS), ("shares", seeds, studies), ("epochs", few, studies)]
    with ProcessPoolExecutor(given.jobs, initializer=_hasten) as crew:
        waiting = [crew.submit(work, given.seed + number, *task) for number, task in enumerate(tasks)]
        done = [each.result() for each in waiting]
    pooled, bites = _merge(done[:len(few)]), _merge(done[len(few):])
    columns = [f"{count} seeds" for count in seeds]
    refuted = Rates(pooled[1].counts | bites[1].counts)
    text = "\n\n".join([
        "Each cell: how many studies in a hundred err, and in brackets the lower 95 % limit of that rate. "
        f"The pool: {pool.size}.",
        f"*A winner is named, either way, in {studies:,} A/A studies from the pool, each "
        f"on {IMAGES} of its images drawn anew:*", pooled[0].table("verdict", columns[:len(few)]),
        f"*A winner is named between predictors that are equal in the population, in {studies:,} studies a cell, each "
        "on images of its own (a fifth as many of 2,000 images):*", bites[0].table("what differs", columns),
        "*The same data, by Student's interval over seeds alone, as many a paper has it:*",
        bites[2].table("what differs", columns),
        "*A gain of just the smallest that matters is there, and is refuted:*",
        refuted.table("what differs", columns)])
    # Of many cells whose rate is .05 one in twenty has a limit above it: a cell fails by a limit that allows for that.
    cells = sum(len(rates.counts) for rates in (pooled[0], bites[0], refuted))
    over = [line for rates in (pooled[0], bites[0], refuted) for line in rates.broken()]
    text += (f"\n\nOf {cells} cells of the rule, {len(over)} have a lower limit above {LEVEL}"
             + (f" (of those whose rate is {LEVEL}, one in twenty has by chance): {'; '.join(over)}." if over else "."))
    publish("calibration", text, "python proofs/calibration.py --write", given.write)
    broken = [line for rates in (pooled[0], bites[0], refuted) for line in rates.broken(cells)]
    print("\n".join(broken), file=sys.stderr)
    return 1 if broken else 0


def work(seed: int, kind: str, *details: Any) -> Found:
    """One part, in a process of its own, with draws of its own."""
    make = {"pool": from_pool, "null": biting, "shares": foregrounds, "epochs": epochs}[kind]
    return make(*details, np.random.default_rng(seed))  # type: ignore[operator,no-any-return]


def _hasten() -> None:
    """Leave out what no verdict rests on, and draw fewer flips where shares are tested by drawing them."""
    statistics.needed = lambda *_: statistics.Needed(None, None)  # type: ignore[assignment]
    statistics.RESAMPLES = 99  # a peak's shares of resamples, a control's part kept: described
    statistics.FLIPS, statistics.EXACT_SEEDS = 999, 14
    statistics.mcnemar = lambda *_: 1.0
    convergence._median = lambda *_: 0.0


def _merge(found: Sequence[Found]) -> Found:
    """The parts' rates, kind by kind."""
    one, two, three = (Rates({key: count for each in found for key, count in each[number].counts.items()})
                       for number in range(3))
    return one, two, three


if __name__ == "__main__":
    sys.exit(main())
