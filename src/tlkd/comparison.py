"""Several studies side by side: each one's gains, and where they share images, student and seeds, their differences.

Fractions lie in [0, 1]; a gain is an arm minus TL within a study, a difference the second study's gain minus the
first's. Read from the studies' folders alone, without torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkd import statistics
from tlkd.contrasts import NOT_EXAMINED, Contrast, Floats, Group, given_teacher, image_weights
from tlkd.convergence import Convergence
from tlkd.difficulties import Course
from tlkd.difficulty_tables import compared
from tlkd.errors import BadInput
from tlkd.evidence import hurts
from tlkd.findings import Findings, find
from tlkd.folder import StudyFolder
from tlkd.foreground import Compared
from tlkd.results import TeacherResult
from tlkd.series import Place, Series
from tlkd.specs import Student
from tlkd.statistics import Verdict

LARGER, SMALLER, ALIKE, SAME, OPEN = "larger", "smaller", "as good as equal", "the same students", "cannot tell"
OTHER_IMAGES = "other images"


@dataclass(frozen=True, eq=False)
class Member:
    """One of the studies; `sample_ids` and `labels [image]` of its test split, empty where no run has finished."""

    label: str
    path: Path
    found: Findings
    content: str  # the hash of its images, labels and splits
    sample_ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    parameters: int | None  # of its student, None where no run has finished or none says

    @property
    def finished(self) -> int:
        """How many of its planned runs are there."""
        return self.found.planned - len(self.found.failures) - len(self.found.unfinished)

    @property
    def stage_seconds(self) -> float:
        """What its teachers and banks cost when they were made."""
        return float(sum(stage["seconds"] for stage in self.found.stages))

    @property
    def run_seconds(self) -> float:
        """What all its runs cost."""
        return float(sum(sum(group.seconds) for group in self.found.groups))


@dataclass(frozen=True, eq=False)
class Entry:
    """One `tl_kd` arm of one study against TL, under one of the conditions that hypotheses 1 to 3 are about."""

    member: Member
    label: str
    contrast: Contrast
    tl: Group
    group: Group
    teacher: TeacherResult | None
    p_seed_all: float = math.nan  # Holm-adjusted over all entries of all studies
    p_image_all: float = math.nan

    @property
    def metric(self) -> str:
        """The study's primary endpoint."""
        return self.member.found.study.verdict.metric

    def values(self, group: Group) -> Floats:
        """The endpoint of TL or of the arm, `[seed]`, over the seeds that both finished."""
        return np.array([group.value(self.metric, seed) for seed in self.contrast.seeds])

    @property
    def taught(self) -> float:
        """The teacher's endpoint, the mean over its fits; nan without a teacher."""
        return math.nan if self.teacher is None else float(self.teacher.metrics[self.metric].mean())

    @property
    def lead(self) -> float:
        """How far the teacher's endpoint lies above the TL students'; nan without a teacher."""
        return self.taught - float(self.values(self.tl).mean())

    @property
    def words(self) -> tuple[str, str, str]:
        """The verdicts on hypotheses 1 to 3."""
        return self.member.found.word(self.contrast), self._attends, self.contrast.speed.word

    @property
    def _attends(self) -> str:
        one = self.member.found.foreground(self.contrast)
        return NOT_EXAMINED if one is None else one.word

    @property
    def courses(self) -> tuple[Course, ...]:
        """Hypothesis 4: the arm along each series of difficulties."""
        found = self.member.found.difficulties
        return () if found is None else tuple(each for each in found.courses
                                              if each.arm.name == self.contrast.arm.name)

    @property
    def attention(self) -> Compared | None:
        """The foreground share on all images with a mask, in both arms."""
        one = self.member.found.foreground(self.contrast)
        return None if one is None else one.everything

    def reaches(self, threshold: float | None) -> Convergence | None:
        """How early both arms reach an accuracy, one of the whole percents that are looked at."""
        return next((each for each in self.contrast.speed.thresholds
                     if threshold is not None and abs(each.threshold - threshold) < 1e-9), None)

    @property
    def student(self) -> Student:
        """The student under the entry's condition."""
        study = self.member.found.study
        return study.student_of(next(each for each in study.conditions if each.name == self.contrast.condition))

    @property
    def sure(self) -> bool:
        """Whether the arm is surely better or surely worse than TL, within its own study."""
        return self.contrast.verdict.word == "supported" or hurts(self.contrast)

    @property
    def stands(self) -> bool:
        """Whether it still is when all studies' entries are one family of tests."""
        return self.sure and max(self.p_seed_all, self.p_image_all) < self.contrast.verdict.level


@dataclass(frozen=True, eq=False)
class Pair:
    """Two entries of different studies with the same test images, student and (some) seeds.

    `verdict`: the second's gain minus the first's, `[seed, image]`, of one family over all pairs. `same_tl`: whether
    both studies have the same TL students, so that the difference is one between the two arms alone.
    """

    first: Entry
    second: Entry
    seeds: tuple[int, ...]
    verdict: statistics.Verdict
    same_tl: bool
    nothing_differs: bool

    @property
    def label(self) -> str:
        """The second minus the first, with the arm where both studies have several."""
        first, second = self.first, self.second
        if first.label == first.member.label or first.contrast.arm.name != second.contrast.arm.name:
            return f"{second.label} minus {first.label}"
        return f"{second.member.label} minus {first.member.label}{second.label.removeprefix(second.member.label)}"

    @property
    def word(self) -> str:
        """Whether the second's gain is surely larger or smaller, surely within the smallest gain, or neither."""
        one = self.verdict
        if self.nothing_differs:
            return SAME
        sure = max(one.p_seed_adjusted, one.p_image_adjusted) < one.level
        if sure and one.interval.low > 0:
            return LARGER
        if sure and one.interval.high < 0:
            return SMALLER
        within = -one.smallest_gain < one.interval.low and one.interval.high < one.smallest_gain
        return ALIKE if within else OPEN


@dataclass(frozen=True)
class Unpaired:
    """Two studies whose gains cannot be compared by a paired test, and why."""

    first: Member
    second: Member
    why: str


@dataclass(frozen=True)
class Line:
    """One entry's gains along a series that several studies have: its places, each with a verdict."""

    entry: Entry
    series: Series
    places: tuple[tuple[Place, Verdict], ...]


@dataclass(frozen=True)
class Comparison:
    """All that several studies say side by side."""

    members: tuple[Member, ...]
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    unpaired: tuple[Unpaired, ...]

    def of(self, member: Member) -> tuple[Entry, ...]:
        """A study's entries."""
        return tuple(each for each in self.entries if each.member is member)

    @cached_property
    def data(self) -> tuple[tuple[Member, ...], ...]:
        """The studies by their images: those in one tuple have the same."""
        contents = dict.fromkeys(each.content for each in self.members)
        return tuple(tuple(each for each in self.members if each.content == content) for content in contents)

    @property
    def common_threshold(self) -> float | None:
        """The highest accuracy that at least half of TL's runs reach in every entry; None where there is none."""
        primaries = [each.contrast.speed.primary for each in self.entries]
        known = [each.threshold for each in primaries if each is not None]
        return min(known) if known and len(known) == len(primaries) else None


def compare(folders: Sequence[Path], labels: Sequence[str] = ()) -> Comparison:
    """Read the studies and work out what they say together; `labels` name them in place of their own names.

    Raises `BadInput` for fewer than two folders, the same one twice, one without a study, or labels that do not fit.
    """
    _check(folders, labels)
    opened = [StudyFolder(path) for path in folders]
    names = list(labels) or _labels([each.study.name for each in opened], folders)
    members = tuple(_member(folder, label) for folder, label in zip(opened, names, strict=True))
    entries = tuple(_over_all([entry for member in members for entry in _entries(member)]))
    pairs, unpaired = _pairs(members, entries)
    return Comparison(members, entries, pairs, unpaired)


def _check(folders: Sequence[Path], labels: Sequence[str]) -> None:
    if len(folders) < 2:
        found = f"one folder, {folders[0]}" if folders else "no folder"
        raise BadInput(f"tlkd compare: found {found}; name at least two studies' folders")
    seen: dict[Path, Path] = {}
    for path in folders:
        place = path.resolve()
        if place in seen:
            both = f"{path} twice" if seen[place] == path else f"{seen[place]} and {path}, which are one folder"
            raise BadInput(f"tlkd compare: found {both}; each study may be named once")
        seen[place] = path
    if labels and len(labels) != len(folders):
        raise BadInput(f"--label: found {len(labels)} for {len(folders)} folders; give one for each, in their order, "
                       "or none")
    twice = next((label for label in labels if list(labels).count(label) > 1), None)
    if twice is not None:
        raise BadInput(f"--label: found {twice!r} more than once; each study needs a name of its own")
    if not all(label.strip() for label in labels):
        raise BadInput("--label: found an empty name; give each study one")


def _labels(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The studies' names; where two have one, their folders' names, and where these are the same too, their paths."""
    for labels in (list(names), [path.resolve().name for path in folders], [str(path) for path in folders]):
        if len(set(labels)) == len(labels):
            return labels
    return [str(path.resolve()) for path in folders]


def _member(folder: StudyFolder, label: str) -> Member:
    found, finished = find(folder), folder.finished()
    first = folder.predictions(finished[0]) if finished else None
    none = np.zeros(0, np.int64)
    return Member(label, folder.path, found, str(found.card.get("content", folder.path.resolve())),
                  first.sample_ids if first is not None else none.astype(np.str_),
                  first.labels if first is not None else none,
                  folder.result(finished[0]).get("parameters") if finished else None)


def _entries(member: Member) -> Iterator[Entry]:
    found = member.found
    for each, tl, group in found.pairs():
        if not each.same_as_tl:
            label = member.label if len(found.tested) == 1 else f"{member.label}, {found.label(each)}"
            teachers = [one for one in found.teachers if one.name == each.arm.teacher
                        and one.condition in ("", each.condition)]
            yield Entry(member, label, each, tl, group, teachers[-1] if teachers else None)


def _over_all(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries with their p adjusted over all of them."""
    by_seed = statistics.holm([each.contrast.verdict.p_seed for each in entries])
    by_image = statistics.holm([each.contrast.verdict.p_image for each in entries])
    for each, p_seed, p_image in zip(entries, by_seed, by_image, strict=True):
        yield Entry(each.member, each.label, each.contrast, each.tl, each.group, each.teacher, float(p_seed),
                    float(p_image))


# --- differences of gains ---------------------------------------------------------------------------------------------


def _pairs(members: Sequence[Member], entries: Sequence[Entry]) -> tuple[tuple[Pair, ...], tuple[Unpaired, ...]]:
    """Every two entries that can be compared, judged as one family; and the studies of which no two can."""
    matched: list[tuple[Entry, Entry]] = []
    unpaired: list[Unpaired] = []
    for first, second in combinations(members, 2):
        why, found = _why_not(first, second), []
        if not why:
            candidates = _candidates([each for each in entries if each.member is first],
                                     [each for each in entries if each.member is second])
            fitting = [pair for pair in candidates if pair[0].student == pair[1].student]
            found = [pair for pair in fitting if _common(*pair)]
            why = ("" if found else "no seed in common" if fitting else "another student" if candidates
                   else "no arm of one name, under one condition")
        matched += found
        if why:
            unpaired.append(Unpaired(first, second, why))
    return tuple(_judged(matched)), tuple(unpaired)


def _why_not(first: Member, second: Member) -> str:
    """What in two studies rules every paired test out."""
    one, other = first.found.study, second.found.study
    none = [each.label for each in (first, second) if not each.found.tested]
    if none:
        return f"no gain yet in {none[0]}"
    if first.content != second.content or not np.array_equal(first.sample_ids, second.sample_ids) or (
            not np.array_equal(first.labels, second.labels)):
        return OTHER_IMAGES
    if one.verdict.metric != other.verdict.metric:
        return f"another metric: {one.verdict.metric} and {other.verdict.metric}"
    if one.selection != other.selection:
        return "one of them was chosen on the test split (selection: test)"
    return ""


def _candidates(first: Sequence[Entry], second: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Entries with the same arm's name under the same condition; the only ones of both studies, whatever their name."""
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    return [(one, other) for one in first for other in second
            if (one.contrast.arm.name, one.contrast.condition) == (other.contrast.arm.name, other.contrast.condition)]


def _common(first: Entry, second: Entry) -> tuple[int, ...]:
    return tuple(seed for seed in first.contrast.seeds if seed in second.contrast.seeds)


def _judged(matched: Sequence[tuple[Entry, Entry]]) -> Iterator[Pair]:
    if not matched:
        return
    rules = [entry.member.found.study.verdict for pair in matched for entry in pair]
    tables = {str(number): _difference(*pair) for number, pair in enumerate(matched)}
    given = {str(number): "one teacher each" for number, pair in enumerate(matched) if any(map(_one_teacher, pair))}
    smallest, level = min(rule.smallest_gain for rule in rules), min(rule.level for rule in rules)
    alike = {str(number): (_alike(*pair, tl=True), _alike(*pair, tl=False)) for number, pair in enumerate(matched)}
    verdicts: dict[str, Verdict] = {}
    for nothing_differs in (False, True):  # what is the same is no test, and makes no family larger
        verdicts |= statistics.verdicts({name: table for name, table in tables.items()
                                         if all(alike[name]) == nothing_differs}, smallest, level, given)
    for name, (first, second) in zip(tables, matched, strict=True):
        yield Pair(first, second, _common(first, second), verdicts[name], alike[name][0], all(alike[name]))


def _alike(first: Entry, second: Entry, *, tl: bool) -> bool:
    """Whether the TL students, or those of the arm, are right and wrong on the same images in both studies."""
    one, other = (_correct(each.tl if tl else each.group, _common(first, second)) for each in (first, second))
    return np.array_equal(one, other)


def _correct(group: Group, seeds: Sequence[int]) -> NDArray[np.bool_]:
    return group.correct[[group.seeds.index(seed) for seed in seeds]]


def _difference(first: Entry, second: Entry) -> Floats:
    """The second's gain minus the first's, `[seed, image]`, over the seeds that both have."""
    seeds = _common(first, second)
    weights = image_weights(first.member.labels, first.member.found.study.verdict.metric)
    gains = [_correct(each.group, seeds).astype(np.float64) - _correct(each.tl, seeds) for each in (first, second)]
    return np.asarray((gains[1] - gains[0]) * weights, np.float64)


def _one_teacher(entry: Entry) -> bool:
    study = entry.member.found.study
    conditions = [each for each in study.conditions if each.name == entry.contrast.condition]
    return bool(given_teacher(study, entry.contrast.arm, conditions))


# --- difficulties -----------------------------------------------------------------------------------------------------


def shared_series(found: Comparison) -> dict[str, list[Line]]:
    """By key the series that at least two studies have gains along, a line an entry."""
    lines: dict[tuple[str, str], list[Line]] = {}
    for member in found.members:
        examined = member.found.difficulties
        verdicts = {(group.arm.name, condition.name): verdict
                    for condition, _, group, verdict in compared(member.found) if verdict is not None}
        for series in examined.series if examined is not None else ():
            for entry in _first_of_each_arm(found, member.label):
                places = tuple((place, verdicts[entry.contrast.arm.name, place.name]) for place in series.places
                               if (entry.contrast.arm.name, place.name) in verdicts)
                if not series.lone and len(places) > 1:
                    lines.setdefault((series.quantity, series.label), []).append(Line(entry, series, places))
    shared = [each for each in lines.values() if len({line.entry.member.label for line in each}) > 1]
    return {f"{number}_{each[0].series.quantity}": each for number, each in enumerate(shared, 1)}


def _first_of_each_arm(found: Comparison, label: str) -> list[Entry]:
    """A study's entries, one an arm: of an arm under several base conditions the first."""
    entries = [each for each in found.entries if each.member.label == label]
    return list({each.contrast.arm.name: each for each in reversed(entries)}.values())[::-1]
