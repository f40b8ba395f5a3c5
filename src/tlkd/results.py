"""What the finished networks of a study say on the test split, read from its folder once; torch is not needed.

Fractions lie in [0, 1], epochs count from 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlkd import evaluation
from tlkd.conditions import Condition
from tlkd.contrasts import METRICS, Floats, Group, Ints, arm_label, tl_arm
from tlkd.errors import BadInput
from tlkd.evaluation import Evaluated, Reliability
from tlkd.folder import Predictions, Run, StudyFolder, TeacherFit, load_predictions, teacher_fit, teacher_fits
from tlkd.progress import track
from tlkd.series import base_conditions
from tlkd.specs import Teacher


@dataclass(frozen=True)
class TeacherResult:
    """A teacher on the test split; `[fit]` is one, or one a seed."""

    name: str
    condition: str  # empty where it was fitted on the training samples as they are
    spec: Teacher
    metrics: Mapping[str, Floats]  # name -> [fit]
    reliability: Reliability
    parameters: int
    no_better: bool  # its accuracy does not exceed the mean TL student's


@dataclass(frozen=True)
class Agreement:
    """How close an arm's students are to a teacher, `[seed]` each: the same class first, and KL in nats."""

    teacher: str
    arm: str
    condition: str
    label: str
    top1: Floats
    kl: Floats


@dataclass(frozen=True)
class Results:
    """Students and teachers as numbers; `labels [image]` of the test split, None where no run has finished."""

    labels: Ints | None
    groups: tuple[Group, ...]
    teachers: tuple[TeacherResult, ...]
    agreements: tuple[Agreement, ...]


def read(folder: StudyFolder, finished: Sequence[Run]) -> Results:
    """Read every finished network's predictions, one at a time: beside the teachers' no logits are held together.

    Raises `BadInput` where a file cannot be read, or where networks were tested on different images.
    """
    reader = _Reader(folder, finished)
    groups: list[Group] = []
    agreements: list[Agreement] = []
    lasting = reader.teachers(None)
    by_group: dict[tuple[str, str], list[Run]] = {}
    for run in finished:
        by_group.setdefault((run.arm.name, run.condition.name), []).append(run)
    for condition in track(folder.study.conditions, "read predictions", len(folder.study.conditions)):
        fits = {**lasting, **reader.teachers(condition)}
        for arm in folder.study.arms:
            runs = by_group.get((arm.name, condition.name), [])
            if runs:
                seen = [_Student.of(folder, run, reader.predictions(run), fits) for run in runs]
                groups.append(_group(folder, seen, arm_label(folder.study, arm)))
                agreements += _agreements(folder, seen)
    return Results(reader.first.labels if reader.first is not None else None, tuple(groups),
                   tuple(_teacher_results(reader, groups)), tuple(agreements))


@dataclass(frozen=True)
class _Seen:
    """What is kept of a teacher's fits: their metrics and their reliability together."""

    metrics: list[dict[str, float]]
    reliability: Reliability
    parameters: int


class _Reader:
    """Reads predictions, each once, and holds them all to the first run's test images."""

    def __init__(self, folder: StudyFolder, finished: Sequence[Run]) -> None:
        self.folder = folder
        self.first = folder.predictions(finished[0]) if finished else None
        self._first_run = finished[0].run_id if finished else ""
        self._learnt_from = {teacher_fit(folder.study, run.arm.teacher, run.condition, run.seed).fit_id
                             for run in finished if run.arm.teacher is not None}
        self.fits: dict[str, list[TeacherFit]] = {}  # by what they were fitted under
        for fit in teacher_fits(folder.study):
            self.fits.setdefault(fit.condition.name if fit.condition is not None else "", []).append(fit)
        self.seen: dict[tuple[str, str], _Seen] = {}

    def predictions(self, run: Run) -> Predictions:
        """A finished run's predictions."""
        if self.first is not None and run.run_id == self._first_run:
            return self.first
        return self._same_images(self.folder.predictions(run), run.run_id)

    def teachers(self, condition: Condition | None) -> dict[TeacherFit, Predictions]:
        """The predictions of the teachers that were fitted under a condition, or (None) on the samples as they are.

        A teacher that failed, or is not there yet, is left out; one that a finished run learnt from must be there.
        """
        name = condition.name if condition is not None else ""
        found: dict[TeacherFit, Predictions] = {}
        for fit in self.fits.get(name, []):
            path = self.folder.teacher_path(fit)
            if path.is_dir() or fit.fit_id in self._learnt_from:
                found[fit] = self._same_images(load_predictions(path / "predictions.npz"), f"teacher {fit.fit_id}")
        for teacher in dict.fromkeys(fit.name for fit in found):
            own = {fit: one for fit, one in found.items() if fit.name == teacher}
            result = self.folder.teacher_result(self.folder.teacher_path(next(iter(own))))
            each = [evaluation.evaluate(one.labels, one.logits) for one in own.values()]
            self.seen[teacher, name] = _Seen([one.metrics for one in each],
                                             evaluation.pooled([one.reliability for one in each]),
                                             int(result["parameters"]))
        return found

    def _same_images(self, predictions: Predictions, who: str) -> Predictions:
        """The predictions, provided that they are for the same test images in the same order."""
        first = self.first
        if first is not None and not (_equal(predictions.sample_ids, first.sample_ids)
                                      and _equal(predictions.labels, first.labels)):
            raise BadInput(f"{who}: its predictions are for other test images than the first run's; "
                           "this folder mixes data sets: run the study into a new --out")
        return predictions


def _equal(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    return np.array_equal(one, other)


@dataclass(frozen=True)
class _Student:
    """What is kept of a run's predictions, and how close they are to each teacher's (name -> agreement)."""

    run: Run
    seen: Evaluated
    close: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, folder: StudyFolder, run: Run, mine: Predictions, fits: Mapping[TeacherFit, Predictions]) -> "_Student":
        """Measure a run's predictions against the labels and against the teachers that are there."""
        theirs = {name: fits.get(teacher_fit(folder.study, name, run.condition, run.seed))
                  for name in folder.study.used_teachers}
        return cls(run, evaluation.evaluate(mine.labels, mine.logits),
                   {name: evaluation.agreement(mine.logits, one.logits) for name, one in theirs.items()
                    if one is not None})


def _agreements(folder: StudyFolder, students: Sequence[_Student]) -> Iterator[Agreement]:
    """How close one arm's students under one condition are to each teacher."""
    arm, condition = students[0].run.arm, students[0].run.condition
    for name in folder.study.used_teachers:
        close = [student.close[name] for student in students if name in student.close]
        if close:
            yield Agreement(name, arm.name, condition.name, arm_label(folder.study, arm),
                            np.array([each["top1"] for each in close]), np.array([each["kl"] for each in close]))


def _group(folder: StudyFolder, students: Sequence[_Student], label: str) -> Group:
    runs, seen = [student.run for student in students], [student.seen for student in students]
    results = [folder.result(run) for run in runs]
    return Group(
        arm=runs[0].arm, condition=runs[0].condition.name, label=label, seeds=tuple(run.seed for run in runs),
        metrics=_columns([one.metrics for one in seen]),
        correct=np.array([one.correct for one in seen]),
        confusions=np.array([one.confusion for one in seen]),
        per_class={name: np.array([one.per_class[name] for one in seen]) for name in ("precision", "recall", "f1")},
        reliability=evaluation.pooled([one.reliability for one in seen]),
        curves=tuple(folder.curve(run) for run in runs),
        epochs=tuple(int(result["epochs"]) for result in results),
        best_epochs=tuple(int(result["best_epoch"]) for result in results),
        seconds=tuple(float(result["seconds"]) for result in results))


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Floats]:
    return {name: np.array([row[name] for row in rows]) for name in METRICS}


def _teacher_results(reader: _Reader, groups: Sequence[Group]) -> Iterator[TeacherResult]:
    study = reader.folder.study
    baseline, base = tl_arm(study), base_conditions(study)
    students = {group.condition: float(group.metrics["accuracy"].mean()) for group in groups
                if baseline is not None and group.arm.name == baseline.name}
    for (name, condition), one in reader.seen.items():
        metrics = _columns(one.metrics)
        beside = [students[where] for where in ([condition] if condition else base) if where in students]
        weaker = bool(beside) and float(metrics["accuracy"].mean()) <= max(beside)
        yield TeacherResult(name, condition, study.teachers[name], metrics, one.reliability, one.parameters, weaker)
