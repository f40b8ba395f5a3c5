"""Figures of difficulties: accuracy and gain along each series (the thesis's 6.10 to 6.13), and on distorted images."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from tlkd import figures, statistics
from tlkd.contrasts import Floats, Group
from tlkd.difficulties import Course
from tlkd.difficulty_tables import compared, teacher_accuracy
from tlkd.distortions import LABELS
from tlkd.figures import GREY, Drawing, Maker
from tlkd.findings import Findings
from tlkd.robustness import Curve
from tlkd.series import AXES, CORRUPTION, Place, Series, under
from tlkd.specs import Arm

SERIES = 12  # that are drawn: series.csv and difficulties.csv hold all
MARKERS = "oDs^vP"
NOTHING = (float("nan"),) * 3
APART = 0.06  # of an axis: labels of places that lie closer are left out
LONG = 12  # letters: longer names of distortions are turned
DEGREES = {"severity": "severity", "size": "side of the square (of the image's)"}


def draw(found: Findings) -> list[Drawing]:
    """A figure a series that has two places with results, and one of robustness a base condition."""
    makers: list[Maker] = []
    for series in found.difficulties.series if found.difficulties is not None else ():
        if not series.lone and len(_there(found, series)) > 1:
            if len(makers) == SERIES:
                break
            makers.append((f"difficulty_{series.key}", f"{under(series)}: each arm's accuracy, and its gain over TL",
                           partial(along, found, series)))
    for condition in found.base:
        curves = [] if found.robustness is None else [each for each in found.robustness.curves
                                                      if each.condition == condition]
        if curves:
            makers.append((f"robustness_{condition}", "Accuracy of each arm on distorted test images, by degree",
                           partial(robustness, found, curves)))
    return figures.render_all(makers)


def _there(found: Findings, series: Series) -> list[Place]:
    """The places that some arm has results for."""
    return [place for place in series.places if any(group.condition == place.name for group in found.groups)]


# --- along a series ---------------------------------------------------------------------------------------------------


def along(found: Findings, series: Series) -> Figure:
    """Above each arm's level, mean and sd over seeds; below its gain with its interval; for corruptions F1 beside."""
    places, beside = _there(found, series), series.quantity == CORRUPTION
    figure = Figure(figsize=(8.2, 5.9), layout="constrained")
    axes = np.array(figure.subplots(2, 2 if beside else 1, sharex=True, squeeze=False, height_ratios=(1.15, 1)))
    metric = found.study.verdict.metric
    _levels(axes[0, 0], found, places, metric)
    _tested_gains(axes[1, 0], found, series, places)
    axes[0, 0].set_ylabel(f"{figures.METRIC[metric]} (%)")
    axes[1, 0].set_ylabel("gain over TL (points)")
    if beside:
        _levels(axes[0, 1], found, places, "f1")
        _f1_gains(axes[1, 1], found, places)
        axes[0, 1].set_ylabel("F1, macro (%)")
        axes[1, 1].set_ylabel("gain in F1 (points)")
    for each in axes.ravel():
        each.grid(color="#eceff1", linewidth=0.7)
    for each in axes[1]:
        place_axis(each, series, places)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4, columnspacing=1.6)
    return figure


def _levels(axes: Axes, found: Findings, places: Sequence[Place], metric: str) -> None:
    """Each arm's mean and sd over seeds; a line joins neighbouring places alone, where an arm was run under both."""
    for number, arm in enumerate(found.study.arms):
        groups = [found.group(arm.name, place.name) for place in places]
        if not any(groups):
            continue
        shade, across = figures.colour(found, arm.name), 100 * np.array([place.number for place in places])
        values = [np.full(1, np.nan) if group is None else 100 * group.metrics[metric] for group in groups]
        means, sds = (np.array([measure(each) for each in values]) for measure in (np.mean, _sd))
        axes.fill_between(across, means - sds, means + sds, color=shade, alpha=0.06 if arm.control else 0.16,
                          linewidth=0)
        axes.plot(across, means, color=shade, label=figures.label(found, arm.name), zorder=2 if arm.control else 3,
                  marker=MARKERS[number % len(MARKERS)], markersize=3.5 if arm.control else 4.5,
                  linewidth=1.1 if arm.control else 1.9, linestyle=(0, (4, 2)) if arm.control else "-")
    if metric == "accuracy":
        _teacher_lines(axes, found, places)


def _sd(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _teacher_lines(axes: Axes, found: Findings, places: Sequence[Place]) -> None:
    """Each teacher's own accuracy, under the condition where it was fitted there."""
    for number, name in enumerate(found.study.used_teachers):
        levels = [(place.number, teacher_accuracy(found, name, place.condition)) for place in places]
        known = [(100 * place, 100 * level) for place, level in levels if np.isfinite(level)]
        if known:
            axes.plot(*zip(*known, strict=True), color=GREY, linewidth=1.3, linestyle=(":", "-.")[number % 2],
                      marker=".", markersize=4, zorder=1, label=f"teacher {name}")


def _tested_gains(axes: Axes, found: Findings, series: Series, places: Sequence[Place]) -> None:
    verdicts = {(group.arm.name, condition.name): verdict for condition, _, group, verdict in compared(found)
                if verdict is not None}
    smallest = 100 * found.study.verdict.smallest_gain
    axes.axhline(0, color=GREY, linewidth=1, zorder=1)
    axes.axhline(smallest, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for course in found.difficulties.of(series) if found.difficulties is not None else ():
        rows = [(verdict.gain, verdict.interval.low, verdict.interval.high) if verdict is not None else NOTHING
                for place in places for verdict in [verdicts.get((course.arm.name, place.name))]]
        _banded(axes, found, course.arm, places, rows)
        _mark_peak(axes, found, course)


def _banded(axes: Axes, found: Findings, arm: Arm, places: Sequence[Place],
            rows: Sequence[tuple[float, float, float]]) -> None:
    """A line and the band around it, from a gain and the ends of its interval a place; nan leaves a gap."""
    across, (middle, low, high) = 100 * np.array([place.number for place in places]), 100 * np.array(rows).T
    shade, number = figures.colour(found, arm.name), [each.name for each in found.study.arms].index(arm.name)
    axes.fill_between(across, np.maximum(low, -100), np.minimum(high, 100), color=shade, alpha=0.16, linewidth=0)
    axes.plot(across, middle, color=shade, marker=MARKERS[number % len(MARKERS)], markersize=4.5, linewidth=1.9)


def _mark_peak(axes: Axes, found: Findings, course: Course) -> None:
    if course.peak is not None:
        axes.plot([100 * course.peak.place.number], [100 * course.peak.gain], marker="*", markersize=13,
                  color=figures.colour(found, course.arm.name), markeredgecolor="white", zorder=4)


def _f1_gains(axes: Axes, found: Findings, places: Sequence[Place]) -> None:
    """The gain in F1 with Student's interval over seeds: described, not tested."""
    axes.axhline(0, color=GREY, linewidth=1, zorder=1)
    for arm in found.study.arms:
        if arm.kind == "tl_kd" and found.tl is not None:
            gains = [_paired(found.group(found.tl.name, place.name), found.group(arm.name, place.name), "f1")
                     for place in places]
            rows = [(float(np.mean(each)), *statistics.t_interval(each, found.study.verdict.level)) if each else NOTHING
                    for each in gains]
            _banded(axes, found, arm, places, rows)


def _paired(tl: Group | None, group: Group | None, metric: str) -> list[float]:
    """An arm's gains over the seeds of both, none where either has none."""
    if tl is None or group is None:
        return []
    return [group.value(metric, seed) - tl.value(metric, seed) for seed in group.seeds if seed in tl.seeds]


def place_axis(axes: Axes, series: Series, places: Sequence[Place]) -> None:
    """The places' own numbers as ticks, on a logarithmic axis where they span more than a factor of ten."""
    numbers = sorted(100 * place.number for place in places)
    scale: Callable[[float], float] = float
    if numbers[0] > 0 and numbers[-1] / numbers[0] > 10:
        axes.set_xscale("log")
        scale = np.log
    width = scale(numbers[-1]) - scale(numbers[0])
    last = numbers[-1]
    named: list[float] = []
    for each in numbers:
        far = [abs(scale(each) - scale(other)) >= APART * width for other in (*named[-1:], *([last] * (each != last)))]
        if all(far):
            named.append(each)
    axes.set_xticks(numbers, [f"{each:.3g}" if each in named else "" for each in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(AXES[series.quantity])


# --- robustness -------------------------------------------------------------------------------------------------------


def robustness(found: Findings, curves: Sequence[Curve]) -> Figure:
    """Accuracy on distorted test images by degree, a panel a kind; a kind without degrees has a place a distortion."""
    kinds = list(dict.fromkeys(curve.kind for curve in curves))
    across = min(3, len(kinds))
    down = -(-len(kinds) // across)
    figure = Figure(figsize=(1.2 + 2.8 * max(across, 2), 0.7 + 2.5 * down), layout="constrained")
    panels = np.array(figure.subplots(down, across, squeeze=False, sharey=True)).ravel()
    for axes, kind in zip(panels, kinds, strict=False):
        here = [curve for curve in curves if curve.kind == kind]
        for arm in found.study.arms:
            for curve in here:
                if curve.arm == arm.name:
                    _degree_line(axes, found, arm, curve)
        axes.set_title(LABELS[kind])
        axes.grid(color="#eceff1", linewidth=0.7)
        _degree_axis(axes, here[0])
    for axes in panels[len(kinds):]:
        axes.set_axis_off()
    for axes in panels[::across]:
        axes.set_ylabel("accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, columnspacing=1.6)
    return figure


def _degree_line(axes: Axes, found: Findings, arm: Arm, curve: Curve) -> None:
    shade, across = figures.colour(found, arm.name), _degree_places(curve)
    means = 100 * curve.accuracy.mean(axis=0)
    sds = 100 * curve.accuracy.std(axis=0, ddof=1) if len(curve.seeds) > 1 else np.zeros_like(means)
    number = [each.name for each in found.study.arms].index(arm.name)
    axes.fill_between(across, means - sds, means + sds, color=shade, alpha=0.06 if arm.control else 0.14, linewidth=0)
    axes.plot(across, means, color=shade, label=figures.label(found, arm.name), marker=MARKERS[number % len(MARKERS)],
              markersize=3.5, linewidth=1.1 if arm.control else 1.8, linestyle=(0, (4, 2)) if arm.control else "-")


def _degree_places(curve: Curve) -> Floats:
    known = np.isfinite(curve.degrees).all()
    return np.array(curve.degrees) if known else np.arange(len(curve.degrees), dtype=np.float64)


def _degree_axis(axes: Axes, curve: Curve) -> None:
    places = _degree_places(curve)
    if np.isfinite(curve.degrees).all():
        axes.set_xticks(places, [f"{each:.3g}" for each in places])
        axes.set_xlabel(DEGREES["size"] if curve.kind.endswith("_black") else DEGREES["severity"])
    else:
        words = list(_words_apart(curve))
        if max(map(len, words)) > LONG:
            axes.set_xticks(places, words, rotation=25, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(places, words)
    pad = 0.08 * (float(np.ptp(places)) or 1.0)
    axes.set_xlim(places.min() - pad, places.max() + pad)


def _words_apart(curve: Curve) -> Iterator[str]:
    """Each distortion without its kind's own name."""
    for words in curve.distortions:
        yield words.removeprefix(LABELS[curve.kind]).strip(" ,") or words
