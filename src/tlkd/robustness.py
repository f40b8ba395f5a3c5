"""What finished students say of distorted test images, read from a study's folder: described, not tested; no torch.

Fractions lie in [0, 1]; a gain is an arm minus TL, paired by seed.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlkd import statistics, store
from tlkd.contrasts import Floats, tl_arm
from tlkd.distortions import describe
from tlkd.folder import Run, StudyFolder, reading

Rows = Mapping[str, tuple[float, float, float]]  # distortion in words -> degree, accuracy, F1

ALL = "all"


@dataclass(frozen=True)
class Curve:
    """One arm under one condition, shown one kind of distortion: accuracy and F1 `[seed, degree]`.

    `degrees`: how strong each is, the severity or the side of a square; nan where a kind has no such number.
    """

    arm: str
    condition: str
    kind: str
    seeds: tuple[int, ...]
    degrees: tuple[float, ...]
    distortions: tuple[str, ...]  # each degree in words
    accuracy: Floats
    f1: Floats


@dataclass(frozen=True)
class Level:
    """An arm's mean accuracy over all degrees of a kind (or of all), `[seed]`, and its gain over TL with an interval.

    `gains [seed]` are over the seeds of both arms, empty for TL itself; `low` and `high` are Student's over them, nan
    where there are none.
    """

    arm: str
    condition: str
    kind: str
    accuracy: Floats
    gains: Floats
    low: float
    high: float


@dataclass(frozen=True)
class Robustness:
    """All curves, in the study's order, and their levels."""

    curves: tuple[Curve, ...]
    levels: tuple[Level, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of distortion, in the study's order."""
        return tuple(dict.fromkeys(curve.kind for curve in self.curves))


def find(folder: StudyFolder, finished: Sequence[Run]) -> Robustness | None:
    """Read what is there; None where the study asks for none, or nothing is. Raises `BadInput` for a damaged file."""
    planned = {describe(each): each.kind for one in folder.study.robustness for each in one.distortions}
    rows: dict[tuple[str, str], dict[int, Rows]] = {}
    for run in finished:
        table = _read(folder, run) if planned else {}
        if any(words in table for words in planned):
            rows.setdefault((run.condition.name, run.arm.name), {})[run.seed] = table
    curves = [_curve(arm.name, condition.name, kind, [words for words in planned if planned[words] == kind], by_seed)
              for condition in folder.study.conditions for arm in folder.study.arms
              for by_seed in [rows.get((condition.name, arm.name), {})] if by_seed
              for kind in dict.fromkeys(planned.values())]
    curves = [curve for curve in curves if curve.seeds]
    baseline = tl_arm(folder.study)
    return Robustness(tuple(curves), _levels(curves, baseline.name if baseline is not None else "",
                                             folder.study.verdict.level)) if curves else None


def _read(folder: StudyFolder, run: Run) -> Rows:
    """What a run's student says of each distortion: degree, accuracy and F1; nothing where it was not asked."""
    path = folder.robustness_path(run)
    if not (path / store.MANIFEST).is_file():
        return {}
    with reading(path / "robustness.csv"), (path / "robustness.csv").open(newline="") as file:
        return {row["distortion"]: (float(row["degree"] or "nan"), float(row["accuracy"]), float(row["f1"]))
                for row in csv.DictReader(file)}


def _curve(arm: str, condition: str, kind: str, distortions: Sequence[str], by_seed: Mapping[int, Rows]) -> Curve:
    """The rows of one arm, condition and kind as arrays; a seed without some degree is left out."""
    there = [words for words in distortions if any(words in rows for rows in by_seed.values())]
    seeds = tuple(seed for seed, rows in by_seed.items() if there and all(words in rows for words in there))
    table = np.array([[by_seed[seed][words] for words in there] for seed in seeds]).reshape(len(seeds), len(there), 3)
    degrees = tuple(table[0, :, 0].tolist()) if seeds else ()
    return Curve(arm, condition, kind, seeds, degrees, tuple(there), table[:, :, 1], table[:, :, 2])


def _levels(curves: Sequence[Curve], baseline: str, level: float) -> tuple[Level, ...]:
    """The mean over degrees of each kind, and over all degrees of all kinds where there are several."""
    by_seed: dict[tuple[str, str, str], dict[int, Floats]] = {}
    for curve in curves:
        for kind in (curve.kind, ALL):
            seeds = by_seed.setdefault((curve.condition, curve.arm, kind), {})
            for seed, row in zip(curve.seeds, curve.accuracy, strict=True):
                seeds[seed] = np.append(seeds.get(seed, np.empty(0)), row)
    several = len({curve.kind for curve in curves}) > 1
    found = []
    for (condition, arm, kind), rows in by_seed.items():
        if kind == ALL and not several:
            continue
        longest = max(len(row) for row in rows.values())
        means = {seed: float(row.mean()) for seed, row in rows.items() if len(row) == longest}
        theirs = by_seed.get((condition, baseline, kind), {}) if arm != baseline else {}
        gains = np.array([mean - float(theirs[seed].mean()) for seed, mean in means.items()
                          if seed in theirs and len(theirs[seed]) == longest])
        low, high = statistics.t_interval(gains, level) if len(gains) else (np.nan, np.nan)
        found.append(Level(arm, condition, kind, np.array(list(means.values())), gains, float(low), float(high)))
    return tuple(found)
