"""Figures over several studies: their gains, their teachers, the differences of gains, the gains under difficulties."""

import math
import textwrap
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from tlkd import figures, wording
from tlkd.comparison import Comparison, Entry, Line, shared_series
from tlkd.difficulty_figures import place_axis
from tlkd.figures import BLUE, COOL, GREY, WARM, Drawing, Maker
from tlkd.statistics import Interval, Verdict

COLOURS = (WARM[0], BLUE, COOL[0], *WARM[2:4], WARM[1], *COOL[1:], *WARM[4:])
MARKERS = "oDs^vPX*"
LONGEST_LABEL = 34  # letters a line
LINE = "#c3cad1"
GRID = "#e6e9ec"
DASHED = (0, (4, 3))


def draw(found: Comparison) -> list[Drawing]:
    """All figures that the studies have something for."""
    makers: list[Maker] = []
    if found.entries:
        makers.append(("gains", "Accuracy and gain of each study, with intervals", partial(gains, found)))
    if any(each.teacher is not None for each in found.entries):
        makers.append(("teachers", "Gain of each study by the size and by the lead of its teacher",
                       partial(teachers, found)))
    if found.pairs:
        makers.append(("differences", "Differences between the gains of two studies, with intervals",
                       partial(differences, found)))
    makers += [(f"series_{key}", f"{lines[0].series.label}: gain of each study", partial(along, found, lines))
               for key, lines in shared_series(found).items()]
    return [figures.render(*each) for each in makers]


def colour(found: Comparison, entry: Entry) -> str:
    """An entry's colour, the same in all figures."""
    return COLOURS[found.entries.index(entry) % len(COLOURS)]


def marker(found: Comparison, entry: Entry) -> str:
    """An entry's marker, the same in all figures."""
    return MARKERS[found.entries.index(entry) % len(MARKERS)]


# --- gains ------------------------------------------------------------------------------------------------------------


def gains(found: Comparison) -> Figure:
    """Left: TL, the arm and the teacher of each study; right: gains, and where known gains of foreground share."""
    shown, seen = found.entries, [each.attention for each in found.entries]
    attends = any(each is not None for each in seen)
    figure, axes = _rows([each.label for each in shown], (3, 2.6, 2.2) if attends else (3, 2.6))
    for row, each in enumerate(shown):
        before, after = (100 * float(each.values(one).mean()) for one in (each.tl, each.group))
        axes[0].plot([before, after], [row, row], color=LINE, linewidth=2.4, zorder=1)
        if each.teacher is not None:
            axes[0].scatter(100 * each.teacher.metrics[each.metric].mean(), row, marker="|", s=150, linewidth=2,
                            color=GREY, zorder=2)
        axes[0].scatter(before, row, s=42, color=BLUE, zorder=3)
        axes[0].scatter(after, row, s=42, color=WARM[0], marker="D", zorder=4)
    for shape, shade, name in (("o", BLUE, "TL"), ("D", WARM[0], "TL+KD"), ("|", GREY, "teacher")):
        axes[0].scatter([], [], marker=shape, color=shade, s=42, label=name)
    axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, handletextpad=0.2,
                   columnspacing=1.2)
    axes[0].set_xlabel(_axis(found))
    _forest(axes[1], found, [(each, each.contrast.verdict) for each in shown])
    axes[1].set_xlabel("gain in points")
    if attends:
        _forest(axes[2], found, [(each, one.verdict) for each, one in zip(shown, seen, strict=True)
                                 if one is not None])
        axes[2].set_xlabel("gain of foreground share")
    return figure


def _axis(found: Comparison) -> str:
    names = dict.fromkeys(figures.METRIC[each.metric] for each in found.entries)
    return f"{' or '.join(names)} (%)"


def _rows(labels: Sequence[str], widths: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure with a row a label, first at the top, and as many panels as there are widths."""
    wrapped = [textwrap.fill(label, LONGEST_LABEL, max_lines=3, placeholder="\N{HORIZONTAL ELLIPSIS}")
               for label in labels]
    height = 1.15 + sum(0.3 + 0.14 * label.count("\n") for label in wrapped)
    figure = Figure(figsize=(8.2, height), layout="constrained")
    axes = list(np.atleast_1d(np.array(figure.subplots(1, len(widths), width_ratios=widths, sharey=True,
                                                       squeeze=False))[0]))
    for each in axes:
        each.grid(axis="x", color=GRID, linewidth=0.7)
        each.spines["left"].set_visible(False)
        each.tick_params(axis="y", length=0)
        each.margins(x=0.08)
    axes[0].set_yticks(range(len(labels)), wrapped)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    return figure, axes


def _forest(axes: Axes, found: Comparison, rows: Sequence[tuple[Entry, Verdict]]) -> None:
    """A point with its interval for each entry, in its row; filled where the verdict is supported."""
    for smallest in {100 * verdict.smallest_gain for _, verdict in rows}:
        axes.axvline(smallest, color=GREY, linewidth=1, linestyle=DASHED, zorder=0)
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)
    for entry, verdict in rows:
        _interval(axes, found.entries.index(entry), verdict.gain, verdict.interval, colour(found, entry),
                  marker(found, entry), filled=verdict.word == "supported")


def _interval(axes: Axes, row: int, centre: float, ends: Interval, shade: str, shape: str, *, filled: bool) -> None:
    if math.isfinite(ends.low):
        axes.plot([max(100 * ends.low, -100), min(100 * ends.high, 100)], [row, row], color=shade, linewidth=2.2,
                  solid_capstyle="butt", zorder=2)
    axes.scatter([100 * centre], [row], marker=shape, s=52, color=shade if filled else "white", edgecolor=shade,
                 linewidth=1.8, zorder=3)


# --- teachers ---------------------------------------------------------------------------------------------------------


def teachers(found: Comparison) -> Figure:
    """Gains by the teacher's parameters, and by its lead in accuracy over the TL students."""
    shown = [each for each in found.entries if each.teacher is not None]
    figure = Figure(figsize=(8.2, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    sizes = [each.teacher.parameters for each in shown if each.teacher is not None]
    wide = max(sizes) > 8 * min(sizes) > 0
    for axes, places in ((left, _side_by_side([size / 1e6 for size in sizes], wide)),
                         (right, _side_by_side([100 * each.lead for each in shown], False))):
        for place, each in zip(places, shown, strict=True):
            _upright(axes, place, each.contrast.verdict, colour(found, each), marker(found, each))
    for each in shown:
        left.scatter([], [], marker=marker(found, each), color=colour(found, each), s=42, label=each.label)
    if wide:
        left.set_xscale("log")
        left.xaxis.set_minor_locator(NullLocator())
        left.xaxis.set_minor_formatter(NullFormatter())
        ticks = sorted({float(f"{size / 1e6:.2g}") for size in sizes})
        left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set(xlabel="parameters of the teacher (millions)", ylabel="gain in points")
    right.set_xlabel("teacher's accuracy above TL's (points)")
    right.axvline(0, color=GREY, linewidth=1, zorder=0)
    for axes in (left, right):
        axes.axhline(0, color=GREY, linewidth=1, zorder=0)
        axes.grid(color="#eceff1", linewidth=0.7)
        axes.margins(x=0.12)
    if len(shown) <= 2 * len(COLOURS):
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2 if len(shown) > 3 else 3,
                      handletextpad=0.3)
    return figure


def _side_by_side(places: Sequence[float], logarithmic: bool) -> list[float]:
    """Places of which those that are equal are moved apart a little, so that no point hides another."""
    values = np.log(places) if logarithmic else np.asarray(places, np.float64)
    step = 0.03 * (float(np.ptp(values)) or max(1.0, abs(float(values[0]))))
    moved = values.copy()
    for row, value in enumerate(values):
        equal = np.flatnonzero(np.abs(values - value) < step / 2)
        moved[row] += step * (np.flatnonzero(equal == row)[0] - (len(equal) - 1) / 2)
    return [float(value) for value in (np.exp(moved) if logarithmic else moved)]


def _upright(axes: Axes, place: float, verdict: Verdict, shade: str, shape: str) -> None:
    ends = verdict.interval
    if math.isfinite(ends.low):
        axes.plot([place, place], [max(100 * ends.low, -100), min(100 * ends.high, 100)], color=shade, linewidth=1.6,
                  alpha=0.6, zorder=2, solid_capstyle="butt")
    axes.scatter([place], [100 * verdict.gain], marker=shape, s=52, linewidth=1.8, edgecolor=shade, zorder=3,
                 color=shade if verdict.word == "supported" else "white")


# --- differences of gains ---------------------------------------------------------------------------------------------


def differences(found: Comparison) -> Figure:
    """The second study's gain minus the first's for each pair, with its interval; filled where it is sure."""
    figure, (axes,) = _rows([each.label for each in found.pairs], (1,))
    smallest = 100 * found.pairs[0].verdict.smallest_gain
    for place in (-smallest, smallest):
        axes.axvline(place, color=GREY, linewidth=1, linestyle=DASHED, zorder=0)
    axes.axvline(0, color=GREY, linewidth=1, zorder=0)
    for row, each in enumerate(found.pairs):
        sure = each.word in ("larger", "smaller")
        _interval(axes, row, each.verdict.gain, each.verdict.interval, "#1c2126", "o", filled=sure)
    axes.set_xlabel(f"difference of gains in points (dashed: {wording.number(smallest, 1)} either way)")
    return figure


# --- difficulties -----------------------------------------------------------------------------------------------------


def along(found: Comparison, lines: Sequence[Line]) -> Figure:
    """The gain of each entry along a series, with its interval as a band."""
    figure = Figure(figsize=(8.2, 4.0), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        across = [100 * place.number for place, _ in line.places]
        low, high = (np.clip([100 * getattr(one.interval, end) for _, one in line.places], -100, 100)
                     for end in ("low", "high"))
        shade = colour(found, line.entry)
        axes.fill_between(across, low, high, color=shade, alpha=0.12 if len(lines) < 4 else 0.07, linewidth=0)
        axes.plot(across, [100 * one.gain for _, one in line.places], color=shade, linewidth=1.9, markersize=5,
                  marker=marker(found, line.entry), label=line.entry.label)
    axes.axhline(0, color=GREY, linewidth=1, zorder=1)
    axes.set_ylabel("gain over TL (points)")
    axes.grid(color="#eceff1", linewidth=0.7)
    places = {place.number: place for line in lines for place, _ in line.places}
    place_axis(axes, lines[0].series, list(places.values()))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2 if len(lines) > 3 else 3)
    return figure
