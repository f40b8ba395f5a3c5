"""Figures of the foreground share, and of single values inside and outside of a mask (the thesis's figure 6.7)."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tlkd import figures, tables, wording
from tlkd.album import Album
from tlkd.figures import BLUE, GREY, Drawing, Maker
from tlkd.findings import Findings
from tlkd.foreground import Compared, Foreground

Floats = NDArray[np.float64]

MOST = 30  # classes; of more than this only all images together are drawn
SEEDS, ALL = -1.3, -2.6  # the rows under the classes
AGAINST, FOR = "#2166ac", "#b2182b"  # negative and positive values, as in the pictures
DECADES = 5  # of magnitudes that violins show


def draw(found: Findings, albums: Sequence[Album]) -> list[Drawing]:
    """All figures of shares and values for which the study has attributions and masks."""
    makers = [*_share_makers(found), *(maker for album in albums for maker in _violin_makers(found, album))]
    return [figures.render(*each) for each in makers]


def _share_makers(found: Findings) -> Iterator[Maker]:
    for each in found.explanations.foregrounds if found.explanations is not None else ():
        if each.everything is not None:
            yield (f"foreground_{each.arm.name}_{each.condition}",
                   f"Foreground share of {figures.label(found, each.arm.name)} and TL by class, and its difference",
                   partial(foreground, found, each, each.everything))


# --- the share by class -----------------------------------------------------------------------------------------------


def foreground(found: Findings, each: Foreground, one: Compared) -> Figure:
    """Left: mean shares by class, of each seed and of all; right: each image's difference, and the verdict's."""
    frame = tables.paired_shares(found, each).dropna(subset=["tl", "share"])
    names = list(dict.fromkeys(frame.sort_values("label")["class"]))
    names = names[::-1] if len(names) <= MOST else []
    figure = Figure(figsize=(8.2, 1.9 + 0.27 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1), sharey=True)
    _levels(left, found, each, one, frame, names)
    _differences(right, found, each, one, frame, names)
    sizes = [int((frame["class"] == name).sum()) for name in names]
    labels = [f"{_short(name)} ({size})" for name, size in zip(names, sizes, strict=True)]
    left.set_yticks([ALL, SEEDS, *range(len(names))], [f"all {one.n_images} images", "each seed", *labels])
    for axes in (left, right):
        axes.grid(axis="x", color="#e6e9ec", linewidth=0.7)
        axes.axhline(-0.65, color="#c3cad1", linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.06)
        axes.set_ylim(ALL - 0.7, max(len(names), 0) - 0.35)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=4, handletextpad=0.3,
                  columnspacing=1.6)
    return figure


def _levels(axes: Axes, found: Findings, each: Foreground, one: Compared, frame: pd.DataFrame,
            names: Sequence[str]) -> None:
    shade = figures.colour(found, each.arm.name)
    means = frame.groupby("class")[["tl", "share", "area"]].mean().loc[list(names)]
    tl, share, area = (100 * means[name].to_numpy(np.float64) for name in ("tl", "share", "area"))
    rows = np.arange(len(names))
    axes.hlines([*rows, ALL], [*tl, 100 * one.tl.mean], [*share, 100 * one.arm.mean], color="#c3cad1", linewidth=2,
                zorder=1)
    axes.scatter([*area, 100 * float(frame["area"].mean())], [*rows, ALL], marker="|", s=90, color=GREY, zorder=2,
                 linewidth=1.6, label="mask's area")
    for side, marker, colour, zorder, values in ((one.tl, "o", BLUE, 4, tl), (one.arm, "D", shade, 3, share)):
        seeds = 100 * np.array(side.by_seed)
        axes.scatter(seeds, np.full(len(seeds), SEEDS), marker=marker, s=16, color=colour, alpha=0.6, linewidth=0,
                     zorder=zorder)
        name = found.tl.name if side is one.tl and found.tl is not None else each.arm.name
        axes.scatter(values, rows, marker=marker, s=30, color=colour, zorder=zorder, label=figures.label(found, name))
        axes.scatter([100 * side.mean], [ALL], marker=marker, s=60, color=colour, edgecolor="white", zorder=zorder)
    teachers = found.explanations.teachers if found.explanations is not None else ()
    for number, teacher in enumerate(teachers):
        axes.scatter([100 * teacher.metrics["positive_share"].mean], [ALL], marker="s^vP"[number % 4], s=34,
                     color="white", edgecolor=GREY, linewidth=1.3, zorder=2, label=f"teacher {teacher.name}")
    axes.set_xlabel("foreground share of the positive mass (%)")


def _differences(axes: Axes, found: Findings, each: Foreground, one: Compared, frame: pd.DataFrame,
                 names: Sequence[str]) -> None:
    shade, verdict = figures.colour(found, each.arm.name), one.verdict
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(100 * verdict.smallest_gain, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for row, name in enumerate(names):
        values = 100 * frame.loc[frame["class"] == name, "difference"].to_numpy(np.float64)
        axes.scatter(values, np.full(len(values), row), s=14, color=shade, alpha=0.35, linewidth=0)
        axes.plot([values.mean()], [row], marker="D", markersize=5.5, color=shade, markeredgecolor="white")
    by_seed = 100 * (np.array(one.arm.by_seed) - np.array(one.tl.by_seed))
    axes.scatter(by_seed, np.full(len(by_seed), SEEDS), marker="D", s=16, color=shade, alpha=0.6, linewidth=0)
    if np.isfinite(verdict.interval.low):
        axes.plot([max(100 * verdict.interval.low, -100), min(100 * verdict.interval.high, 100)], [ALL, ALL],
                  color=shade, linewidth=2.4, solid_capstyle="butt")
    axes.plot([100 * verdict.gain], [ALL], marker="D", markersize=8, color=shade, markeredgecolor="white")
    axes.set_xlabel(f"difference in points (dashed: {wording.number(100 * verdict.smallest_gain, 1)})")


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}\N{HORIZONTAL ELLIPSIS}"


# --- figure 6.7 -------------------------------------------------------------------------------------------------------


def _violin_makers(found: Findings, album: Album) -> Iterator[Maker]:
    row = middle_image(found, album)
    if row is not None:
        yield (f"violins_{album.condition}",
               f"Sizes of values inside and outside of the mask of {album.images.sample_ids[row]}",
               partial(violins, found, album, row))


def middle_image(found: Findings, album: Album) -> int | None:
    """The image that figure 6.7 shows: of all with a mask, the one whose share differs by the (lower) median.

    It is the difference between TL and the first arm that is compared with it, averaged over seeds; where none is, the
    share of the album's first network itself. None where no image has a mask and a share.
    """
    pairs = [each for each in (found.explanations.foregrounds if found.explanations is not None else ())
             if each.condition == album.condition and each.everything is not None]
    if pairs:
        frame = tables.paired_shares(found, pairs[0]).rename(columns={"difference": "by"})
    else:
        arm = next(arm for arm in found.study.arms if arm.name == album.rows[0].arm)
        frame = tables.regions_of(found, arm, album.condition, album.seed).assign(by=lambda each: each.positive_share)
    frame = frame.dropna(subset=["by"]).sort_values("by", kind="stable")
    if frame.empty:
        return None
    return int(np.flatnonzero(album.images.sample_ids == frame["sample_id"].iloc[(len(frame) - 1) // 2])[0])


def violins(found: Findings, album: Album, row: int) -> Figure:
    """Figure 6.7: how large an image's positive and negative values are, inside and outside of its mask."""
    mask = album.images.masks[row]
    summed = found.study.explanation is not None and found.study.explanation.signs == "summed"
    values = [np.asarray(each.explained.values[row], np.float64) for each in album.rows]
    values = [each.sum(axis=0, keepdims=True) if summed else each for each in values]
    figure = Figure(figsize=(8.2, 3.7), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    largest = max(float(np.abs(each).max()) for each in values) or 1.0
    lowest = np.log10(largest) - DECADES
    for axes, inside, title in ((panels[0], mask, "inside the mask"), (panels[1], ~mask, "outside")):
        for number, each in enumerate(values):
            part = each[:, inside]
            for side, chosen, colour in ((-0.2, part[part > 0], FOR), (0.2, -part[part < 0], AGAINST)):
                _violin(axes, chosen, number + side, colour, lowest)
        axes.set_xticks(range(len(values)), [figures.label(found, each.arm) for each in album.rows])
        axes.set_xlim(-0.6, len(values) - 0.4)
        axes.set_title(title)
        axes.grid(axis="y", color="#eceff1", linewidth=0.7)
        axes.tick_params(axis="x", length=0)
    top = int(np.ceil(np.log10(largest)))
    ticks = range(top - DECADES, top + 1)
    panels[0].set_yticks(list(ticks), [f"1e{tick}".replace("-", wording.MINUS) for tick in ticks])
    panels[0].set_ylim(lowest, np.log10(largest) + 0.2)
    panels[0].set_ylabel("|value|, logarithmic")
    handles = [panels[0].scatter([], [], marker="s", s=40, color=colour, alpha=0.75) for colour in (FOR, AGAINST)]
    figure.legend(handles, ["positive values", "negative values"], loc="outside upper left", ncols=2, handletextpad=0.2)
    return figure


def _violin(axes: Axes, values: Floats, place: float, colour: str, lowest: float) -> None:
    """The density of the logarithms of sizes, with quartiles and median; values below the axis count, unseen."""
    if values.size == 0:
        return
    logs = np.log10(values)
    seen = logs[logs > lowest - 1]
    if seen.size > 1 and np.ptp(seen) > 1e-9:
        body = axes.violinplot(seen, positions=[place], widths=0.36, showextrema=False)
        for each in body["bodies"]:  # type: ignore[attr-defined]
            each.set(facecolor=colour, alpha=0.45, edgecolor=colour, linewidth=0.8)
    low, middle, high = np.quantile(logs, [0.25, 0.5, 0.75])
    axes.plot([place, place], [low, high], color=colour, linewidth=4, solid_capstyle="butt")
    axes.plot([place], [middle], marker="o", markersize=5, color="white", markeredgecolor=colour, zorder=4)
