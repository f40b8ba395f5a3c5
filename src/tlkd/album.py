"""What the explanation stage left, as the report shows it: the facts of all networks, and arrays for the pictures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkd import explained
from tlkd.errors import BadInput
from tlkd.explained import Explained, ExplainedImages
from tlkd.folder import Run, StudyFolder

Ints = NDArray[np.int64]

AGAIN = 5  # of how many classes, the first ones, a second image is shown (the thesis chose its five after the fact)


@dataclass(frozen=True)
class Overview:
    """What was explained, and how well: counts, how far the attributions miss the outputs, and the masks' notes."""

    images: int
    masked: int
    uncertain: int
    seeds: Mapping[tuple[str, str], tuple[int, ...]]  # arm, condition -> the seeds that were explained
    teachers: tuple[str, ...]
    shown: Mapping[str, int]  # condition -> the seed whose networks the pictures show
    wrong: Mapping[tuple[str, str], float]  # arm, condition -> the mean share of the images that it classifies wrong
    residual: float  # the largest |residual| over the range of a network's outputs; nan where none is additive
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Row:
    """One arm's network among those that are shown side by side."""

    arm: str
    seed: int
    explained: Explained


@dataclass(frozen=True, eq=False)
class Album:
    """The networks of one condition that are shown side by side, TL first, on the images that all were explained on.

    They are of the first seed that most arms were explained with.
    """

    condition: str
    seed: int
    rows: tuple[Row, ...]
    images: ExplainedImages


def overview(folder: StudyFolder) -> Overview | None:
    """The facts of a study's explanations; None where no network is explained."""
    names = [arm.name for arm in folder.study.arms]
    runs = sorted(explained.explained_runs(folder), key=lambda run: names.index(run.arm.name))
    teachers = explained.explained_teachers(folder)
    if not runs and not teachers:
        return None
    images = explained.load_images(folder)
    wrong: dict[tuple[str, str], list[float]] = {}
    seeds: dict[tuple[str, str], list[int]] = {}
    residuals = []
    for run in runs:
        predicted, residual = _checked(folder, run.run_id, images)
        wrong.setdefault(_key(run), []).append(float((predicted != images.labels).mean()) if len(predicted) else 0.0)
        seeds.setdefault(_key(run), []).append(run.seed)
        residuals.append(residual)
    residuals += [_checked(folder, who, images)[1] for who in teachers.values()]
    known = [each for each in residuals if math.isfinite(each)]
    return Overview(
        images=len(images.labels), masked=int(images.masked.sum()),
        uncertain=int((images.uncertain & images.masked).sum()),
        seeds={key: tuple(each) for key, each in seeds.items()}, teachers=tuple(teachers),
        shown={condition: _shown_seed(folder.study.seeds, [run for run in runs if run.condition.name == condition])
               for condition in dict.fromkeys(run.condition.name for run in runs)},
        wrong={key: float(np.mean(each)) for key, each in wrong.items()}, residual=max(known, default=math.nan),
        notes=images.notes)


def _key(run: Run) -> tuple[str, str]:
    return run.arm.name, run.condition.name


def _checked(folder: StudyFolder, who: str, images: ExplainedImages) -> tuple[Ints, float]:
    """A network's predictions, and its largest |residual| over its outputs' range (or 1, where that is the larger)."""
    names = ("sample_ids", "predicted", "output", "residual")  # the large ones stay
    found = explained.arrays_of(explained.place(folder, who) / "attributions.npz", names)
    ids, predicted, output, residual = (found[name] for name in names)
    _same_images(folder, who, ids, images)
    largest = np.abs(residual[np.isfinite(residual)]).max(initial=-1.0)
    return predicted, float(largest) / max(1.0, float(np.ptp(output))) if largest >= 0 else math.nan


def _same_images(folder: StudyFolder, who: str, ids: NDArray[np.str_], images: ExplainedImages) -> None:
    if ids.tolist() != images.sample_ids.tolist():
        raise BadInput(f"{explained.place(folder, who)}: is for other images than explanations/images.npz; remove "
                       f"{folder.path}/explanations and run the study again to explain all networks on the same ones")


def albums(folder: StudyFolder, baseline: str) -> Iterator[Album]:
    """An album a condition, read when it is asked for; `baseline` names the arm that comes first."""
    runs = explained.explained_runs(folder)
    if not runs:
        return
    images = explained.load_images(folder)
    for condition in folder.study.conditions:
        here = [run for run in runs if run.condition.name == condition.name]
        if not here:
            continue
        seed = _shown_seed(folder.study.seeds, here)
        names = [arm.name for arm in folder.study.arms]
        chosen = sorted((run for run in here if run.seed == seed),
                        key=lambda run: (run.arm.name != baseline, names.index(run.arm.name)))
        rows = []
        for run in chosen:
            one = explained.load(folder, run.run_id)
            _same_images(folder, run.run_id, one.sample_ids, images)
            rows.append(Row(run.arm.name, seed, one))
        yield Album(condition.name, seed, tuple(rows), images)


def _shown_seed(seeds: Sequence[int], runs: Sequence[Run]) -> int:
    """The first seed that the most arms were explained with."""
    return max(seeds, key=lambda seed: (sum(run.seed == seed for run in runs), -seeds.index(seed)))


def of_each_class(labels: Ints, kept: NDArray[np.bool_], place: int = 0) -> list[int]:
    """The numbers of the images that are, among those kept, the first of their class (`place` 0), the second (1) ..."""
    rows = np.flatnonzero(kept)
    found = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    return [int(each[place]) for each in found if len(each) > place]
