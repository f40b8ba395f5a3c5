"""From a finished study's folder to what was found: verdicts, confusions, convergence, teachers; nothing is drawn here.

Fractions lie in [0, 1], epochs count from 1, and every difference is an arm minus TL, so that positive means that the
arm is the better. Only what the study's folder holds is read, and torch is not needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tlkd import album, evaluation, foreground
from tlkd.album import Overview
from tlkd.contrasts import METRICS, Contrast, Floats, Group, Ints, contrast_all, tl_arm
from tlkd.errors import BadInput
from tlkd.evaluation import Reliability
from tlkd.folder import Predictions, Run, StudyFolder, TeacherFit, load_predictions, teacher_fit, teacher_fits
from tlkd.foreground import Explanations, Foreground
from tlkd.specs import Arm, Study, Teacher

Fits = Mapping[TeacherFit, Predictions]


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
class Findings:
    """All that a study found."""

    study: Study
    provenance: Mapping[str, Any]
    card: Mapping[str, Any]
    classes: tuple[str, ...]
    test_counts: Ints  # [class]
    groups: tuple[Group, ...]
    contrasts: tuple[Contrast, ...]
    teachers: tuple[TeacherResult, ...]
    agreements: tuple[Agreement, ...]
    planned: int
    failures: Mapping[str, str]
    teacher_failures: Mapping[str, str]
    unfinished: tuple[str, ...]
    stages: tuple[Mapping[str, Any], ...]
    explanations: Explanations | None = None  # hypothesis 2, None where nothing is explained
    overview: Overview | None = None  # and the facts of what was
    explanation_failures: Mapping[str, str] = field(default_factory=dict)  # network -> why

    @property
    def tl(self) -> Arm | None:
        """The arm that all others are compared with."""
        return tl_arm(self.study)

    @property
    def balanced(self) -> bool:
        """Whether all classes have equally many test images."""
        return len(set(self.test_counts.tolist())) == 1

    @property
    def tested(self) -> tuple[Contrast, ...]:
        """The contrasts that may differ from TL: those that are equal to it by construction are left out."""
        return tuple(each for each in self.contrasts if not each.same_as_tl)

    def pairs(self) -> Iterator[tuple[Contrast, Group, Group]]:
        """Each contrast with the groups of TL and of its arm."""
        for each in self.contrasts:
            tl = self.group(self.tl.name, each.condition) if self.tl is not None else None
            group = self.group(each.arm.name, each.condition)
            if tl is not None and group is not None:
                yield each, tl, group

    def label(self, each: Contrast) -> str:
        """A contrast's arm as readers call it, with its condition where the study has several."""
        return each.label if len(self.study.conditions) == 1 else f"{each.label}, {each.condition}"

    def foreground(self, each: Contrast) -> Foreground | None:
        """What attributions say of a contrast; None where nothing was explained, or nothing of it has a mask."""
        if self.explanations is None or self.explanations.n_images == 0:
            return None
        return self.explanations.foreground(each.arm.name, each.condition)

    def word(self, each: Contrast) -> str:
        """Hypothesis 1's verdict: metrics, confusion and, where it was examined, attribution must agree."""
        attends = self.foreground(each)
        if each.word == "supported" and attends is not None and attends.counts and attends.word != "supported":
            return "inconclusive"
        return each.word

    def group(self, arm: str, condition: str) -> Group | None:
        """The finished runs of an arm under a condition, if there are any."""
        return next((each for each in self.groups if (each.arm.name, each.condition) == (arm, condition)), None)


def find(folder: StudyFolder) -> Findings:
    """Read a study's folder and work out what it found; raises `BadInput` where no study lies there."""
    study, card = folder.study, folder.card()
    finished = folder.finished()
    teachers = _teacher_predictions(folder, finished)
    groups, agreements = _groups(folder, finished, teachers)
    labels = next((folder.predictions(run).labels for run in finished), None)
    counts = list(card["counts"]["test"].values()) if labels is None else np.bincount(labels,
                                                                                      minlength=len(card["classes"]))
    contrasts = contrast_all(study, groups, labels) if labels is not None else ()
    failures = folder.failures()
    done = {run.run_id for run in finished} | set(failures)
    return Findings(
        study=study, provenance=folder.provenance, card=card, classes=tuple(card["classes"]),
        test_counts=np.asarray(counts, np.int64), groups=groups, contrasts=contrasts,
        teachers=_teacher_results(folder, teachers, groups), agreements=agreements, planned=len(folder.runs()),
        failures={name: why for name, why in failures.items() if name not in {run.run_id for run in finished}},
        teacher_failures=folder.teacher_failures(),
        unfinished=tuple(run.run_id for run in folder.runs() if run.run_id not in done), stages=tuple(folder.stages()),
        explanations=foreground.find(folder), overview=album.overview(folder),
        explanation_failures=folder.explanation_failures())


def arm_label(study: Study, arm: Arm) -> str:
    """What readers call an arm: TL or TL+KD, with its name only where several arms are of one kind."""
    kind = {"tl": "TL", "tl_kd": "TL+KD"}.get(arm.kind, arm.kind)
    return kind if sum(other.kind == arm.kind for other in study.arms) == 1 else f"{kind} ({arm.name})"


# --- runs -------------------------------------------------------------------------------------------------------------


def _groups(folder: StudyFolder, finished: Sequence[Run], teachers: Fits) -> tuple[tuple[Group, ...],
                                                                                   tuple[Agreement, ...]]:
    groups, agreements = [], []
    first = folder.predictions(finished[0]) if finished else None
    for condition in folder.study.conditions:
        for arm in folder.study.arms:
            runs = [run for run in finished if run.arm.name == arm.name and run.condition.name == condition.name]
            if not runs or first is None:
                continue
            label = arm_label(folder.study, arm)
            predictions = [_same_images(folder.predictions(run), first, run.run_id) for run in runs]
            groups.append(_group(folder, runs, predictions, label))
            for name in folder.study.used_teachers:
                close = [evaluation.agreement(mine.logits, _same_images(their, first, f"teacher {name}").logits)
                         for run, mine in zip(runs, predictions, strict=True)
                         for their in [teachers.get(teacher_fit(folder.study, name, condition, run.seed))]
                         if their is not None]
                if close:
                    agreements.append(Agreement(name, arm.name, condition.name, label,
                                                np.array([each["top1"] for each in close]),
                                                np.array([each["kl"] for each in close])))
    return tuple(groups), tuple(agreements)


def _group(folder: StudyFolder, runs: Sequence[Run], predictions: Sequence[Predictions], label: str) -> Group:
    each = [evaluation.metrics(one.labels, one.logits) for one in predictions]
    results = [folder.result(run) for run in runs]
    by_class = [evaluation.per_class(one.labels, one.logits) for one in predictions]
    return Group(
        arm=runs[0].arm, condition=runs[0].condition.name, label=label, seeds=tuple(run.seed for run in runs),
        metrics=_columns(each),
        correct=np.array([one.logits.argmax(axis=1) == one.labels for one in predictions]),
        confusions=np.array([evaluation.confusion(one.labels, one.logits) for one in predictions]),
        per_class={name: np.array([[row[name] for row in rows] for rows in by_class])
                   for name in ("precision", "recall", "f1")},
        reliability=_pooled_reliability(predictions),
        curves=tuple(folder.curve(run) for run in runs),
        epochs=tuple(int(result["epochs"]) for result in results),
        best_epochs=tuple(int(result["best_epoch"]) for result in results),
        seconds=tuple(float(result["seconds"]) for result in results))


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, Floats]:
    return {name: np.array([row[name] for row in rows]) for name in METRICS}


def _pooled_reliability(predictions: Sequence[Predictions]) -> Reliability:
    return evaluation.reliability(np.concatenate([one.labels for one in predictions]),
                                  np.concatenate([one.logits for one in predictions]))


def _same_images(predictions: Predictions, first: Predictions, who: str) -> Predictions:
    """The predictions, provided that they are for the same test images in the same order."""
    if not np.array_equal(predictions.sample_ids, first.sample_ids) or not np.array_equal(predictions.labels,
                                                                                          first.labels):
        raise BadInput(f"{who}: its predictions are for other test images than the first run's; "
                       "this folder mixes data sets: run the study into a new --out")
    return predictions


# --- teachers ---------------------------------------------------------------------------------------------------------


def _teacher_predictions(folder: StudyFolder, finished: Sequence[Run]) -> dict[TeacherFit, Predictions]:
    """The predictions of each fit of a teacher.

    A teacher that failed, or is not there yet, is left out; one that a finished run learnt from must be there.
    """
    learnt_from = {folder.teacher_of(run) for run in finished if run.arm.teacher is not None}
    paths = {fit: folder.teacher_path(fit) for fit in teacher_fits(folder.study)}
    return {fit: load_predictions(path / "predictions.npz") for fit, path in paths.items()
            if path.is_dir() or path in learnt_from}


def _teacher_results(folder: StudyFolder, teachers: Fits,
                     groups: Sequence[Group]) -> tuple[TeacherResult, ...]:
    baseline = tl_arm(folder.study)
    students = [(group.condition, float(group.metrics["accuracy"].mean())) for group in groups
                if baseline is not None and group.arm.name == baseline.name]
    results = []
    for name, condition in dict.fromkeys((fit.name, fit.condition.name if fit.condition else "") for fit in teachers):
        fits = {fit: one for fit, one in teachers.items()
                if (fit.name, fit.condition.name if fit.condition else "") == (name, condition)}
        metrics = _columns([evaluation.metrics(one.labels, one.logits) for one in fits.values()])
        results_of = [folder.teacher_result(folder.teacher_path(fit)) for fit in fits]
        beside = [accuracy for where, accuracy in students if where == condition or not condition]
        weaker = bool(beside) and float(metrics["accuracy"].mean()) <= max(beside)
        results.append(TeacherResult(name, condition, folder.study.teachers[name], metrics,
                                     _pooled_reliability(list(fits.values())),
                                     int(results_of[0]["parameters"]), weaker))
    return tuple(results)
