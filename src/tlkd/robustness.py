"""What finished students say of distorted test images, read from a study's folder: described, not tested; no torch.

Fractions lie in [0, 1]; a gain is an arm minus TL, paired by seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tlkd import statistics, store
from tlkd.contrasts import Floats, tl_arm
from tlkd.distortions import describe
from tlkd.folder import Run, StudyFolder, reading

COLUMNS = ("kind", "degree", "distortion", "accuracy", "f1")
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
    planned = [describe(each) for one in folder.study.robustness for each in one.distortions]
    frames = [frame.assign(arm=run.arm.name, condition=run.condition.name, seed=run.seed)
              for run in finished for frame in [_read(folder, run, planned)] if frame is not None]
    if not frames:
        return None
    table = pd.concat(frames, ignore_index=True)
    curves = [_curve(part, planned) for condition in folder.study.conditions for arm in folder.study.arms
              for kind in dict.fromkeys(each.kind for each in folder.study.robustness)
              for part in [table[(table["condition"] == condition.name) & (table["arm"] == arm.name)
                                 & (table["kind"] == kind)]] if len(part)]
    baseline = tl_arm(folder.study)
    return Robustness(tuple(curves), _levels(curves, baseline.name if baseline is not None else "",
                                             folder.study.verdict.level))


def _read(folder: StudyFolder, run: Run, planned: Sequence[str]) -> pd.DataFrame | None:
    """What a run's student says, of the distortions that the study asks for now."""
    path = folder.robustness_path(run)
    if not planned or not (path / store.MANIFEST).is_file():
        return None
    with reading(path / "robustness.csv"):
        table = pd.read_csv(path / "robustness.csv", dtype={"kind": str, "distortion": str})
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ValueError(f"lacks the column {missing[0]}")
        return table.loc[table["distortion"].isin(planned), list(COLUMNS)]


def _curve(part: pd.DataFrame, planned: Sequence[str]) -> Curve:
    """The rows of one arm, condition and kind as arrays; a seed without some degree is left out."""
    order = [each for each in dict.fromkeys(planned) if (part["distortion"] == each).any()]
    wide = {name: part.pivot_table(index="seed", columns="distortion", values=name, sort=False)[order].dropna()
            for name in ("accuracy", "f1")}
    degrees = [float(part.loc[part["distortion"] == each, "degree"].iloc[0]) for each in order]
    first = part.iloc[0]
    return Curve(str(first["arm"]), str(first["condition"]), str(first["kind"]),
                 tuple(int(seed) for seed in wide["accuracy"].index), tuple(degrees), tuple(order),
                 wide["accuracy"].to_numpy(np.float64), wide["f1"].to_numpy(np.float64))


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
