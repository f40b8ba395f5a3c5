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


def examine(study: Study, groups: Sequence[Group], labels: Ints) -> tuple[Control, ...]:
    """Every control under every condition that it, a `tl_kd` arm and TL have finished a common seed of."""
    weights, level = image_weights(labels, study.verdict.metric), study.verdict.level
    trios = [trio for group in groups if group.arm.control
             for trio in [_trio(study, groups, group)] if trio is not None]
    pairs = [_Pair(study, trio, weights) for trio in trios]
    given = {name: pair.given for pair in pairs for name in (pair.kd, pair.own)}
    tables = {name: table for pair in pairs for name, table in ((pair.kd, pair.kd_table), (pair.own, pair.own_table))}
    means = statistics.resampled_by_name(tables)
    around = statistics.intervals(tables, level, given)
    verdicts = statistics.verdicts({pair.own: pair.kd_table - pair.own_table for pair in pairs},
                                   study.verdict.smallest_gain, level, given)
    found = []
    for pair in pairs:
        tl, kd, group = pair.trio
        kept = _kept(pair, means, level) if around[pair.kd].low > 0 else (math.nan,) * 3
        found.append(Control(
            arm=group.arm, label=group.label, kd=kd.arm, kd_label=kd.label, tl_label=tl.label,
            condition=group.condition, seeds=pair.seeds, kd_gain=float(pair.kd_table.mean()),
            kd_interval=around[pair.kd], gain=float(pair.own_table.mean()), interval=around[pair.own],
            difference=verdicts[pair.own], kept=kept[0], kept_low=kept[1], kept_high=kept[2]))
    return tuple(found)


class _Pair:
    """The gains `[seed, image]` of a control and of the arm that it is compared with, which is named once for all."""

    def __init__(self, study: Study, trio: tuple[Group, Group, Group], weights: Floats) -> None:
        tl, kd, group = self.trio = trio
        self.seeds = tuple(both_seeds(*trio))
        self.kd = f"{kd.arm.name}/{kd.condition}/{self.seeds}"
        self.own = f"{group.arm.name}/{group.condition}"
        self.kd_table = differences(tl, kd, weights, self.seeds)
        self.own_table = differences(tl, group, weights, self.seeds)
        self.given = _given(study, trio)


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


def _kept(pair: _Pair, means: Mapping[str, Floats], level: float) -> tuple[float, float, float]:
    """The control's mean gain over the arm's, which is above 0, and its interval."""
    ratio = float(pair.own_table.mean() / pair.kd_table.mean())
    if pair.own not in means:
        return ratio, *fieller(pair.own_table.mean(axis=1), pair.kd_table.mean(axis=1), level)
    kd, own = means[pair.kd], means[pair.own]
    low, high = np.quantile(own[kd > 0] / kd[kd > 0], [level / 2, 1 - level / 2])
    return ratio, float(low), float(high)


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
