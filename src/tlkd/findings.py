"""From a finished study's folder to what was found: verdicts, confusions, convergence, teachers; nothing is drawn here.

Fractions lie in [0, 1], epochs count from 1, and every difference is an arm minus TL, so that positive means that the
arm is the better. Only what the study's folder holds is read, and torch is not needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tlkd import album, checks, controls, difficulties, foreground, results, robustness
from tlkd.album import Overview
from tlkd.conditions import Condition
from tlkd.contrasts import Contrast, Group, Ints, contrast_all, tl_arm
from tlkd.controls import Control
from tlkd.difficulties import Difficulties
from tlkd.folder import StudyFolder
from tlkd.foreground import Explanations, Foreground
from tlkd.results import Agreement, TeacherResult
from tlkd.robustness import Robustness
from tlkd.series import base_conditions
from tlkd.specs import Arm, Study


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
    difficulties: Difficulties | None = None  # hypothesis 4, None where no condition is difficult
    controls: tuple[Control, ...] = ()
    robustness: Robustness | None = None  # None where it was not asked for, or nothing is there yet
    robustness_failures: Mapping[str, str] = field(default_factory=dict)  # run -> why

    @property
    def tl(self) -> Arm | None:
        """The arm that all others are compared with."""
        return tl_arm(self.study)

    @cached_property
    def base(self) -> tuple[str, ...]:
        """The conditions that hypotheses 1 to 3 are about."""
        return base_conditions(self.study)

    @property
    def base_groups(self) -> tuple[Group, ...]:
        """The finished runs under them."""
        return tuple(group for group in self.groups if group.condition in self.base)

    @property
    def hard(self) -> tuple[Condition, ...]:
        """The conditions that hypothesis 4 is about."""
        return tuple(each for each in self.study.conditions if not each.plain)

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
        """A contrast's arm as readers call it, with its condition where several are compared."""
        return each.label if len(self.base) == 1 else f"{each.label}, {each.condition}"

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
        return self._by_name.get((arm, condition))

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], Group]:
        """Groups are asked for once a contrast, table and figure: of thousands a search each would be quadratic."""
        return {(each.arm.name, each.condition): each for each in self.groups}


def find(folder: StudyFolder) -> Findings:
    """Read a study's folder and work out what it found; raises `BadInput` where none lies there, or a damaged one."""
    checks.refuse_damaged(folder)
    study, card = folder.study, folder.card()
    finished = folder.finished()
    seen = results.read(folder, finished)
    labels = seen.labels
    counts = list(card["counts"]["test"].values()) if labels is None else np.bincount(labels,
                                                                                      minlength=len(card["classes"]))
    planned, failures = folder.runs(), folder.failures()
    done = {run.run_id for run in finished} | set(failures)
    return Findings(
        study=study, provenance=folder.provenance, card=card, classes=tuple(card["classes"]),
        test_counts=np.asarray(counts, np.int64), groups=seen.groups,
        contrasts=contrast_all(study, seen.groups, labels) if labels is not None else (),
        teachers=seen.teachers, agreements=seen.agreements, planned=len(planned),
        failures={name: why for name, why in failures.items() if name not in {run.run_id for run in finished}},
        teacher_failures=folder.teacher_failures(),
        unfinished=tuple(run.run_id for run in planned if run.run_id not in done), stages=tuple(folder.stages()),
        explanations=foreground.find(folder), overview=album.overview(folder),
        explanation_failures=folder.explanation_failures(),
        difficulties=difficulties.examine(study, seen.groups, labels) if labels is not None else None,
        controls=controls.examine(study, seen.groups, labels) if labels is not None else (),
        robustness=robustness.find(folder, finished), robustness_failures=folder.robustness_failures())
