"""How often is a winner named where there is none, and a gain ruled out that is there?

    python proofs/calibration.py [--short] [--write] [--studies 2000] [--pool DIR] [--data ARCHIVE]

A/A studies go through the code that a report, and `tlkd compare`, go through: families, Holm, both tests, intervals,
words. The other studies are tables of differences, or curves, and go through its last step, the one that gives a
verdict. A cell whose lower 95 % limit exceeds .05 is drawn again, from fresh seeds, with five times as many studies;
exit code 1 where the new limit exceeds .05 too.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pool as pools
from common import limits, options, publish, table
from nulls import NULLS, Null, near_the_primary, rising, shares, steps, true_lead
from tlkd import comparison, contrasts, controls, convergence, difficulties, foreground, statistics
from tlkd.contrasts import Group
from tlkd.difficulties import NO_TREND
from tlkd.evidence import hurts
from tlkd.findings import Findings
from tlkd.reading import validate
from tlkd.specs import Study

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Random = np.random.Generator
Said = dict[tuple[str, str], bool]  # table and kind -> whether a study errs
Cell = tuple[str, str, str]  # table, kind, column

LEVEL = 0.05
IMAGES = 500  # of the pool's, drawn anew for each study
SMALLEST = 0.005
PLACES = ("clean", "easy", "middle", "hard")
SIZES = {100: 1, 500: 1, 2000: 5}  # images: one study for each so many
POOLED, BITES, NAIVE, REFUTED = "pool", "null", "naive", "refuted"
ANY = "any of these eight (described)"
AGAIN = 5  # times as many studies at a second look


@dataclass
class Rates:
    """Errors by cell: counts out of trials."""

    counts: dict[Cell, list[int]] = field(default_factory=dict)

    def add(self, cell: Cell, error: bool) -> None:
        """Count one study."""
        found = self.counts.setdefault(cell, [0, 0])
        found[0] += error
        found[1] += 1

    def table(self, name: str, first: str, columns: Sequence[str]) -> str:
        """A row a kind: rate and, in brackets, its lower 95 % limit, in per cent."""
        kinds = dict.fromkeys(kind for each, kind, _ in self.counts if each == name)
        return table([first, *columns], [[kind, *(self._cell((name, kind, column)) for column in columns)]
                                         for kind in kinds])

    def _cell(self, cell: Cell) -> str:
        if cell not in self.counts:
            return "–"
        hits, trials = self.counts[cell]
        return f"{100 * hits / trials:.1f} ({100 * limits(hits, trials)[0]:.1f})"

    @property
    def held(self) -> list[Cell]:
        """The cells that are held to the level; the others only describe."""
        return [cell for cell in self.counts if cell[0] != NAIVE and cell[1] != ANY]

    @property
    def over(self) -> list[Cell]:
        """Those of them whose lower limit exceeds it."""
        return [cell for cell in self.held if limits(*self.counts[cell])[0] > LEVEL]

    def words(self, cell: Cell) -> str:
        """A cell's count and its limit."""
        hits, trials = self.counts[cell]
        return f"{hits:,} of {trials:,}, lower limit {limits(hits, trials)[0]:.3f}"


@dataclass(frozen=True)
class Part:
    """Studies that give the same cells of one column: what one of them says, and how many there are."""

    column: str
    studies: int
    study: Callable[[Random], Said]

    def counted(self, seed: Sequence[int]) -> Rates:
        """Draw them all."""
        rates, random = Rates(), np.random.default_rng(seed)
        for _ in range(self.studies):
            for (name, kind), error in self.study(random).items():
                rates.add((name, kind, self.column), error)
        return rates


def study(smallest: float = SMALLEST) -> Study:
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
        "verdict": {"smallest_gain": smallest}}, "calibration")


def group(arm: contrasts.Arm, name: str, predicted: Ints, labels: Ints, curves: Floats) -> Group:
    """What the report would have read of these runs; metrics that are described only are left at 0."""
    seeds, classes = len(predicted), int(labels.max()) + 1
    confusions = np.array([np.bincount(classes * labels + row, minlength=classes**2).reshape(classes, classes)
                           for row in predicted])
    nothing = dict.fromkeys(contrasts.METRICS, np.zeros(seeds))
    return Group(arm=arm, condition=name, label=arm.name, seeds=tuple(range(seeds)), metrics=nothing,
                 correct=predicted == labels, confusions=confusions, per_class={}, reliability=None,  # type: ignore
                 curves=tuple(curves), epochs=(10,) * seeds, best_epochs=(10,) * seeds, seconds=(1.0,) * seeds)


def named(verdicts: Sequence[statistics.Verdict]) -> bool:
    """Whether any of a family is surely better, or surely worse."""
    return any(each.word == "supported" or (
        each.harmful and max(each.p_seed_adjusted, each.p_image_adjusted) < each.level) for each in verdicts)


def apart(speed: contrasts.Speed) -> bool:
    """Whether a lead is claimed, or the interval that is shown lies wholly on the other side with so small a p."""
    late = speed.primary is not None and speed.primary.high < 0 and speed.p_adjusted < LEVEL
    return speed.word == "supported" or late


# --- A/A: studies out of a pool of runs of one arm --------------------------------------------------------------------


def from_pool(pool: pools.Pool, spec: Study, count: int, random: Random) -> Said:
    """One study of arms that differ in name only, no run used twice, and a second one beside it for compare."""
    images = random.integers(0, pool.labels.size, IMAGES)
    labels, groups = pool.labels[images], []
    cells = [*((arm, name) for name in PLACES for arm in spec.arms), (spec.arms[0], "clean"), (spec.arms[1], "clean")]
    few = len(cells) * count > len(pool.predicted)
    for (arm, name), runs in zip(cells, random.choice(len(pool.predicted), (len(cells), count), replace=few),
                                 strict=True):
        groups.append(group(arm, name, pool.predicted[np.ix_(runs, images)], labels, pool.curves[runs]))
    near_the_primary(np.array(groups[0].curves))
    found = said(spec, groups[:-2], labels)
    found[ANY] = any(found.values())
    near_the_primary(np.array(groups[0].curves))
    found["compare: two studies' gains"] = compared(spec, labels, [groups[:2], groups[-2:]]) in (
        comparison.LARGER, comparison.SMALLER)
    return {(POOLED, kind): error for kind, error in found.items()}


def said(spec: Study, groups: list[Group], labels: Ints) -> dict[str, bool]:
    """By kind of verdict: whether any of its family names a winner, either way."""
    (one,) = contrasts.contrast_all(spec, groups, labels)
    hard = difficulties.examine(spec, groups, labels)
    assert hard is not None
    (course,) = hard.courses
    assert course.verdict is not None and course.trend is not None and course.peak is not None
    return {"1: accuracy": named([one.verdict]),
            "1: with the confusion": one.word == "supported" or hurts(one),
            "3: epochs": apart(one.speed),
            "4: average of a series": named([course.verdict]),
            "4: each condition (family of 3)": named([each.verdict for each in hard.gains]),
            "4: trend": course.trend.word != NO_TREND,
            "4: inner peak": course.peak.inner,
            "controls (family of 4)": named([each.difference for each in controls.examine(spec, groups, labels)])}


def compared(spec: Study, labels: Ints, studies: Sequence[Sequence[Group]]) -> str:
    """What `tlkd compare` says of two studies' gains, each study a group of TL and one of TL+KD."""
    members = tuple(comparison.Member(label, Path(label), Findings(
        study=spec, provenance={}, card={}, classes=(), test_counts=np.bincount(labels), groups=tuple(groups),
        contrasts=contrasts.contrast_all(spec, groups, labels), teachers=(), agreements=(), planned=0, failures={},
        teacher_failures={}, unfinished=(), stages=()), "one", np.arange(len(labels)).astype(np.str_), labels, None)
        for label, groups in zip(("first", "second"), studies, strict=True))
    entries = tuple(comparison._over_all([entry for each in members for entry in comparison._entries(each)]))
    ((pair,), _) = comparison._pairs(members, entries)
    return pair.word


def from_pool_with_a_gain(pool: pools.Pool, count: int, random: Random) -> Said:
    """The smallest gain is there: is it refuted?"""
    labels = pool.labels
    images = random.integers(0, labels.size, labels.size)
    runs = random.choice(len(pool.predicted), (2, count), replace=False)
    before, after = (pool.predicted[np.ix_(each, images)] for each in runs)
    after = pools.planted(after, labels[images], SMALLEST, 1 - pool.correct.mean(), random)
    differences = (after == labels[images]) * 1.0 - (before == labels[images])
    word = statistics.verdicts({"": differences}, SMALLEST, LEVEL)[""].word
    return {(REFUTED, f"the pool's runs, {images.size:,} images"): word == "refuted"}


def compared_with_a_gain(pool: pools.Pool, spec: Study, count: int, random: Random) -> Said:
    """The second study's gain is larger by the smallest that matters: is it called as good as equal?"""
    images = random.integers(0, pool.labels.size, pool.labels.size)
    labels, smallest = pool.labels[images], spec.verdict.smallest_gain
    runs = random.choice(len(pool.predicted), (4, count), replace=4 * count > len(pool.predicted))
    answers = [pool.predicted[np.ix_(each, images)] for each in runs]
    answers[3] = pools.planted(answers[3], labels, smallest, 1 - pool.correct.mean(), random)
    near_the_primary(pool.curves[runs[0]])
    groups = [group(spec.arms[number % 2], "clean", each, labels, pool.curves[runs[number]])
              for number, each in enumerate(answers)]
    word = compared(spec, labels, [groups[:2], groups[2:]])
    kind = f"compare: the pool's runs, {images.size:,} images, {100 * smallest:.0f} points, “{comparison.ALIKE}”"
    return {(REFUTED, kind): word == comparison.ALIKE}


# --- a null that bites: equal in the population, unequal on every sample of images ------------------------------------


def biting(null: Null, images: int, count: int, random: Random) -> Said:
    """A winner, and what a test over seeds alone would have said."""
    tables, kind = null.tables(count, images, random), f"{null.name}, {images:,} images"
    found = list(statistics.verdicts(tables, _least(null, images), LEVEL).values())
    return {(BITES, kind): named(found), (NAIVE, kind): any(_naive(each) for each in tables.values())}


def biting_with_a_gain(null: Null, images: int, count: int, random: Random) -> Said:
    """A gain that is there, refuted."""
    least = _least(null, images)
    moved = next(iter(null.tables(count, images, random, least).values()))
    word = statistics.verdicts({"": moved}, least, LEVEL)[""].word
    return {(REFUTED, f"{null.name}, {images:,} images"): word == "refuted"}


def _least(null: Null, images: int) -> float:
    return max(0.02, 8 / images) if null.easy < 9 else 0.005


def biting_compared(null: Null, spec: Study, images: int, gain: bool, count: int, random: Random) -> Said:
    """Two studies of two predictors each, through compare; with `gain`, the second's gain is the smallest larger."""
    answers, labels = null.answers(4, count, images, random), np.arange(images) % 2
    if gain:
        answers[3] |= null.lucky(1, images, spec.verdict.smallest_gain, random)[0]
    groups = [group(spec.arms[number % 2], "clean", np.where(each, labels, 1 - labels), labels, np.ones((count, 1)))
              for number, each in enumerate(answers)]
    contrasts.THRESHOLDS = (1.0,)  # type: ignore[assignment]
    word = compared(spec, labels, [groups[:2], groups[2:]])
    kind = f"compare: {null.name}, {images:,} images"
    if gain:
        return {(REFUTED, f"{kind}, “{comparison.ALIKE}”"): word == comparison.ALIKE}
    return {(BITES, kind): word in (comparison.LARGER, comparison.SMALLER)}


def foregrounds(spec: Study, images: int, gain: bool, count: int, random: Random) -> Said:
    """The same of foreground shares on few images, hypothesis 2's."""
    smallest, kind = spec.verdict.smallest_share, f"2: foreground shares, {images} images"
    differences = shares(count, images, random) + (smallest if gain else 0)
    key = spec.arms[1].name, "clean"
    verdict = foreground.judge(spec, {key: differences}, smallest)[key]
    return {(REFUTED, kind): verdict.word == "refuted"} if gain else {
        (BITES, kind): named([verdict]), (NAIVE, kind): _naive(differences)}


def _naive(differences: Floats) -> bool:
    """What many a paper does: Student's interval over seeds leaves 0 out."""
    low, high = statistics.t_interval(differences.mean(axis=1), LEVEL)
    return low > 0 or high < 0


# --- hypothesis 3: whole epochs, ties, runs that never arrive, a threshold that TL's own curves choose ----------------


def epochs(spec: Study, name: str, law: tuple[float, float] | None, lead: float, count: int, random: Random) -> Said:
    """A winner among curves of one law, or with a `lead` that is there whether it is ruled out.

    `law`: spread and share that never arrives of `steps`; None: curves that rise, of which TL's choose the threshold.
    There the lead that is there is the true one at the threshold chosen, and it is the smallest that matters.
    """
    curves = [steps(count, each, *law, random) if law else rising(count, each, random) for each in (0.0, lead)]
    near_the_primary(curves[0])
    groups = [group(arm, "clean", np.zeros((count, 2), int), np.arange(2), each)
              for arm, each in zip(spec.arms, curves, strict=False)]
    speed = contrasts._speeds(spec, contrasts.pairs_with_tl(spec, groups))["tl_kd", "clean"]
    kind = f"3: {name}"
    if not lead:
        return {(BITES, kind): apart(speed)}
    word = speed.word
    if law is None and speed.primary is not None:
        rule = spec.verdict.model_copy(update={"smallest_epochs": true_lead(lead, speed.primary.threshold)})
        word, _ = contrasts._judge(spec.model_copy(update={"verdict": rule}), speed.primary, speed.p_adjusted, 1)
    return {(REFUTED, kind): word == "refuted"}


# --- all of it --------------------------------------------------------------------------------------------------------


def planned(pool: pools.Pool, studies: int, seeds: Sequence[int]) -> list[Part]:
    """All parts; what draws many runs goes up to 10 seeds."""
    spec, tiny, wide = study(), studies // 5, {100: study(0.22), 500: study(0.1)}
    made: list[tuple[int, int, Callable[[Random], Said]]] = []
    for count in (each for each in seeds if each < 20):
        made += [(count, studies, partial(from_pool, pool, spec, count)),
                 (count, studies, partial(from_pool_with_a_gain, pool, count)),
                 (count, studies, partial(compared_with_a_gain, pool, study(0.02), count))]
        made += [(count, studies, partial(biting_compared, NULLS[1], wide[images], images, gain, count))
                 for images in wide for gain in (False, True)]
        for name, law in (("no ties", (3.0, 0.0)), ("most tie", (0.4, 0.0)), ("a third never arrive", (2.0, 0.33)),
                          ("rising curves, a threshold of TL's choice", None)):
            made.append((count, studies, partial(epochs, spec, name, law, 0.0, count)))
            if not (law and law[1]):  # a run that never arrives has no lead: what is planted is no epoch on average
                made.append((count, studies, partial(epochs, spec, name, law, 1.0 if law else 2.0, count)))
    for null in NULLS:
        made += [(count, tiny if images == 2000 else studies, partial(kind, null, images, count))
                 for images in SIZES for kind in (biting, biting_with_a_gain) for count in seeds]
    made += [(count, studies, partial(foregrounds, spec, images, gain, count))
             for images in (5, 10, 50) for gain in (False, True) for count in seeds]
    return [Part(f"{count} seeds", number, each) for count, number, each in made]


def look(crew: ProcessPoolExecutor, parts: Mapping[int, Part], seed: int, time: int) -> dict[int, Rates]:
    """The parts' rates; the `time`-th look has draws of its own."""
    waiting = {number: crew.submit(part.counted, (seed, time, number)) for number, part in parts.items()}
    return {number: each.result() for number, each in waiting.items()}


def main() -> int:
    """Draw, count, look again where a rate seems too high, write; 1 where it is."""
    parser = pools.options(options(__doc__))
    parser.add_argument("--studies", type=int, default=2000, help="of each kind, but a fifth as many on 2,000 images")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    studies, seeds = (25, (3, 6, 10)) if given.short else (given.studies, (2, 3, 6, 10, 20))
    pool = pools.read(given)
    parts = dict(enumerate(planned(pool, studies, seeds)))
    with ProcessPoolExecutor(given.jobs, initializer=_hasten) as crew:
        first = look(crew, parts, given.seed, 1)
        doubtful = {number: replace(part, studies=AGAIN * part.studies) for number, part in parts.items()
                    if first[number].over}
        second = look(crew, doubtful, given.seed, 2)
    rates = Rates({cell: count for each in first.values() for cell, count in each.counts.items()})
    again = Rates({cell: second[number].counts[cell] for number in second for cell in first[number].over})
    columns = [f"{count} seeds" for count in seeds]
    publish("calibration", "\n\n".join([*tables(rates, columns, studies, pool), twice(rates, again)]),
            "python proofs/calibration.py --write", given.write)
    for cell in again.over:
        print(f"{', '.join(cell)}: {rates.words(cell)}; again: {again.words(cell)} > {LEVEL}", file=sys.stderr)
    return 1 if again.over else 0


def tables(rates: Rates, columns: Sequence[str], studies: int, pool: pools.Pool) -> list[str]:
    """The tables, each below what it shows."""
    cells = f"in {studies:,} studies a cell (of the logistic laws' 2,000 images a fifth as many)"
    few = [column for column in columns if not column.startswith("20 ")]
    return [
        "Each cell: how many studies in a hundred err, and in brackets the lower 95 % limit of that rate. "
        f"The pool: {pool.size}.",
        f"*A winner is named, either way, in {studies:,} A/A studies from the pool, each on {IMAGES} of its images "
        "drawn anew. Each verdict is held to .05 by itself; a report shows all eight, and the row “any” says how often "
        "at least one of them errs: it is described, not held to .05:*", rates.table(POOLED, "verdict", few),
        f"*A winner is named between predictors that are equal in the population, {cells}, each on images of its own:*",
        rates.table(BITES, "what differs", columns),
        "*The same data, by Student's interval over seeds alone, as many a paper has it:*",
        rates.table(NAIVE, "what differs", columns),
        f"*A gain of just the smallest that matters is there, and is refuted, {cells}. Of compare: the second study's "
        f"gain is larger by just that, and both are called “{comparison.ALIKE}”:*",
        rates.table(REFUTED, "what differs", columns)]


def twice(rates: Rates, again: Rates) -> str:
    """What a second look said of the cells that seemed too high."""
    lines = [f"{', '.join(cell)}: {rates.words(cell)}; again: {again.words(cell)}" for cell in again.counts]
    head = f"Of {len(rates.held)} cells that are held to {LEVEL}, {len(lines)} had a lower limit above it"
    if not lines:
        return f"{head}: none was drawn again."
    return (f"{head}, as one in twenty of those whose rate is just {LEVEL} has by chance. They were drawn again, from "
            f"fresh seeds, with {AGAIN} times as many studies; {len(again.over)} had one above it again:\n\n"
            + "\n".join(f"- {line}" for line in lines))


def _hasten() -> None:
    """Leave out what no verdict rests on, and draw fewer flips where shares are tested by drawing them."""
    statistics.needed = lambda *_: statistics.Needed(None, None)  # type: ignore[assignment]
    statistics.RESAMPLES = 99  # a peak's shares of resamples, a control's part kept: described
    statistics.FLIPS, statistics.EXACT_SEEDS = 999, 14
    statistics.mcnemar = lambda *_: 1.0
    convergence._median = lambda *_: 0.0


if __name__ == "__main__":
    sys.exit(main())
