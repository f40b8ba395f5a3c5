"""The tables over several studies as readers see them: percentages, points, rounded."""

from collections.abc import Iterator
from typing import NamedTuple

from tlkd import spec_differences
from tlkd.comparison import Comparison, Entry, Member
from tlkd.contrasts import NOT_EXAMINED
from tlkd.layout import Table, around, mean_sd
from tlkd.wording import NONE, duration, gain, number, p_cell, percent

ALL = "All numbers: comparison.csv."


class Badges(NamedTuple):
    """An entry's verdicts: hypotheses 1 to 3, and of hypothesis 4 one for each series, with its name."""

    label: str
    words: tuple[str, str, str]
    courses: tuple[tuple[str, str], ...]


def studies(found: Comparison) -> Table:
    """What is compared: a row a study."""
    rows = []
    for member in found.members:
        findings, study = member.found, member.found.study
        counts = {split: sum(each.values()) for split, each in findings.card.get("counts", {}).items()}
        teachers = [f"{name}: {each.model}, {each.input_size} px" for name, each in study.used_teachers.items()]
        rows.append((member.label, str(member.path), study.data.source,
                     f"{study.student.model}, {study.student.input_size} px", "; ".join(teachers) or NONE,
                     *(number(counts.get(split, 0), 0) for split in ("train", "dev", "test")),
                     f"{number(member.finished, 0)} of {number(findings.planned, 0)}"))
    return Table("The studies", ("study", "folder", "data", "student", "teachers", "train", "dev", "test", "runs"),
                 tuple(rows), "", 5, dense=True, breaks=True, groups=(("", 5), ("images", 3), ("", 1)),
                 note="Runs: how many of those planned are finished.")


def gains(found: Comparison) -> Table:
    """Teacher, TL and the arm on the test split, and the gain with its tests."""
    rows: list[tuple[str, ...]] = []
    for each in found.entries:
        one = each.contrast.verdict
        rows.append((each.label, percent(each.taught), mean_sd(each.values(each.tl)), mean_sd(each.values(each.group)),
                     gain(one.gain), around(one.interval), p_cell(one.p_seed_adjusted), p_cell(one.p_image_adjusted),
                     p_cell(each.p_seed_all), p_cell(each.p_image_all), number(one.n_seeds, 0),
                     number(one.n_images, 0)))
    rows += [(member.label, *_alone(member), *[NONE] * 7, number(0, 0), NONE)
             for member in found.members if not found.of(member)]
    heads = ("study", "teacher (%)", "TL (%)", "TL+KD (%)", "gain (points)", "interval", "seeds", "images", "seeds",
             "images", "seeds", "test images")
    methods = dict.fromkeys(each.contrast.verdict.interval.method for each in found.entries)
    note = (f"Mean \N{PLUS-MINUS SIGN} standard deviation over the seeds that both arms finished. Interval: "
            f"{'; or '.join(methods) or NONE}. Tests: exact sign-flip over seeds, permutation over test images; p "
            f"adjusted by Holm, over the study's own arms and over all rows. {ALL}")
    return Table("Accuracy and gain of each study", heads, tuple(rows), "", note=note, dense=True,
                 groups=(("", 6), ("p, own study", 2), ("p, all studies", 2), ("", 2)))


def _alone(member: Member) -> tuple[str, str]:
    """The teacher and the TL students of a study that has no gain yet."""
    found = member.found
    metric = found.study.verdict.metric
    teachers = [percent(float(each.metrics[metric].mean())) for each in found.teachers]
    tl = next((group for group in found.base_groups if found.tl is not None and group.arm.name == found.tl.name), None)
    return " / ".join(teachers) or NONE, mean_sd(tl.metrics[metric]) if tl is not None else NONE


def badges(found: Comparison) -> list[Badges]:
    """The verdicts side by side."""
    return [Badges(each.label, each.words, tuple((course.series.label, course.word) for course in each.courses)
                   or (("", NOT_EXAMINED),)) for each in found.entries]


def differences(found: Comparison) -> Table:
    """Each pair: both gains, and their difference with its tests."""
    rows = []
    for each in found.pairs:
        one = each.verdict
        rows.append((each.label, each.word, gain(each.second.contrast.verdict.gain),
                     gain(each.first.contrast.verdict.gain), gain(one.gain), around(one.interval),
                     p_cell(one.p_seed_adjusted), p_cell(one.p_image_adjusted), number(one.n_seeds, 0),
                     number(one.n_images, 0)))
    one = found.pairs[0].verdict
    least = number(100 * one.smallest_gain, 1)
    methods = dict.fromkeys(f"{each.verdict.interval.method}, which covers {each.verdict.interval.covers}"
                            for each in found.pairs)
    note = (f"The second study's gain minus the first's, paired by seed and image. Interval: {'; or '.join(methods)}. "
            f"Larger or smaller: the interval lies on one side of 0 and both "
            f"adjusted p fall below {one.level:g}. As good as equal: the interval lies within {least} points either "
            "way. A difference is over the seeds that both studies have: where they are not all, it need not be that "
            "of the gains beside it.")
    heads = ("pair", "second is", "second", "first", "difference", "interval", "seeds", "images", "seeds",
             "test images")
    groups = (("", 2), ("gain", 2), ("", 2), ("Holm p" if len(found.pairs) > 1 else "p", 2), ("", 2))
    return Table("Differences of gains", heads, tuple(rows), "differences.csv", 2, note=note, dense=True,
                 groups=groups)


def attention(found: Comparison) -> Table:
    """The foreground share in both arms, where it was examined."""
    rows = []
    for each in found.entries:
        one = each.attention
        if one is not None:
            rows.append((each.label, percent(one.tl.mean), percent(one.arm.mean), gain(one.verdict.gain),
                         around(one.verdict.interval), each.words[1], number(one.n_images, 0),
                         number(one.verdict.n_seeds, 0)))
    heads = ("study", "TL (%)", "TL+KD (%)", "gain (points)", "interval", "hypothesis 2", "images with a mask", "seeds")
    return Table("Foreground share: how much of the positive attribution lies on the object", heads, tuple(rows),
                 "", note=f"Shares of other images, or of other masks, are not comparable as they stand. {ALL}")


def speed(found: Comparison) -> Table:
    """Epochs to each study's own primary threshold, and to the one that all reach."""
    common = found.common_threshold
    rows = []
    for each in found.entries:
        own, shared = each.contrast.speed.primary, each.reaches(common)
        cells = [NONE] * 4 if own is None else [f"{percent(own.threshold, 0)} %", number(own.tl_mean, 1),
                                                number(own.tl_kd_mean, 1), number(own.gain, 1, sign=True)]
        cells += [NONE] * 3 if shared is None else [number(shared.tl_mean, 1), number(shared.tl_kd_mean, 1),
                                                    number(shared.gain, 1, sign=True)]
        rows.append((each.label, *cells, each.words[2]))
    shown = "no accuracy" if common is None else f"{percent(common, 0)} %, which all reach"
    heads = ("study", "threshold", "TL", "TL+KD", "earlier by", "TL", "TL+KD", "earlier by", "hypothesis 3")
    note = ("Mean epochs within those that all of a study's runs trained; a run that does not get there counts as the "
            "last of them. A study's own threshold is the highest that at least half of its TL runs reach: thresholds "
            "differ, and the verdict is on one's own.")
    return Table("Epochs to an accuracy", heads, tuple(rows), "", note=note, dense=True,
                 groups=(("", 2), ("to the study's own threshold", 3), (f"to {shown}", 3), ("", 1)))


def networks(found: Comparison) -> Table:
    """Student and teacher, and what they cost."""
    rows = [row for member in found.members for row in _networks(found, member)]
    heads = ("study", "student", "teacher", "ratio", "a TL run", "a TL+KD run", "teachers and banks", "all runs")
    note = ("Parameters with the new head. Times are those of the making, whichever study made what several share; "
            f"explanations are not counted. {ALL}")
    return Table("Parameters and time", heads, tuple(rows), "", dense=True, note=note,
                 groups=(("", 1), ("parameters", 3), ("time", 4)))


def _networks(found: Comparison, member: Member) -> Iterator[tuple[str, ...]]:
    size = member.parameters
    total = (duration(member.stage_seconds), duration(member.run_seconds))
    for each in found.of(member):
        taught = each.teacher.parameters if each.teacher is not None else None
        yield (each.label, _size(size), _size(taught), number(taught / size, 2) if taught and size else NONE,
               _mean_time(each, True), _mean_time(each, False), *total)
    if not found.of(member):
        yield (member.label, _size(size), *[NONE] * 4, *total)


def _size(parameters: int | None) -> str:
    return number(parameters, 0) if parameters else NONE


def _mean_time(entry: Entry, tl: bool) -> str:
    seconds = (entry.tl if tl else entry.group).seconds
    return duration(sum(seconds) / len(seconds))


def settings(found: Comparison, *, differing: bool) -> Table:
    """The keys that differ, or those that are equal in all studies."""
    heads = ("key", *(member.label for member in found.members)) if differing else ("key", "value")
    every = spec_differences.compare([member.found.study for member in found.members])
    rows = tuple((each.key, *(each.values if differing else each.values[:1])) for each in every
                 if each.differs == differing)
    return Table("What differs" if differing else "What is equal in all", heads, rows, "settings.csv", len(heads),
                 dense=True, breaks=True)
