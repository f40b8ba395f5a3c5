"""The figures of a study: TL is blue, TL+KD orange or red, controls green or violet; the same bytes each time."""

import base64
import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from tlkd import wording
from tlkd.contrasts import Contrast, Floats, Group, arm_label
from tlkd.findings import Findings
from tlkd.progress import track

BLUE = "#0072B2"
WARM = ("#D55E00", "#E69F00", "#CC79A7", "#882255", "#AA4499", "#999933")
COOL = ("#009E73", "#6B8E23", "#5D4A8C")
GREY = "#5f6b76"
NUMBERED = 15  # a confusion of more classes than this has no numbers in its cells
FEWEST = 10  # a bin of fewer predictions says little of accuracy, and is left out
NAMED = 40  # and of more than this no class names
CONTRASTS = 8  # that figures and tables of their own are made for, and so many base conditions: the CSV files hold all
METRIC = {"accuracy": "test accuracy", "balanced_accuracy": "balanced test accuracy"}

STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a949e",
    "axes.labelcolor": "#2b3137", "text.color": "#1c2126", "xtick.color": "#4a545e", "ytick.color": "#4a545e",
    "axes.linewidth": 0.8, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "tlkd",
    "text.parse_math": False, "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.dpi": 160,
    "axes.axisbelow": True, "axes.unicode_minus": True,
}


Maker = tuple[str, str, Callable[[], Figure]]  # a figure's name, what it shows in words, and what draws it


@dataclass(frozen=True)
class Drawing:
    """A figure as both files, with what it shows in words for those who cannot see it."""

    name: str
    alt: str
    svg: str
    png: bytes


def draw(found: Findings) -> list[Drawing]:
    """All figures of the base conditions for which the study has results."""
    makers: list[Maker] = []
    for condition, groups in blocks(found)[:CONTRASTS]:
        makers.append((f"convergence_{condition}", "Accuracy after each epoch for each arm, mean and sd over seeds",
                       partial(convergence, found, groups)))
        makers.append((f"calibration_{condition}", "Accuracy by confidence for each arm and teacher",
                       partial(calibration, found, groups)))
        if not any(each.condition == condition for each in found.contrasts):
            makers += [(f"confusion_{one.arm.name}_{condition}", f"Confusion matrix of {one.label}",
                        partial(confusion_alone, found, one)) for one in groups]
    for each, tl, group in islice(found.pairs(), CONTRASTS):
        name = f"{each.arm.name}_{each.condition}"
        makers += [(f"gains_{name}", f"Gain of {each.label} over {each.tl_label} for each seed",
                    partial(gains, found, each, tl, group)),
                   (f"confusion_{name}", f"Confusion matrices of {each.tl_label} and {each.label}",
                    partial(confusion, found, each)),
                   (f"difference_{name}", f"Confusion matrix of {each.label} minus that of {each.tl_label}",
                    partial(difference, found, each))]
    return render_all(makers)


def blocks(found: Findings) -> list[tuple[str, list[Group]]]:
    """The finished runs of each base condition, those that have any."""
    by_condition: dict[str, list[Group]] = {name: [] for name in found.base}
    for group in found.base_groups:
        by_condition[group.condition].append(group)
    return [(name, groups) for name, groups in by_condition.items() if groups]


def colour(found: Findings, arm: str) -> str:
    """An arm's colour: the `tl` arm's is blue, the controls' are cool, the others' warm, in the study's order."""
    controls = [each.name for each in found.study.arms if each.control]
    if arm in controls:
        return COOL[controls.index(arm) % len(COOL)]
    others = [each.name for each in found.study.arms
              if not each.control and (found.tl is None or each.name != found.tl.name)]
    return WARM[others.index(arm) % len(WARM)] if arm in others else BLUE


def label(found: Findings, arm: str) -> str:
    """What readers call an arm, by its name."""
    return next(arm_label(found.study, each) for each in found.study.arms if each.name == arm)


def render_all(makers: Sequence[Maker]) -> list[Drawing]:
    """Draw figures one after the other, and show how far it is."""
    return [render(*each) for each in track(makers, "draw figures", len(makers))]


def render(name: str, alt: str, make: Callable[[], Figure]) -> Drawing:
    """Draw a figure as both files, the same bytes each time."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script DejaVu lacks; the SVG shows it
        figure = make()
        FigureCanvasAgg(figure)
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # laid out once, for both files
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", metadata={"Software": None})
    # Text stays text. DejaVu is a wide face: what fits in it also fits in the narrower ones that readers have.
    text = svg.getvalue().replace("'DejaVu Sans'", "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif")
    return Drawing(name, alt, re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL), png.getvalue())


def lighter(drawing: Drawing) -> Drawing:
    """The same with the pictures in its SVG packed: a palette where colours are few, and nothing of transparency.

    Their ids go: matplotlib makes them from the pixels, so that two of the same pixels would have the same.
    """
    def packed(found: re.Match[str]) -> str:
        image = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
        colours, places = np.unique(np.asarray(image).reshape(-1, 3) @ [65536, 256, 1], return_inverse=True)
        if len(colours) <= 256:
            image = Image.fromarray(places.reshape(image.size[::-1]).astype(np.uint8)).convert("P")
            image.putpalette(np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.uint8).tobytes())
        buffer = io.BytesIO()
        image.save(buffer, "png", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    svg = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", packed, drawing.svg)
    return dataclasses.replace(drawing, svg=re.sub(r' id="image[0-9a-f]+"', "", svg))


# --- gains ------------------------------------------------------------------------------------------------------------


def gains(found: Findings, each: Contrast, tl: Group, group: Group) -> Figure:
    """Both arms for each seed, and their difference with its mean and interval."""
    seeds = list(reversed(each.seeds))
    metric, rows = found.study.verdict.metric, np.arange(len(seeds))
    figure = Figure(figsize=(8.2, 1.5 + 0.24 * min(len(seeds), 40)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    before = 100 * np.array([tl.value(metric, seed) for seed in seeds])
    after = 100 * np.array([group.value(metric, seed) for seed in seeds])
    left.hlines(rows, before, after, color="#c3cad1", linewidth=2, zorder=1)
    left.scatter(before, rows, color=BLUE, s=34, label=each.tl_label, zorder=3)
    left.scatter(after, rows, color=colour(found, each.arm.name), s=34, marker="D", label=each.label, zorder=2)
    left.plot([before.mean(), after.mean()], [-1.2, -1.2], color="#c3cad1", linewidth=2, zorder=1)
    left.scatter([before.mean()], [-1.2], color=BLUE, s=60, zorder=3, edgecolor="white")
    left.scatter([after.mean()], [-1.2], color=colour(found, each.arm.name), s=60, marker="D", zorder=2,
                 edgecolor="white")
    named = seeds if len(seeds) <= 40 else []
    left.set_yticks([-1.2, *range(len(named))], ["mean", *(str(seed) for seed in named)])
    left.set(xlabel=f"{METRIC[metric]} (%)", ylabel="seed")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, handletextpad=0.2)
    _gain_axes(right, found, each, 100 * np.array([each.gains[each.seeds.index(seed)] for seed in seeds]))
    for axes in (left, right):
        axes.grid(axis="x", color="#e6e9ec", linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.08)
        axes.set_ylim(-1.9, len(seeds) - 0.4)
    return figure


def _gain_axes(axes: Axes, found: Findings, each: Contrast, values: Floats) -> None:
    shade, verdict = colour(found, each.arm.name), each.verdict
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(100 * verdict.smallest_gain, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.scatter(values, np.arange(len(values)), color=shade, s=26, marker="D", alpha=0.75)
    centre, ends = 100 * verdict.gain, verdict.interval
    if np.isfinite(ends.low):
        axes.plot([max(100 * ends.low, -100), min(100 * ends.high, 100)], [-1.2, -1.2],
                  color=shade, linewidth=2.4, solid_capstyle="butt")
    axes.plot([centre], [-1.2], marker="D", markersize=8, color=shade, markeredgecolor="white")
    axes.set_xlabel(f"gain in points (dashed: {wording.number(100 * verdict.smallest_gain, 1)})")


# --- confusion --------------------------------------------------------------------------------------------------------


def confusion(found: Findings, each: Contrast) -> Figure:
    """Figure 6.1: counts, with recall to the right and precision below; one colour scale for both arms."""
    order = list(each.confusions.order)
    matrices = [matrix[np.ix_(order, order)] for matrix in (each.confusions.tl, each.confusions.arm)]
    return _matrices(matrices, [each.tl_label, each.label], [found.classes[number] for number in order])


def confusion_alone(found: Findings, group: Group) -> Figure:
    """The confusion of a study's only arm, classes sorted by its recall."""
    counts = group.confusions.mean(axis=0)
    order = np.argsort(-np.diag(counts) / np.maximum(counts.sum(axis=1), 1), kind="stable")
    return _matrices([counts[np.ix_(order, order)]], [group.label], [found.classes[number] for number in order])


def _matrices(matrices: Sequence[Floats], titles: Sequence[str], names: Sequence[str]) -> Figure:
    figure = Figure(figsize=(_side(len(names)) * len(matrices) + 1.0, _side(len(names)) + 0.5), layout="constrained")
    axes = np.atleast_1d(np.array(figure.subplots(1, len(matrices), squeeze=False))[0])
    # Square roots, or the diagonal would leave the errors, which are what differs, all but white.
    top = max(float(matrix.max()) for matrix in matrices) or 1.0
    for place, matrix, title in zip(axes, matrices, titles, strict=True):
        _matrix(place, np.sqrt(matrix), matrix, Normalize(0, np.sqrt(top)), colours="Greys")
        _margins(place, matrix)
        place.set_title(title, pad=8)
        _class_ticks(place, names, show_rows=place is axes[0])
    return figure


def difference(found: Findings, each: Contrast) -> Figure:
    """The arm's confusion minus TL's: on the diagonal more is better, elsewhere less is."""
    order = list(each.confusions.order)
    change = (each.confusions.arm - each.confusions.tl)[np.ix_(order, order)]
    figure = Figure(figsize=(_side(len(order)) + 1.4, _side(len(order)) + 0.4), layout="constrained")
    axes = figure.subplots()
    largest = float(np.abs(change).max()) or 1.0
    scale = TwoSlopeNorm(0, -largest, largest)
    image = _matrix(axes, change, change, scale, colours="PuOr_r", sign=True)
    axes.set_title(f"{each.label} minus {each.tl_label}", pad=8)
    _class_ticks(axes, [found.classes[number] for number in order], show_rows=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("mean count, difference", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _side(classes: int) -> float:
    """The side of a matrix in inches."""
    return float(np.clip(0.4 * (classes + 1) + 0.5, 2.6, 4.9))


def _matrix(axes: Axes, shade: Floats, values: Floats, scale: Normalize, *, colours: str, sign: bool = False) -> Any:
    image = axes.imshow(shade, norm=scale, cmap=colours, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(values) > NUMBERED:
        return image
    digits = 0 if np.allclose(values, np.rint(values)) or np.abs(values).max() >= 100 else 1
    for (row, column), value in np.ndenumerate(values):
        dark = sum(image.cmap(scale(shade[row, column]))[:3]) < 1.5
        text = wording.number(float(value), digits, sign) if abs(value) >= 0.05 else "\N{MIDDLE DOT}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8 if len(values) > 5 else 9,
                  color="white" if dark else "#8a949e" if text == "\N{MIDDLE DOT}" else "#1c2126",
                  fontweight="bold" if row == column else "normal")
    return image


def _margins(axes: Axes, counts: Floats) -> None:
    """Cells with each class's recall to the right of a matrix and precision below it, in percent."""
    size, hits = len(counts), np.diag(counts)
    if size > NUMBERED:
        return
    with np.errstate(invalid="ignore"):
        recall, precision = (hits / counts.sum(axis=axis) for axis in (1, 0))
    for number in range(size):
        for x, y, value in ((size, number, recall[number]), (number, size, precision[number])):
            axes.text(x, y, wording.percent(float(value), 1), ha="center", va="center", fontsize=7.5, color=BLUE)
    axes.set_xlim(-0.5, size + 0.5)
    axes.set_ylim(size + 0.5, -0.5)
    axes.text(size, -0.65, "recall\n%", ha="center", va="bottom", fontsize=7, color=BLUE)
    axes.text(-0.65, size, "precision %", ha="right", va="center", fontsize=7, color=BLUE)


def _class_ticks(axes: Axes, names: Sequence[str], show_rows: bool) -> None:
    size = len(names)
    small = 8.5 if size <= NUMBERED else 6
    shown = [name if len(name) <= 18 else f"{name[:17]}\N{HORIZONTAL ELLIPSIS}" for name in names]
    if size > NAMED:
        axes.set(xticks=[], yticks=[], xlabel=f"predicted: {size} classes, sorted by recall")
        axes.set_ylabel("true" if show_rows else "")
        return
    if max(map(len, shown)) > 3:
        axes.set_xticks(range(size), shown, rotation=50, ha="right", rotation_mode="anchor", fontsize=small)
    else:
        axes.set_xticks(range(size), shown, fontsize=small)
    axes.set_yticks(range(size), shown if show_rows else [""] * size, fontsize=small)
    axes.set(xlabel="predicted", ylabel="true" if show_rows else "")


# --- convergence ------------------------------------------------------------------------------------------------------


def convergence(found: Findings, groups: Sequence[Group]) -> Figure:
    """Figure 6.9: mean accuracy after each epoch with a band of one sd over seeds, thresholds and crossings."""
    figure = Figure(figsize=(8.2, 4.3), layout="constrained")
    axes = figure.subplots()
    for group in groups:
        shade, curves = colour(found, group.arm.name), 100 * group.common_curves
        epochs, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        if len({len(curve) for curve in group.curves}) > 1:  # early stopping: the mean ends where the first run does
            for curve in group.curves:
                axes.plot(np.arange(1, len(curve) + 1), 100 * curve, color=shade, linewidth=0.6, alpha=0.4)
        if len(curves) > 1:
            sd = curves.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - sd, mean + sd, color=shade, alpha=0.16, linewidth=0)
        axes.plot(epochs, mean, color=shade, linewidth=2, label=group.label, marker="o" if len(epochs) == 1 else None)
    axes.set(xlabel="epoch", ylabel=f"accuracy on the {found.study.selection} split (%)")
    axes.set_xlim(0.5, max(max(group.epochs) for group in groups) + 0.5)
    _threshold_lines(axes, found, groups[0].condition)
    axes.legend(loc="lower right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _threshold_lines(axes: Axes, found: Findings, condition: str) -> None:
    """The multiples of 5 % as faint lines, each contrast's primary threshold dashed; crossings dotted."""
    here = [each for each in found.contrasts if each.condition == condition]
    low, high = axes.get_ylim()
    low, high = max(low, 0.0), min(high, 100.0)
    for faint in range(5, 100, 5):
        if low < faint < high:
            axes.axhline(faint, color="#dde1e5", linewidth=0.7, zorder=0)
    for level in {each.speed.primary.threshold for each in here if each.speed.primary is not None}:
        axes.axhline(100 * level, color=GREY, linewidth=1.1, zorder=0, linestyle=(0, (4, 3)))
    for each in here:
        for epoch in each.speed.crossings if len(each.speed.crossings) <= 5 else ():
            axes.axvline(epoch, color=colour(found, each.arm.name), linewidth=0.9, linestyle=":", zorder=0)
    axes.set_ylim(low, high)


# --- calibration ------------------------------------------------------------------------------------------------------


def calibration(found: Findings, groups: Sequence[Group]) -> Figure:
    """Accuracy by confidence, all seeds together; above the diagonal a network is less sure than it could be."""
    figure = Figure(figsize=(8.2, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    left.plot([0, 100], [0, 100], color="#c3cad1", linewidth=1)
    for label, shade, style, one in _calibrated(found, groups):
        filled = one.count >= FEWEST
        left.plot(100 * one.confidence[filled], 100 * one.accuracy[filled], color=shade, linestyle=style, marker="o",
                  markersize=3.5, linewidth=1.6, label=label)
        right.plot(100 * one.centre, 100 * one.count / one.count.sum(), color=shade, linestyle=style, marker="o",
                   markersize=3.5, linewidth=1.6)
    left.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100), title="reliability")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    right.set(xlabel="confidence (%)", ylabel="share of test images (%)", xlim=(0, 100), title="confidence")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(color="#eceff1", linewidth=0.7)
    return figure


def _calibrated(found: Findings, groups: Sequence[Group]) -> Iterator[tuple[str, str, str, Any]]:
    for group in groups:
        yield group.label, colour(found, group.arm.name), "-", group.reliability
    there = [each for each in found.teachers if each.condition in ("", groups[0].condition)]
    for number, each in enumerate(there):
        yield f"teacher {each.name}", GREY, ("--", ":", "-.")[number % 3], each.reliability
