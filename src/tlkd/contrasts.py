"""Each arm against TL: verdict, confusion and convergence, from the finished runs of both; pure functions, no files.

Fractions lie in [0, 1], epochs count from 1, and every difference is an arm minus TL, so that positive means that the
arm is the better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlkd import convergence, evaluation, statistics
from tlkd.conditions import Condition
from tlkd.convergence import Convergence
from tlkd.evaluation import Reliability
from tlkd.series import base_conditions
from tlkd.specs import Arm, Study

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "log_loss", "ece")
NOT_EXAMINED = "not examined"
LATER_START = "TL+KD starts from the finished TL student, so its epochs are not comparable"
SAME_AS_TL = "equal to TL by construction"
THRESHOLDS = tuple(step / 100 for step in range(5, 101))


@dataclass(frozen=True)
class Group:
    """The finished runs of one arm under one condition; arrays `[seed, ...]` in the order of `seeds`."""

    arm: Arm
    condition: str
    label: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Floats]  # name -> [seed]
    correct: NDArray[np.bool_]  # [seed, image]
    confusions: Ints  # [seed, class true, class predicted]
    per_class: Mapping[str, Floats]  # precision, recall, f1 -> [seed, class]
    reliability: Reliability  # of all seeds' predictions together
    curves: tuple[Floats, ...]  # a seed: accuracy [epoch] on the split that is looked at after each epoch
    epochs: tuple[int, ...]
    best_epochs: tuple[int, ...]
    seconds: tuple[float, ...]

    @cached_property
    def common_curves(self) -> Floats:
        """The curves `[seed, epoch]` over the epochs that every run has."""
        shortest = min(len(curve) for curve in self.curves)
        return np.array([curve[:shortest] for curve in self.curves])

    def value(self, metric: str, seed: int) -> float:
        """A metric of the run with this seed."""
        return float(self.metrics[metric][self.seeds.index(seed)])

    @property
    def mean_sd(self) -> float:
        """The sd over seeds at each epoch, averaged over epochs; nan for one seed."""
        return float(self.common_curves.std(axis=0, ddof=1).mean()) if len(self.seeds) > 1 else float("nan")


@dataclass(frozen=True)
class Confusions:
    """Both arms' confusion `[class true, class predicted]`, mean counts over the seeds that both finished.

    `rows` is table 6.2, a row a class in the data's order; `pooled` and `mean` are its error decrement over all
    errors and averaged over classes. `order`: classes by the arm's recall, best first.
    """

    tl: Floats
    arm: Floats
    rows: tuple[dict[str, Any], ...]
    pooled: float
    mean: float
    order: tuple[int, ...]
    gaining: int
    losing: int
    fewer_errors: float

    @property
    def agrees(self) -> bool:
        """Whether more classes gain than lose true positives and the mass off the diagonal falls."""
        return self.gaining > self.losing and self.fewer_errors > 0


@dataclass(frozen=True)
class Speed:
    """How early both arms reach the accuracy thresholds; the verdict is on the primary one.

    Where the arms' epochs are not comparable, `word` is not examined, `why` says so and there are no thresholds.
    """

    thresholds: tuple[Convergence, ...]
    primary: Convergence | None  # the highest threshold that at least half of TL's runs reach
    word: str
    p_adjusted: float
    contrasts: int
    crossings: tuple[int, ...]
    seeds_needed: int | None
    horizon: int  # the epochs that all runs of both arms trained
    why: str = ""


@dataclass(frozen=True)
class Contrast:
    """One arm against TL under one condition, over the seeds that both finished."""

    arm: Arm
    condition: str
    label: str
    tl_label: str
    seeds: tuple[int, ...]
    verdict: statistics.Verdict
    gains: Floats  # [seed], of the primary endpoint
    improvements: Mapping[str, float]
    mcnemar: tuple[float, ...]
    confusions: Confusions
    speed: Speed
    same_as_tl: bool  # by construction: it is left out of the family, and no verdict is given

    @property
    def word(self) -> str:
        """Hypothesis 1's verdict: metrics and confusion must agree (attribution is not examined)."""
        if self.same_as_tl:
            return NOT_EXAMINED
        if self.verdict.word == "supported" and not self.confusions.agrees:
            return "inconclusive"
        return self.verdict.word


def tl_arm(study: Study) -> Arm | None:
    """The study's `tl` arm, the first of them, if it has one."""
    return next((arm for arm in study.arms if arm.kind == "tl"), None)


KIND_LABELS = {"tl": "TL", "tl_kd": "TL+KD", "label_smoothing": "label smoothing", "tl_kd_shuffled": "TL+KD shuffled",
               "self": "self-distillation"}


def arm_label(study: Study, arm: Arm) -> str:
    """What readers call an arm: TL, TL+KD or the control it is, with its name only where several are of one kind."""
    kind = KIND_LABELS.get(arm.kind, arm.kind)
    return kind if sum(other.kind == arm.kind for other in study.arms) == 1 else f"{kind} ({arm.name})"


def same_as_tl(study: Study, arm: Arm) -> bool:
    """Whether an arm trains with TL's own loss from TL's own start, and so gives TL's own students."""
    return arm.kind == "tl_kd" and arm.soft_weight == 0 and study.student.start != "tl"


def contrast_all(study: Study, groups: Sequence[Group], labels: Ints) -> tuple[Contrast, ...]:
    """Every `tl_kd` arm against the study's `tl` arm under each base condition that both have finished runs of.

    `labels` is `[image]`, the test split's; one family of tests over all of them but those that are equal to TL by
    construction. None where there is no `tl` arm. Difficulties and control arms are contrasted elsewhere.
    """
    base = base_conditions(study)
    pairs = [(tl, group) for tl, group in pairs_with_tl(study, groups)
             if group.arm.kind == "tl_kd" and group.condition in base]
    weights = image_weights(labels, study.verdict.metric)
    tables = {(group.arm.name, group.condition): differences(tl, group, weights) for tl, group in pairs}
    verdicts = judge(study, tables, study.verdict.smallest_gain)
    speeds = _speeds(study, pairs)
    return tuple(_contrast(tl, group, verdicts[key], tables[key], speeds[key], same_as_tl(study, group.arm))
                 for (tl, group), key in zip(pairs, tables, strict=True))


def pairs_with_tl(study: Study, groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """The study's `tl` arm beside every arm of another kind, under each condition that both finished a seed of."""
    baseline = tl_arm(study)
    tls = {group.condition: group for group in groups if baseline is not None and group.arm.name == baseline.name}
    return [(tls[group.condition], group) for group in groups
            if group.arm.kind != "tl" and group.condition in tls and both_seeds(tls[group.condition], group)]


def both_seeds(*groups: Group) -> list[int]:
    """The seeds that all groups finished, in the last one's order."""
    return [seed for seed in groups[-1].seeds if all(seed in group.seeds for group in groups)]


def _rows(group: Group, seeds: Sequence[int]) -> list[int]:
    return [group.seeds.index(seed) for seed in seeds]


def image_weights(labels: Ints, metric: str) -> Floats:
    """Weights `[image]` of mean 1, under which the mean of correctness is the metric."""
    if metric == "accuracy":
        return np.ones(len(labels))
    counts = np.bincount(labels)
    return np.asarray(len(labels) / (np.count_nonzero(counts) * counts[labels]), np.float64)


def differences(tl: Group, group: Group, weights: Floats, seeds: Sequence[int] | None = None) -> Floats:
    """Correctness of the arm minus TL's, `[seed, image]`, weighted by image; by default over all seeds of both."""
    seeds = both_seeds(tl, group) if seeds is None else seeds
    both = group.correct[_rows(group, seeds)].astype(np.float64) - tl.correct[_rows(tl, seeds)]
    return np.asarray(both * weights, np.float64)


def judge(study: Study, tables: Mapping[tuple[str, str], Floats],
          smallest: float) -> dict[tuple[str, str], statistics.Verdict]:
    """A verdict for each (arm, condition) on its differences `[seed, image]`; `smallest` is the gain that matters.

    One family over arm x condition, but for the arms that are equal to TL by construction.
    """
    arms = {arm.name: arm for arm in study.arms}
    conditions = {condition.name: condition for condition in study.conditions}
    given = {"/".join(key): given_teacher(study, arms[key[0]], [conditions[key[1]]]) for key in tables}
    same = {arm.name for arm in study.arms if same_as_tl(study, arm)}
    found = {}
    for family in ([key for key in tables if key[0] not in same], [key for key in tables if key[0] in same]):
        judged = statistics.verdicts({"/".join(key): tables[key] for key in family}, smallest, study.verdict.level,
                                     given)
        found.update({key: judged["/".join(key)] for key in family})
    return found


def given_teacher(study: Study, arm: Arm, conditions: Sequence[Condition]) -> str:
    """What an arm's results under these conditions take as given: one teacher, unless one is fitted for each seed."""
    if arm.teacher is None:
        return ""
    teacher = study.teachers[arm.teacher]
    own = [teacher.per_seed or (teacher.fit and teacher.trained_on == "condition" and not each.plain)
           for each in conditions]
    return "" if all(own) else "one teacher"


def _contrast(tl: Group, group: Group, verdict: statistics.Verdict, table: Floats, speed: Speed,
              same: bool) -> Contrast:
    seeds = both_seeds(tl, group)
    ours, theirs = _rows(group, seeds), _rows(tl, seeds)
    return Contrast(
        arm=group.arm, condition=group.condition, label=group.label, tl_label=tl.label, seeds=tuple(seeds),
        verdict=verdict, gains=table.mean(axis=1),
        improvements={name: float(group.metrics[name][ours].mean() - tl.metrics[name][theirs].mean())
                      for name in METRICS},
        mcnemar=tuple(statistics.mcnemar(tl.correct[their], group.correct[our])
                      for our, their in zip(ours, theirs, strict=True)),
        confusions=_confusions(tl.confusions[theirs], group.confusions[ours]), speed=speed, same_as_tl=same)


def _confusions(tl: Ints, arm: Ints) -> Confusions:
    """Compare two stacks of confusion matrices, `[seed, class true, class predicted]`."""
    seeds, (before, after) = len(tl), (tl.sum(axis=0), arm.sum(axis=0))
    support = before.sum(axis=1)
    rows = [{**row, **{name: row[name] / seeds for name in ("tl_true_positives", "tl_kd_true_positives", "difference")},
             "support": int(support[row["class"]]) // seeds}
            for row in evaluation.error_decrement(before, after)]
    difference = np.diag(after) - np.diag(before)
    errors = int(support.sum() - np.diag(before).sum())
    shares = np.array([row["error_decrement"] for row in rows])
    recall = np.diag(after) / np.maximum(support, 1)
    return Confusions(
        tl=before / seeds, arm=after / seeds, rows=tuple(rows),
        pooled=float(difference.sum() / errors) if errors else float("nan"),
        mean=float(np.nanmean(shares)) if np.isfinite(shares).any() else float("nan"),
        order=tuple(int(number) for number in np.argsort(-recall, kind="stable")),
        gaining=int((difference > 0).sum()), losing=int((difference < 0).sum()),
        fewer_errors=float(difference.sum() / seeds))


# --- convergence ------------------------------------------------------------------------------------------------------


def _speeds(study: Study, pairs: Sequence[tuple[Group, Group]]) -> dict[tuple[str, str], Speed]:
    """How early each arm is beside TL; Holm over the contrasts at each one's primary threshold."""
    found: dict[tuple[str, str], tuple[tuple[Convergence, ...], Convergence | None, tuple[int, ...]]] = {}
    speeds: dict[tuple[str, str], Speed] = {}
    horizons = {}
    for tl, group in pairs:
        key, seeds = (group.arm.name, group.condition), both_seeds(tl, group)
        horizons[key] = min(len(curve) for each in (tl, group) for row in _rows(each, seeds)
                            for curve in [each.curves[row]])
        why = LATER_START if study.student.start == "tl" else SAME_AS_TL if same_as_tl(study, group.arm) else ""
        if why:
            speeds[key] = Speed((), None, NOT_EXAMINED, 1.0, 0, (), None, horizons[key], why)
            continue
        before = [tl.curves[row] for row in _rows(tl, seeds)]
        after = [group.curves[row] for row in _rows(group, seeds)]
        highest = max(float(curve.max()) for curve in [*before, *after])
        thresholds = tuple(convergence.convergence(before, after, threshold, level=study.verdict.level)
                           for threshold in THRESHOLDS if threshold <= highest + 1e-7)
        primary = next((each for each in reversed(thresholds) if 2 * each.tl_reached >= len(seeds)), None)
        found[key] = thresholds, primary, _crossings(before, after)
    tested = [key for key, (_, primary, _) in found.items() if primary is not None]
    ps = statistics.holm([primary.p_seed for _, primary, _ in found.values() if primary is not None])
    adjusted = {key: float(p) for key, p in zip(tested, ps, strict=True)}
    for key, (thresholds, primary, crossings) in found.items():
        word, needed = _judge(study, primary, adjusted.get(key, 1.0), len(tested))
        speeds[key] = Speed(thresholds, primary, word, adjusted.get(key, 1.0), len(tested), crossings, needed,
                            horizons[key])
    return speeds


def _judge(study: Study, primary: Convergence | None, p_adjusted: float, contrasts: int) -> tuple[str, int | None]:
    """The word, by the adjusted p, and where it is inconclusive the seeds that would be needed."""
    if primary is None:
        return "inconclusive", None
    if primary.low > 0 and p_adjusted < study.verdict.level:
        return "supported", None
    if primary.high < study.verdict.smallest_epochs:
        return "refuted", None
    differences = np.minimum(primary.tl_epochs, primary.horizon) - np.minimum(primary.tl_kd_epochs, primary.horizon)
    return "inconclusive", statistics.needed(differences[:, None], study.verdict.smallest_epochs, study.verdict.level,
                                             contrasts).seeds


def _crossings(before: Sequence[Floats], after: Sequence[Floats]) -> tuple[int, ...]:
    """The epochs at which the other arm's mean curve has come to lead, over the epochs that every run has."""
    common = min(len(curve) for curve in [*before, *after])
    means = [np.mean([curve[:common] for curve in curves], axis=0) for curves in (before, after)]
    return tuple(convergence.crossings(means[0], means[1]))
