"""What a search leaves to read: the tuned study, a table, the trials as CSV, and a picture; torch is not needed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tlkd import store
from tlkd.contrasts import arm_label, tl_arm
from tlkd.figures import BLUE, GREY, WARM, render
from tlkd.reading import dump_yaml, validate
from tlkd.spaces import Search, Space, shown_value, with_setting
from tlkd.specs import Arm, Study
from tlkd.wording import count, listed, number, percent

TIE = 1e-9  # what the dev loss may add: far below one image of any dev split, far above the rounding of a mean
WORST = -1.0  # what a search is told of a trial whose training failed
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Trial:
    """One setting of an arm, trained with every seed of the search; the first, number 1, is the study's own."""

    arm: str
    number: int
    setting: Mapping[str, Any]
    scores: Mapping[int, float]  # seed -> the metric on dev, in [0, 1]; empty where a training failed
    losses: Mapping[int, float]  # seed -> nats on dev
    seconds: float
    failure: str = ""
    artifacts: Mapping[int, str] = field(default_factory=dict)  # seed -> its folder below `trials`

    @property
    def score(self) -> float:
        """The mean over seeds of what trials are judged by; nan where a training failed."""
        return math.fsum(self.scores.values()) / len(self.scores) if self.scores else math.nan

    @property
    def loss(self) -> float:
        """The mean loss on dev over seeds."""
        return math.fsum(self.losses.values()) / len(self.losses) if self.losses else math.nan

    @property
    def value(self) -> float:
        """What is maximised: the score, and among equal ones the smaller loss."""
        return self.score - TIE * self.loss / (1 + self.loss) if self.scores else WORST


@dataclass(frozen=True)
class Trials:
    """A whole search: equally many trials for every arm, in the order they were begun."""

    search: Search
    of: Mapping[str, Sequence[Trial]]  # by the arm's name

    @property
    def each(self) -> int:
        """The number of trials of every arm."""
        return len(next(iter(self.of.values())))

    def best(self, arm: Arm) -> Trial:
        """The arm's best trial, the earliest of equal ones: never worse on dev than the study's own setting."""
        return max(self.of[arm.name], key=lambda trial: trial.value)

    def chosen(self, arm: Arm) -> Arm:
        """The arm as its best trial had it; as it stands in the study where that was the best."""
        best = self.best(arm)
        return arm if best.number == 1 else with_setting(arm, best.setting)


def write(trials: Trials, out: Path, command: str = "") -> None:
    """Write `tuned.yaml`, `trials.csv`, `search.svg` and `search.png` into a folder."""
    store.replace_text(out / "tuned.yaml", tuned_yaml(trials, out, command))
    store.replace_text(out / "trials.csv", table(trials).to_csv(index=False))
    drawing = render("search", "Best value so far by trial, and the value of each trial by what was searched",
                     partial(picture, trials))
    store.replace_text(out / "search.svg", drawing.svg)
    store.replace_bytes(out / "search.png", drawing.png)


# --- the tuned study --------------------------------------------------------------------------------------------------


def tuned_study(trials: Trials) -> Study:
    """The study with every arm as its best trial had it, and a footnote that says how that was found."""
    study = trials.search.study
    arms = [trials.chosen(arm) if arm.name in trials.of else arm for arm in study.arms]
    raw = study.model_dump(mode="json")
    name = study.name if study.name.endswith("-tuned") else f"{study.name}-tuned"
    return validate({**raw, "name": name, "arms": [arm.model_dump(mode="json") for arm in arms],
                     "footnotes": [*raw["footnotes"], footnote(trials)]}, "tuned.yaml")


def tuned_yaml(trials: Trials, out: Path, command: str = "") -> str:
    """The tuned study as a file that `tlkd run` takes."""
    study = tuned_study(trials)
    head = [f"# {trials.search.study.name}, each arm with the best of its {count(trials.each, 'trial')} on the dev "
            "split.", "#", f"# Made by: {command}" if command else "", f"# Command: tlkd run {out / 'tuned.yaml'}"]
    return "".join(f"{line}\n" for line in head if line) + dump_yaml(study.model_dump(mode="json"))


def footnote(trials: Trials) -> str:
    """How the arms were tuned, in full."""
    search, arms = trials.search, trials.search.arms
    common = [space for space in search.spaces[arms[0].name] if all(space in search.spaces[arm.name] for arm in arms)]
    own = [f"of {arm.name} {_spaces(only)}" for arm in arms
           if (only := [space for space in search.spaces[arm.name] if space not in common])]
    spaces = "; ".join([f"of every arm {_spaces(common)}" if common else "", *own]).strip("; ")
    found = [f"{arm.name} trial {best.number} ({percent(best.score)} %, the study's own setting "
             f"{percent(trials.of[arm.name][0].score)} %)" for arm in arms for best in [trials.best(arm)]]
    left = [arm.name for arm in search.study.arms if arm.name not in trials.of]
    return (f"Tuned by tlkd tune with {count(trials.each, 'trial')} for every arm ({listed([a.name for a in arms])}), "
            f"the first of them the study's own setting, judged by {_metric(search)} on the dev split at the reported "
            f"epoch, the mean over {_seeds(search)}, under the condition {search.condition.name}; no trial was shown "
            f"the test split. Searched: {spaces}. Best: {'; '.join(found)}."
            + (f" Not tuned: {listed(left)}." if left else ""))


def _spaces(spaces: Iterable[Space]) -> str:
    return ", ".join(f"{space.key} {space}" for space in spaces)


def _metric(search: Search) -> str:
    return search.metric.replace("_", " ")


def _seeds(search: Search) -> str:
    return ("seed " if len(search.seeds) == 1 else "seeds ") + listed([str(seed) for seed in search.seeds])


# --- in words ---------------------------------------------------------------------------------------------------------


def text(trials: Trials) -> str:
    """What was found, a line an arm, and what to beware of."""
    search = trials.search
    rows = [("arm", "own", "best", "trial", "failed", "setting")]
    for arm in search.arms:
        best, failed = trials.best(arm), sum(bool(trial.failure) for trial in trials.of[arm.name])
        setting = "the study's own" if best.number == 1 else ", ".join(
            f"{key.removeprefix('training.')} {shown_value(value)}" for key, value in best.setting.items())
        rows.append((arm.name, _fraction(trials.of[arm.name][0].score), _fraction(best.score), str(best.number),
                     str(failed), setting))
    if all(row[4] == "0" for row in rows[1:]):
        rows = [(*row[:4], "", row[5]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = (f"{_metric(search)} on the dev split under {search.condition.name}, the mean over {_seeds(search)}; "
            f"{count(trials.each, 'trial')} for every arm")
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width).rstrip()
             for row in rows]
    return "\n".join([head, "", *lines, "", *cautions(trials)]).rstrip() + "\n"


def cautions(trials: Trials) -> list[str]:
    """Values that lie at an edge of what was searched: the best may lie beyond."""
    found = []
    for arm in trials.search.arms:
        best = trials.best(arm)
        at_edge = [space for space in trials.search.spaces[arm.name]
                   if best.number > 1 and space.at_edge(best.setting[space.key])]
        found += [f"{arm.name}: {space.key} {shown_value(best.setting[space.key])} lies at the edge of {space}; "
                  "a wider --search may find better" for space in at_edge]
    return found


def _fraction(value: float) -> str:
    return number(value, 4)


def table(trials: Trials) -> pd.DataFrame:
    """A row a trial: arm, trial, own, best, the metric and loss on dev, the setting, each seed's metric and folder."""
    search = trials.search
    keys = list(dict.fromkeys(space.key for arm in search.arms for space in search.spaces[arm.name]))
    rows = []
    for arm in search.arms:
        for trial in trials.of[arm.name]:
            rows.append({"arm": arm.name, "trial": trial.number, "own": trial.number == 1,
                         "best": trial is trials.best(arm), f"dev_{search.metric}": trial.score,
                         "dev_log_loss": trial.loss, **{key: trial.setting.get(key) for key in keys},
                         **{f"dev_{search.metric}_seed_{seed}": trial.scores.get(seed) for seed in search.seeds},
                         **{f"folder_seed_{seed}": trial.artifacts.get(seed) for seed in search.seeds},
                         "seconds": round(trial.seconds, 3), "failure": trial.failure})
    return pd.DataFrame(rows)


# --- the picture ------------------------------------------------------------------------------------------------------


def picture(trials: Trials) -> Figure:
    """Above, the best value so far against the number of trials; below, each trial's value against each key."""
    search = trials.search
    keys = list(dict.fromkeys(space.key for arm in search.arms for space in search.spaces[arm.name]))
    across = min(4, len(keys)) if len(keys) != 5 else 3
    down = math.ceil(len(keys) / across)
    figure = Figure(figsize=(8.6, 2.9 + 2.35 * down), layout="constrained")
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(2.7, 2.3 * down + 0.2)))
    floor = _floor(trials)
    _running(above.subplots(), trials, floor)
    grid = below.subplots(down, across, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(keys):
            axes.set_visible(False)
            continue
        _against(axes, trials, keys[place], floor)
        axes.set_ylabel(f"dev {_metric(search)} (%)" if place % across == 0 else "")
    return figure


def shade(search: Search, arm: Arm) -> str:
    """An arm's colour, as in the study's own figures."""
    tl = tl_arm(search.study)
    others = [each.name for each in search.study.arms if tl is None or each.name != tl.name]
    return WARM[others.index(arm.name) % len(WARM)] if arm.name in others else BLUE


def _floor(trials: Trials) -> float:
    """Below what the axes end, in percent: a few hopeless trials must not flatten all others."""
    scores = [100 * trial.score for arm in trials.search.arms for trial in trials.of[arm.name] if trial.scores]
    if not scores:
        return 0.0
    top, middle = max(scores), float(np.median(scores))
    return max(min(scores), top - 3 * max(top - middle, 2.0))


def _running(axes: Axes, trials: Trials, floor: float) -> None:
    """The best value so far as steps, each trial as a dot, the study's own setting as a ring."""
    for place, arm in enumerate(trials.search.arms):
        colour, tried = shade(trials.search, arm), trials.of[arm.name]
        numbers = np.array([trial.number for trial in tried])
        scores = np.array([100 * trial.score for trial in tried])
        running = np.fmax.accumulate(scores)
        axes.step(np.append(numbers, numbers[-1] + 0.5), np.append(running, running[-1]), where="post", color=colour,
                  linewidth=4.4 if place == 0 else 2,  # so that two that coincide are both seen
                  alpha=0.55 if place == 0 else 1, label=arm_label(trials.search.study, arm), solid_capstyle="butt")
        _dots(axes, numbers, scores, colour, floor, tried, trials.best(arm))
    axes.set(xlabel="trial (the first is the study's own setting)", ylabel=f"dev {_metric(trials.search)} (%)")
    axes.set_xlim(0.5, trials.each + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.scatter([], [], facecolor="white", edgecolor=GREY, s=26, linewidth=1.4, label="the study's own setting")
    axes.scatter([], [], color=GREY, marker="D", s=30, label="best")
    if any(trial.failure or 100 * trial.score < floor for arm in trials.search.arms for trial in trials.of[arm.name]):
        axes.scatter([], [], color=GREY, marker="v", s=18, alpha=0.55, linewidth=0, label="below the axis, or failed")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, borderaxespad=0.2, columnspacing=1.4)
    _limits(axes, trials, floor)


def _against(axes: Axes, trials: Trials, key: str, floor: float) -> None:
    """Each trial's value against one key, on the scale it was searched on."""
    search = trials.search
    spaces = {arm.name: space for arm in search.arms for space in search.spaces[arm.name] if space.key == key}
    first = next(iter(spaces.values()))
    names = list(dict.fromkeys(shown_value(value) for space in spaces.values() for value in space.choices))
    if first.log:
        axes.set_xscale("log")
    for arm in search.arms:
        if arm.name not in spaces:
            continue
        tried = trials.of[arm.name]
        if names:
            names += [name for trial in tried if (name := shown_value(trial.setting[key])) not in names]
            places = np.array([float(names.index(shown_value(trial.setting[key]))) for trial in tried])
            places += 0.24 * (search.arms.index(arm) - (len(search.arms) - 1) / 2) / max(1, len(search.arms) - 1)
        else:
            places = np.array([_number(trial.setting[key]) for trial in tried])
            if first.log:
                places[places <= 0] = np.nan  # no weight decay, say, which no logarithm shows
        _dots(axes, places, np.array([100 * trial.score for trial in tried]), shade(search, arm), floor, tried,
              trials.best(arm))
    if names:
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        _range(axes, [*spaces.values()], [trials.of[name][0].setting[key] for name in spaces])
    if first.log:
        _plain_logarithm(axes)
    axes.set_xlabel(key.removeprefix("training.").replace("_", " "))
    axes.grid(axis="y", color="#eceff1", linewidth=0.7)
    _limits(axes, trials, floor)


def _range(axes: Axes, spaces: Sequence[Space], own: Sequence[Any]) -> None:
    """The axis as wide as what was searched, and the study's own values if they lie outside."""
    numbers = [_number(value) for value in [*(end for space in spaces for end in space.ends), *own]]
    log = spaces[0].log
    shown = [math.log(value) if log else value for value in numbers if math.isfinite(value) and (value > 0 or not log)]
    room = 0.04 * (max(shown) - min(shown))
    ends = min(shown) - room, max(shown) + room
    axes.set_xlim(*((math.exp(end) for end in ends) if log else ends))


def _plain_logarithm(axes: Axes) -> None:
    """Ticks of a logarithm in plain words: 1, 2, 5, 10 over a decade or two, powers of ten over more."""
    low, high = axes.get_xlim()
    few = math.log10(high / low) < 2.2
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=6 if few else 4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    return f"{value:g}" if -2 <= exponent <= 3 else f"10{str(exponent).translate(SUPERSCRIPTS)}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _dots(axes: Axes, places: Any, scores: Any, colour: str, floor: float, tried: Sequence[Trial],
          best: Trial | None = None) -> None:
    """Dots; a ring for the study's own setting, a diamond for the best, a small triangle where it lies off the axes."""
    low = np.isnan(scores) | (scores < floor)
    own = np.array([trial.number == 1 for trial in tried])
    chosen = np.array([trial is best for trial in tried])
    plain = ~low & ~own & ~chosen
    axes.scatter(places[plain], scores[plain], color=colour, s=16, alpha=0.55, linewidth=0, zorder=2)
    axes.scatter(places[~low & own & ~chosen], scores[~low & own & ~chosen], facecolor="white", edgecolor=colour, s=26,
                 linewidth=1.4, zorder=3)
    axes.scatter(places[low], np.full(int(low.sum()), floor), color=colour, marker="v", s=18, alpha=0.55, linewidth=0,
                 clip_on=False, zorder=2)
    axes.scatter(places[~low & chosen], scores[~low & chosen], color=colour, marker="D", s=40, edgecolor="white",
                 linewidth=0.8, zorder=4)


def _limits(axes: Axes, trials: Trials, floor: float) -> None:
    scores = [100 * trial.score for arm in trials.search.arms for trial in trials.of[arm.name] if trial.scores]
    top = max(scores, default=1.0)
    room = 0.06 * max(top - floor, 1.0)
    axes.set_ylim(floor - room, top + room)
