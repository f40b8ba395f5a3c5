"""Why the teacher helps: how much of an arm's gain each control keeps; pure, no files, apart from all hypotheses.

A control takes one thing away from a `tl_kd` arm. `label_smoothing` keeps what softening alone gives,
`tl_kd_shuffled` the teacher's confidence without its knowledge of which classes are alike, `self` what a teacher gives
that is no bigger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlkd import statistics
from tlkd.contrasts import (
    Floats,
    Group,
    Ints,
    both_seeds,
    differences,
    given_teacher,
    image_weights,
    same_as_tl,
    tl_arm,
)
from tlkd.specs import Arm, Study
from tlkd.statistics import Interval, Verdict

MISSING = {"label_smoothing": "what the teacher adds to softening", "tl_kd_shuffled": "knowing which classes are alike",
           "self": "being bigger"}
"""What a control lacks of the arm that it is compared with, by its kind: the difference is what that gives."""


@dataclass(frozen=True)
class Control:
    """A control beside a `tl_kd` arm under one condition, over the seeds that both and TL finished.

    `difference`: the verdict on the arm minus the control, in a family over controls x conditions. `kept`: the
    control's gain as a part of the arm's, with its interval; nan where the arm's own interval does not lie above 0,
    since there is no gain then to keep a part of.
    """

    arm: Arm
    label: str
    kd: Arm
    kd_label: str
    tl_label: str
    condition: str
    seeds: tuple[int, ...]
    kd_gain: float
    kd_interval: Interval
    gain: float
    interval: Interval
    difference: Verdict
    kept: float
    kept_low: float
    kept_high: float

    @property
    def missing(self) -> str:
        """What the control lacks."""
        return MISSING[self.arm.kind]


def examine(study: Study, groups: Sequence[Group], labels: Ints) -> tuple[Control, ...]:
    """Every control under every condition that it, a `tl_kd` arm and TL have finished a common seed of."""
    weights = image_weights(labels, study.verdict.metric)
    trios = [trio for group in groups if group.arm.control
             for trio in [_trio(study, groups, group)] if trio is not None]
    keys = ["/".join((group.arm.name, group.condition)) for _, _, group in trios]
    seeds = {key: both_seeds(*trio) for key, trio in zip(keys, trios, strict=True)}
    gains = {key: (differences(tl, kd, weights, seeds[key]), differences(tl, group, weights, seeds[key]))
             for key, (tl, kd, group) in zip(keys, trios, strict=True)}
    given = {key: _given(study, trio) for key, trio in zip(keys, trios, strict=True)}
    level = study.verdict.level
    verdicts = statistics.verdicts({key: kd - own for key, (kd, own) in gains.items()}, study.verdict.smallest_gain,
                                   level, given)
    around = [statistics.intervals({key: each[which] for key, each in gains.items()}, level, given)
              for which in (0, 1)]
    kept = _kept({key: each for key, each in gains.items() if around[0][key].low > 0}, level)
    return tuple(Control(
        arm=group.arm, label=group.label, kd=kd.arm, kd_label=kd.label, tl_label=tl.label, condition=group.condition,
        seeds=tuple(seeds[key]), kd_gain=float(gains[key][0].mean()), kd_interval=around[0][key],
        gain=float(gains[key][1].mean()), interval=around[1][key], difference=verdicts[key],
        kept=kept[key][0], kept_low=kept[key][1], kept_high=kept[key][2])
        for key, (tl, kd, group) in zip(keys, trios, strict=True))


def _trio(study: Study, groups: Sequence[Group], control: Group) -> tuple[Group, Group, Group] | None:
    """TL, the arm that a control is compared with, and the control; None where there is no such arm or seed.

    The arm of the same teacher, soft weight and temperature, as far as the control has them; else of the same teacher;
    else the first that ran under the condition.
    """
    baseline = tl_arm(study)
    here = [group for group in groups if group.condition == control.condition]
    tl = next((group for group in here if baseline is not None and group.arm.name == baseline.name), None)
    arms = [group for group in here if group.arm.kind == "tl_kd" and not same_as_tl(study, group.arm)]
    if tl is None or not arms:
        return None
    kd = max(arms, key=lambda group: _likeness(group.arm, control.arm))  # the first of equals
    return (tl, kd, control) if both_seeds(tl, kd, control) else None


def _likeness(arm: Arm, control: Arm) -> tuple[bool, bool]:
    same = {key: getattr(control, key) in (None, getattr(arm, key))
            for key in ("teacher", "soft_weight", "temperature")}
    return all(same.values()), same["teacher"]


def _given(study: Study, trio: tuple[Group, Group, Group]) -> str:
    where = [each for each in study.conditions if each.name == trio[2].condition]
    return next((words for group in trio[1:] for words in [given_teacher(study, group.arm, where)] if words), "")


def _kept(gains: Mapping[str, tuple[Floats, Floats]], level: float) -> "_Shares":
    """The control's mean gain over the arm's, and its interval, by key."""
    found = _Shares()
    shapes: dict[tuple[int, ...], list[str]] = {}
    for key, (kd, _) in gains.items():
        shapes.setdefault(kd.shape, []).append(key)
    for keys in shapes.values():
        if statistics.can_resample(gains[keys[0]][0]):
            means = statistics.resampled([table for key in keys for table in gains[key]])
            for number, key in enumerate(keys):
                kd, own = means[2 * number], means[2 * number + 1]
                low, high = np.quantile(own[kd > 0] / kd[kd > 0], [level / 2, 1 - level / 2])
                found[key] = _ratio(gains[key]), float(low), float(high)
        else:
            found |= {key: (_ratio(gains[key]), *fieller(gains[key][1].mean(axis=1), gains[key][0].mean(axis=1), level))
                      for key in keys}
    return found


class _Shares(dict[str, tuple[float, float, float]]):
    def __missing__(self, key: str) -> tuple[float, float, float]:
        return math.nan, math.nan, math.nan


def _ratio(gains: tuple[Floats, Floats]) -> float:
    return float(gains[1].mean() / gains[0].mean())


def fieller(numerators: Floats, denominators: Floats, level: float) -> tuple[float, float]:
    """The interval for a ratio of paired means over `[seed]`; (nan, nan) where the denominator may be 0.

    Source: Fieller, "Some problems in interval estimation", 1954.
    """
    from scipy.stats import t

    count = len(numerators)
    if count < 2:
        return math.nan, math.nan
    top, bottom = float(numerators.mean()), float(denominators.mean())
    covariance = np.cov(numerators, denominators) / count
    quantile = float(t.ppf(1 - level / 2, count - 1)) ** 2
    # (top - ratio * bottom)^2 <= quantile * variance of (top - ratio * bottom), a quadratic in the ratio
    a = bottom**2 - quantile * float(covariance[1, 1])
    b = top * bottom - quantile * float(covariance[0, 1])
    c = top**2 - quantile * float(covariance[0, 0])
    if a <= 0:
        return math.nan, math.nan
    half = math.sqrt(max(0.0, b * b - a * c))
    return (b - half) / a, (b + half) / a
