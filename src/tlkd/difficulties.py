"""Hypothesis 4: does an arm keep its gain over TL under difficulties? By condition and by series; pure, no files.

A gain is an arm minus TL on the verdict's metric, a fraction; differences are `[seed, image]` over the seeds that both
finished. Four families of tests stand apart from each other and from hypothesis 1's: the average over each series, each
difficult condition, the trends, the peaks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tlkd import statistics, trends
from tlkd.contrasts import (
    NOT_EXAMINED,
    Floats,
    Group,
    Ints,
    arm_label,
    both_seeds,
    differences,
    given_teacher,
    image_weights,
    judge,
    pairs_with_tl,
    same_as_tl,
    tl_arm,
)
from tlkd.folder import plan
from tlkd.series import Place, Series, series_of
from tlkd.specs import Arm, Study
from tlkd.statistics import Interval, Verdict

Key = tuple[str, str]  # arm, condition
RISES, FALLS, NO_TREND = "rises", "falls", "not shown"


@dataclass(frozen=True)
class Gain:
    """One arm against TL under one difficult condition; the verdict is of the family over all of these."""

    arm: Arm
    condition: str
    label: str
    seeds: tuple[int, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Trend:
    """How the gain changes from the easiest place to the hardest; `verdict.gain` is the fitted change, + for more."""

    verdict: Verdict

    @property
    def word(self) -> str:
        """Whether the gain surely rises or falls: interval and both corrected p, as for a supported gain."""
        sure = max(self.verdict.p_seed_adjusted, self.verdict.p_image_adjusted) < self.verdict.level
        if sure and self.verdict.interval.low > 0:
            return RISES
        return FALLS if sure and self.verdict.interval.high < 0 else NO_TREND


@dataclass(frozen=True)
class Peak:
    """Where the gain is largest; `interval` is the gain's there, and does not allow for the choice of the place.

    `above_easiest`, `above_hardest` and `p`: whether an inner place exceeds both ends (`trends.inner_peak`), nan where
    that is not tested; `p_adjusted` over `contrasts` such tests.
    """

    place: Place
    gain: float
    interval: Interval
    shares: tuple[float, ...]  # [place]: the part of resamples that have their peak there
    above_easiest: float
    above_hardest: float
    p: float
    p_adjusted: float
    contrasts: int
    level: float

    @property
    def tested(self) -> bool:
        """Whether there was an inner place and more than a seed."""
        return bool(np.isfinite(self.p))

    @property
    def inner(self) -> bool:
        """Whether an inner place surely exceeds both ends."""
        return self.tested and self.p_adjusted < self.level


@dataclass(frozen=True)
class Course:
    """An arm's gain along a series: over its difficult places on average, its trend and its peak.

    `places`: those with a finished pair of runs; `left_out`: those that were planned and have none. `seeds` are common
    to all places, and `gains [place]` are means over them. Where nothing can be judged, `verdict` is None and `why`
    says so; trend and peak need two places.
    """

    arm: Arm
    label: str
    tl_label: str
    series: Series
    places: tuple[Place, ...]
    left_out: tuple[str, ...]
    seeds: tuple[int, ...]
    gains: tuple[float, ...]
    verdict: Verdict | None
    why: str
    trend: Trend | None
    peak: Peak | None

    @property
    def word(self) -> str:
        """Hypothesis 4's verdict on this arm and series."""
        return NOT_EXAMINED if self.verdict is None else self.verdict.word


@dataclass(frozen=True)
class Difficulties:
    """All that a study says of hypothesis 4."""

    series: tuple[Series, ...]
    gains: tuple[Gain, ...]
    courses: tuple[Course, ...]

    def gain(self, arm: str, condition: str) -> Gain | None:
        """An arm's gain under a difficult condition, if both arms have finished runs of it."""
        return self._by_name.get((arm, condition))

    @cached_property
    def _by_name(self) -> dict[Key, Gain]:
        return {(each.arm.name, each.condition): each for each in self.gains}

    def of(self, series: Series) -> tuple[Course, ...]:
        """The arms' courses along a series."""
        return tuple(each for each in self.courses if each.series.key == series.key)


def examine(study: Study, groups: Sequence[Group], labels: Ints) -> Difficulties | None:
    """Hypothesis 4 on every `tl_kd` arm; None where no condition is difficult. `labels [image]`: the test split's."""
    hard = {each.name for each in study.conditions if not each.plain}
    if not hard:
        return None
    weights = image_weights(labels, study.verdict.metric)
    pairs = {(group.arm.name, group.condition): (tl, group) for tl, group in pairs_with_tl(study, groups)
             if group.arm.kind == "tl_kd" and not same_as_tl(study, group.arm)}
    tables = {key: differences(tl, group, weights) for key, (tl, group) in pairs.items() if key[1] in hard}
    verdicts = judge(study, tables, study.verdict.smallest_gain)
    gains = tuple(Gain(pairs[key][1].arm, key[1], pairs[key][1].label, tuple(both_seeds(*pairs[key])), verdict)
                  for key, verdict in verdicts.items())
    series = series_of(study.conditions)
    taught = [(arm, _planned(study, arm)) for arm in study.arms if arm.kind == "tl_kd" and not same_as_tl(study, arm)]
    drafts = [_Draft(study, arm, planned, each, pairs, weights) for each in series for arm, planned in taught]
    return Difficulties(series, gains, tuple(_courses(study, [each for each in drafts if each.planned])))


class _Draft:
    """One arm along one series before its families are judged."""

    def __init__(self, study: Study, arm: Arm, planned: set[str], series: Series,
                 pairs: Mapping[Key, tuple[Group, Group]], weights: Floats) -> None:
        self.arm, self.series = arm, series
        self.key = f"{arm.name}/{series.key}"
        self.planned = any(place.name in planned for place in series.hard)
        self.places = tuple(place for place in series.places if (arm.name, place.name) in pairs)
        self.left_out = tuple(place.name for place in series.places
                              if place.name in planned and place not in self.places)
        self.pairs = [pairs[arm.name, place.name] for place in self.places]
        self.weights = weights
        hard = [pair for place, pair in zip(self.places, self.pairs, strict=True) if not place.easy]
        self.given = given_teacher(study, arm, [place.condition for place in self.places])
        self.hard_given = given_teacher(study, arm, [place.condition for place in self.places if not place.easy])
        self.seeds, self.hard_seeds = _common(self.pairs), _common(hard)
        self.average = self._stack(hard, self.hard_seeds).mean(axis=0) if self.hard_seeds else None
        several = len(self.places) > 1 and len(self.seeds) > 0
        self.stack = self._stack(self.pairs, self.seeds) if several else None

    def _stack(self, pairs: Sequence[tuple[Group, Group]], seeds: Sequence[int]) -> Floats:
        """Differences `[place, seed, image]`."""
        return np.array([differences(tl, group, self.weights, seeds) for tl, group in pairs])

    @property
    def gains(self) -> Floats:
        """The gain at each place, over the common seeds."""
        if self.stack is not None:
            return np.asarray(self.stack.mean(axis=(1, 2)), np.float64)
        return np.array([differences(tl, group, self.weights).mean() for tl, group in self.pairs])

    @property
    def why(self) -> str:
        """What keeps the average from being judged."""
        if self.average is not None:
            return ""
        if all(place.easy for place in self.places):
            return "no seed has a finished run in both arms"
        return "no seed is finished in both arms at all of its places"


def _planned(study: Study, arm: Arm) -> set[str]:
    """The conditions under which both the arm and TL were to be run."""
    baseline = tl_arm(study)
    runs = {(run.arm.name, run.condition.name) for run in plan(study)}
    return {condition for name, condition in runs if name == arm.name
            and baseline is not None and (baseline.name, condition) in runs}


def _common(pairs: Sequence[tuple[Group, Group]]) -> list[int]:
    return both_seeds(*(group for pair in pairs for group in pair)) if pairs else []


def _courses(study: Study, drafts: Sequence[_Draft]) -> Iterator[Course]:
    smallest, level = study.verdict.smallest_gain, study.verdict.level
    given = {draft.key: draft.given for draft in drafts}
    averages = statistics.verdicts({draft.key: draft.average for draft in drafts if draft.average is not None},
                                   smallest, level, {draft.key: draft.hard_given for draft in drafts})
    slopes = statistics.verdicts({draft.key: trends.linear(draft.stack) for draft in drafts
                                  if draft.stack is not None}, smallest, level, given)
    peaks, baseline = _peaks(drafts, level), tl_arm(study)
    tl_label = arm_label(study, baseline) if baseline is not None else "TL"
    for draft in drafts:
        yield Course(
            arm=draft.arm, label=arm_label(study, draft.arm), tl_label=tl_label,
            series=draft.series, places=draft.places, left_out=draft.left_out, seeds=tuple(draft.seeds),
            gains=tuple(draft.gains.tolist()), verdict=averages.get(draft.key), why=draft.why,
            trend=Trend(slopes[draft.key]) if draft.key in slopes else None, peak=peaks.get(draft.key))


def _peaks(drafts: Sequence[_Draft], level: float) -> dict[str, Peak]:
    """The peak of each arm and series that has two places; Holm over those in which an inner one can be tested."""
    stacks = {draft.key: draft.stack for draft in drafts if draft.stack is not None}
    inner = {key: trends.inner_peak(stack.mean(axis=2)) for key, stack in stacks.items()}
    tested = [key for key, one in inner.items() if np.isfinite(one.p)]
    adjusted = dict(zip(tested, statistics.holm([inner[key].p for key in tested]).tolist(), strict=True))
    tops = dict(zip(stacks, trends.peaks(list(stacks.values())), strict=True))
    around = statistics.intervals({key: stack[tops[key].place] for key, stack in stacks.items()}, level,
                                  {draft.key: draft.given for draft in drafts})
    found = {}
    for draft in drafts:
        if draft.stack is None:
            continue
        top, one = tops[draft.key], inner[draft.key]
        found[draft.key] = Peak(
            place=draft.places[top.place], gain=top.gain, interval=around[draft.key], shares=top.shares,
            above_easiest=one.above_first, above_hardest=one.above_last, p=one.p,
            p_adjusted=adjusted.get(draft.key, float("nan")), contrasts=len(tested), level=level)
    return found
