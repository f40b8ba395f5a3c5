"""Difficulties, controls and robustness as readers see them: tables and captions, percentages and points, rounded."""

import math
from collections.abc import Iterator

import numpy as np

from tlkd.contrasts import SAME_AS_TL, arm_label
from tlkd.controls import Control
from tlkd.difficulties import Course, Peak, Trend
from tlkd.difficulty_evidence import explained_by
from tlkd.difficulty_tables import compared, teacher_accuracy
from tlkd.distortions import LABELS
from tlkd.findings import Findings
from tlkd.layout import Table, around, mean_sd
from tlkd.robustness import ALL
from tlkd.series import CORRUPTION, LABEL_NOISE, TRAIN_FRACTION, Series, at, in_words
from tlkd.statistics import Verdict
from tlkd.wording import NONE, count, gain, listed, number, p_cell, percent

THESIS = {TRAIN_FRACTION: "figure 6.10", LABEL_NOISE: "figure 6.11", "center_black": "figures 6.12 and 6.13"}


# --- difficulties -----------------------------------------------------------------------------------------------------


def title(series: Series) -> str:
    """What the figure of a series is called."""
    first = series.places[-1].condition
    kind = first.corruption.kind if series.quantity == CORRUPTION and first.corruption is not None else series.quantity
    thesis = f" (the thesis's {THESIS[kind]})" if kind in THESIS else ""
    return f"{series.label[:1].upper()}{series.label[1:]}{thesis}"


def caption(found: Findings, series: Series) -> str:
    """What its lines and bands are."""
    level = number(100 * (1 - found.study.verdict.level), 0)
    beside = series.quantity == CORRUPTION
    f1 = " The interval of the gain in F1 is Student's over seeds: it describes." if beside else ""
    teacher = " Grey: the accuracy of the teacher that labels there." if found.teachers else ""
    controls = " Dashed: controls." if any(arm.control for arm in found.study.arms) else ""
    return (f"Above: mean over seeds, bands one standard deviation either way.{controls}{teacher} Below: the gain over "
            f"TL with its {level} % interval; the star marks the largest, the dashed line the smallest gain that "
            f"matters.{f1}")


def courses(found: Findings) -> Table:
    """Hypothesis 4: the average gain of each arm over the difficult places of each series."""
    every = found.difficulties.courses if found.difficulties is not None else ()
    rows = []
    for each in every:
        places = sum(not place.easy for place in each.places)
        head = (each.series.label if not each.series.lone else f"{each.series.places[0].name}, alone", each.label,
                each.word)
        rows.append((*head, number(places, 0), *(_judged(each.verdict) if each.verdict is not None else [NONE] * 5)))
    note = ("The average over all places but the easy end, over the seeds common to them. Holm-adjusted p over all "
            "arms and series, a family of their own.")
    return Table("Hypothesis 4: the average gain under each difficulty",
                 ("difficulty", "arm", "verdict", "places", "gain (points)", "interval", "Holm p, seeds",
                  "Holm p, images", "seeds"), tuple(rows), "series.csv", 3, note=note, dense=True)


def _judged(verdict: Verdict) -> list[str]:
    return [gain(verdict.gain), around(verdict.interval), p_cell(verdict.p_seed_adjusted),
            p_cell(verdict.p_image_adjusted), number(verdict.n_seeds, 0)]


def shapes(found: Findings) -> Table | None:
    """The trend and the peak of each arm's gain along each series; None where no series has two places."""
    every = found.difficulties.courses if found.difficulties is not None else ()
    rows = tuple((each.series.label, each.label, *_trend(each.trend), *_peak(each, each.peak))
                 for each in every if each.trend is not None and each.peak is not None)
    groups = (("", 2), ("trend, easiest to hardest", 5), ("peak", 4))
    heads = ("difficulty", "arm", "trend", "change (points)", "interval", "Holm p, seeds", "Holm p, images", "at",
             "gain (points)", "resamples there (%)", "inside: Holm p")
    note = ("Trend: the gain's least-squares change over the places' ranks (Page, 1963, with the gains themselves), "
            "tested as a gain is. Resamples: of 9,999 over seeds and images, the share that has its largest gain at "
            "the peak. Inside: that an inner place exceeds both ends; the place is chosen by the other seeds, p is the "
            "larger of two (sign-flip over seeds; intersection-union, Berger, 1982). A dash: fewer than three places "
            "or two seeds. Trends and peaks are two families.")
    return Table("Trend and peak of the gain", heads, rows, "series.csv", 2, note=note, groups=groups,
                 dense=True) if rows else None


def _trend(trend: Trend | None) -> list[str]:
    if trend is None:
        return [NONE] * 5
    verdict = trend.verdict
    return [trend.word, gain(verdict.gain), around(verdict.interval), p_cell(verdict.p_seed_adjusted),
            p_cell(verdict.p_image_adjusted)]


def _peak(each: Course, peak: Peak | None) -> list[str]:
    if peak is None:
        return [NONE] * 4
    own = peak.shares[each.places.index(peak.place)]
    return [at(each.series, peak.place), gain(peak.gain),
            percent(own, 0) if math.isfinite(own) else NONE, p_cell(peak.p_adjusted)]


def gains(found: Findings) -> Table:
    """Each `tl_kd` arm's gain under every condition."""
    taught, metric, rows = bool(found.teachers), found.study.verdict.metric, []
    for condition, tl, group, verdict in compared(found):
        cells = [SAME_AS_TL, *[NONE] * 4] if verdict is None else [verdict.word, *_judged(verdict)[:4]]
        levels = [percent(float(each.metrics[metric].mean())) for each in (tl, group)]
        teacher = [percent(teacher_accuracy(found, group.arm.teacher, condition), 1)] if taught else []
        rows.append((condition.name, in_words(condition), group.label, *levels, *cells[1:], cells[0],
                     number(len(set(tl.seeds) & set(group.seeds)), 0), *teacher))
    hard = found.difficulties.gains if found.difficulties is not None else ()
    note = ("Holm-adjusted p: of plain conditions in hypothesis 1's family, of the others in one over "
            f"{count(len(hard), 'pair')} of arm and condition.")
    note += _out_of_reach(len(hard), max((each.verdict.n_seeds for each in hard), default=1), found.study.verdict.level)
    heads = ("condition", "training samples", "arm", "TL (%)", "arm (%)", "gain (points)", "interval",
             "Holm p, seeds", "Holm p, images", "verdict", "seeds", *(("teacher (%)",) if taught else ()))
    return Table("The gain under every condition", heads, tuple(rows), "difficulties.csv", 3, note=note, dense=True,
                 wraps=True)


def _out_of_reach(contrasts: int, seeds: int, level: float) -> str:
    """Whether a family is too large for its seeds, in a sentence."""
    smallest = min(1.0, 2.0 ** (1 - seeds) * contrasts)
    return "" if smallest < level else (f" With so many and {count(seeds, 'seed')} no p over seeds can fall below "
                                        f"{number(smallest, 3)}: none of these alone can be supported.")


def teaching(found: Findings) -> Iterator[str]:
    """For each teacher on what it was fitted and which image it labels, a sentence each."""
    for name, teacher in found.study.used_teachers.items():
        fitted = ("is taken as it is (`fit: false`)" if not teacher.fit else
                  "is fitted on the clean training set (`trained_on: clean`), under every condition" if
                  teacher.trained_on == "clean" else
                  "is fitted under each condition on the samples that its student draws (`trained_on: condition`), for "
                  "each seed")
        view = ("labels the image that its student sees (`labels: same_view`)" if teacher.labels == "same_view" else
                "labels the clean image, whatever its student sees (`labels: clean_view`)")
        yield f"The teacher {name} {fitted}; it {view}."


# --- controls ---------------------------------------------------------------------------------------------------------


def reasons(found: Findings) -> list[tuple[str, str]]:
    """By condition a sentence on what the controls keep, the base conditions first."""
    said = list(explained_by(found.controls))
    return sorted(said, key=lambda pair: pair[0] not in found.base)


def controls(found: Findings, base: bool) -> Table | None:
    """What each control keeps of the gain, and the arm minus the control: under the base conditions, or the others."""
    here = [each for each in found.controls if (each.condition in found.base) == base]
    if not here:
        return None
    several, many = len({each.kd.name for each in found.controls}) > 1, len({each.condition for each in here}) > 1
    rows = [(*((each.condition,) if many else ()), each.label, *((each.kd_label,) if several else ()),
             gain(each.kd_gain), gain(each.gain), around(each.interval), _kept(each),
             gain(each.difference.gain), around(each.difference.interval), p_cell(each.difference.p_seed_adjusted),
             p_cell(each.difference.p_image_adjusted), each.difference.word) for each in here]
    kd, first = "TL+KD" if several else here[0].kd_label, 1 + several + many
    groups = (("", first), (kd, 1), ("control", 3), (f"{kd} minus control", 5))
    heads = (*(("condition",) if many else ()), "control", *(("of",) if several else ()), "gain over TL",
             "gain over TL", "interval", "kept (%)", "difference", "interval", "Holm p, seeds", "Holm p, images",
             "verdict")
    seeds = max(each.difference.n_seeds for each in found.controls)
    note = (f"In points. Kept: the control's gain as a part of {kd}'s, with its interval; a dash where {kd}'s own "
            "interval does not lie above 0. Verdict: supported where the arm is surely better than the control, "
            "refuted where surely not by what matters. Holm-adjusted over "
            f"{count(here[0].difference.contrasts, 'pair')} of control and condition, apart from all hypotheses."
            f"{_out_of_reach(here[0].difference.contrasts, seeds, found.study.verdict.level)}")
    return Table("What the controls keep" + ("" if base else " under difficulties"), heads, tuple(rows), "controls.csv",
                 first, note=note, groups=groups, dense=True)


def _kept(each: Control) -> str:
    if math.isnan(each.kept):
        return NONE
    between = "" if math.isnan(each.kept_low) else f" ({percent(each.kept_low, 0)} to {percent(each.kept_high, 0)})"
    return percent(each.kept, 0) + between


# --- robustness -------------------------------------------------------------------------------------------------------


def robustness(found: Findings) -> Table:
    """Each arm's mean accuracy over the degrees of each kind, under the base conditions, and its gain over TL."""
    labels = {arm.name: arm_label(found.study, arm) for arm in found.study.arms}
    several = len(found.base) > 1
    rows = []
    for level in found.robustness.levels if found.robustness is not None else ():
        if level.condition not in found.base:
            continue
        shown = len(level.gains) > 0
        interval = f"{gain(level.low)} to {gain(level.high)}" if math.isfinite(level.low) else NONE
        rows.append((("all degrees of all kinds" if level.kind == ALL else LABELS[level.kind]),
                     labels[level.arm] + (f", {level.condition}" if several else ""), mean_sd(level.accuracy),
                     gain(float(np.mean(level.gains))) if shown else NONE, interval,
                     number(len(level.accuracy), 0)))
    rows.sort(key=lambda row: (row[0] == "all degrees of all kinds", row[0]))
    note = ("Mean accuracy over all degrees, in percent \N{PLUS-MINUS SIGN} standard deviation over seeds; the gain in "
            "points with Student's interval over seeds. Described, not tested.")
    return Table("Accuracy on distorted test images", ("distortion", "arm", "accuracy (%)", "gain over TL (points)",
                 "interval", "seeds"), tuple(rows), "robustness.csv", 2, note=note)


def unexplained(found: Findings) -> str:
    """The difficult conditions that have no finished pair of runs, in a sentence; empty where all have."""
    seen = {condition.name for condition, _, _, _ in compared(found)}
    missing = [each.name for each in found.hard if each.name not in seen]
    return f"No seed has a finished run in both arms under {listed(missing)}." if missing else ""
