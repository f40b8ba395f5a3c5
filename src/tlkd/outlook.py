"""What a person wants to know of a study while it runs: how far, how good so far, what failed, how long yet.

Worked out from the study's folder alone; a look at hundreds of runs costs some hundredths of a second. Accuracies are
fractions of the test split, gains an arm's minus TL's over the seeds that both have finished: numbers so far, no
verdict.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from tlkd import store
from tlkd.contrasts import arm_label, tl_arm
from tlkd.folder import Run, StudyFolder
from tlkd.specs import Arm
from tlkd.standing import Standing, Standings, in_the_cache, standings
from tlkd.underway import Curve, Trainings

PAUSE = 60.0  # seconds without any training after which what comes is reckoned as a new start
QUIET = 300.0  # seconds after which a folder where nothing changes is taken to be left alone
LONGEST_START = 86_400.0  # seconds between a study's start and its first run; beyond, it was started in vain before
AHEAD = 60.0  # seconds that machines' clocks differ by; what is later than that was written before a clock was set back
RECENT = 60  # finished runs that the pace is measured by


@dataclass(frozen=True)
class Group:
    """The runs of one arm under one condition; `accuracies` and `gains` by seed, `curve` the mean `[epoch]` so far."""

    arm: Arm
    label: str
    condition: str
    states: Mapping[str, int]
    planned: int
    epochs: int
    accuracies: Mapping[int, float]
    gains: Mapping[int, float]
    curve: tuple[float, ...]

    @cached_property
    def mean(self) -> float:
        """The mean accuracy of the finished runs; nan without any."""
        return statistics.fmean(self.accuracies.values()) if self.accuracies else math.nan

    @cached_property
    def sd(self) -> float:
        """Their standard deviation over seeds; nan with fewer than two."""
        return statistics.stdev(self.accuracies.values()) if len(self.accuracies) > 1 else math.nan

    @cached_property
    def gain(self) -> float:
        """The mean gain over TL; nan where no seed has both."""
        return statistics.fmean(self.gains.values()) if self.gains else math.nan


@dataclass(frozen=True)
class Training:
    """A run in training: epochs over, of how many, and the curve of what is looked at after each."""

    run: Run
    curve: Curve
    epochs: int
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """A finished run: its accuracy, and when it was finished, in seconds since 1970."""

    run: Run
    accuracy: float
    ended: float
    seconds: float


@dataclass(frozen=True)
class Outlook:
    """One look at a study's folder; times in seconds, None where nothing tells them."""

    found: Standings
    groups: tuple[Group, ...]
    training: tuple[Training, ...]
    results: tuple[Result, ...]  # the latest first
    elapsed: float | None
    left: float | None
    quiet: float  # since anything has changed
    explained: int
    in_cache: int  # teachers and banks that are being made there, for whatever study
    complete: bool

    @property
    def failed(self) -> tuple[Standing, ...]:
        """What failed."""
        return tuple(each for each in self.found.steps if each.state == "failed")


class Watcher:
    """Looks at a study's folder again and again; raises BadInput where it holds no study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainings = Trainings()
        self._before: Standings | None = None
        self._state: tuple[int, int] | None = None  # of study.yaml, which may grow while we watch
        self._folder = StudyFolder(path)
        self._groups: dict[tuple[str, str], list[Run]] = {}

    def look(self) -> Outlook:
        """What there is to see now."""
        folder = self._same_or_new()
        found = self._before = standings(folder, self._before)
        states = {each.run.run_id: each.state for each in found.runs if each.run is not None}
        runs = [each.run for each in found.runs if each.run is not None]
        results = {run.run_id: self._result(folder, run) for run in runs if states[run.run_id] == "done"}
        curves = {run.run_id: self.trainings.of_run(folder, run) for run in runs
                  if states[run.run_id] in ("done", "running")}
        training = tuple(self._training(folder, run, curves[run.run_id]) for run in runs
                         if states[run.run_id] == "running")
        now = time.time()
        latest = tuple(sorted((each for each in results.values() if 0 < each.ended <= now + AHEAD),
                              key=lambda each: -each.ended))
        pace = _pace(latest, training, now, _started(folder))
        over = all(each.state in ("done", "failed") for each in found.steps)
        times = [latest[0].ended if latest else 0.0, *(each.curve.ended for each in training),
                 *self._changed("study.yaml", "stages.json", "report.html", "explanations")]
        quiet = max(0.0, now - max((each for each in times if 0 < each <= now + AHEAD), default=now))
        waiting = any(each.state == "waiting" for each in found.steps)
        return Outlook(
            found, tuple(self._group(folder, states, results, curves)), training, latest,
            None if pace is None else pace.elapsed, None if pace is None or over else _left(runs, states, latest,
                                                                                            training, pace.speed),
            quiet, _explained(folder), in_the_cache() if waiting and not training else 0,
            over and self._reported(latest, quiet))

    def _same_or_new(self) -> StudyFolder:
        path = self.path / "study.yaml"
        state = (path.stat().st_mtime_ns, path.stat().st_ino) if path.is_file() else None
        if state != self._state or state is None:
            self._folder, self._state, self._before = StudyFolder(self.path), state, None
            by_group: dict[tuple[str, str], list[Run]] = {}
            for run in self._folder.runs():
                by_group.setdefault((run.condition.name, run.arm.name), []).append(run)
            order = [arm.name for arm in self._folder.study.arms]
            places = {condition.name: place for place, condition in enumerate(self._folder.study.conditions)}
            self._groups = dict(sorted(by_group.items(), key=lambda pair: (places[pair[0][0]],
                                                                           order.index(pair[0][1]))))
        return self._folder

    def _result(self, folder: StudyFolder, run: Run) -> Result:
        path = folder.run_path(run)
        said = self.trainings.result(path)
        accuracy, seconds = said.get(f"test_{folder.study.verdict.metric}"), said.get("seconds")
        return Result(run, accuracy if isinstance(accuracy, int | float) else math.nan, self.trainings.ended(path),
                      seconds if isinstance(seconds, int | float) else 0.0)

    def _training(self, folder: StudyFolder, run: Run, curve: Curve) -> Training:
        study = folder.study
        return Training(run, curve, study.training_of(run.arm, run.condition).epochs,
                        tuple(curve.values(f"{study.selection}_accuracy")))

    def _group(self, folder: StudyFolder, states: Mapping[str, str], results: Mapping[str, Result],
               curves: Mapping[str, Curve]) -> list[Group]:
        study, column = folder.study, f"{folder.study.selection}_accuracy"
        base, found = tl_arm(study), []
        for (condition, _), runs in self._groups.items():
            arm = runs[0].arm
            accuracies = _finished(runs, results)
            gains: dict[int, float] = {}
            if base is not None and arm.name != base.name:
                theirs = _finished(self._groups.get((condition, base.name), []), results)
                gains = {seed: value - theirs[seed] for seed, value in accuracies.items() if seed in theirs}
            said = [states[run.run_id] for run in runs]
            drawn = [curves[run.run_id].values(column) for run in runs if run.run_id in curves]
            found.append(Group(arm, arm_label(study, arm), condition,
                               {state: said.count(state) for state in set(said)}, len(runs),
                               study.training_of(arm, runs[0].condition).epochs, accuracies, gains, _mean_curve(drawn)))
        return found

    def _changed(self, *names: str) -> list[float]:
        return [(self.path / name).stat().st_mtime for name in names if (self.path / name).exists()]

    def _reported(self, latest: Sequence[Result], quiet: float) -> bool:
        """Whether the report is of what there is now; in a copied folder times tell nothing, but nothing changes."""
        path = self.path / "report.html"
        if not path.is_file():
            return False
        return not latest or path.stat().st_mtime >= latest[0].ended or quiet > QUIET


def _finished(runs: Sequence[Run], results: Mapping[str, Result]) -> dict[int, float]:
    return {run.seed: results[run.run_id].accuracy for run in runs
            if run.run_id in results and math.isfinite(results[run.run_id].accuracy)}


def _mean_curve(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean at each epoch over the runs that have come to it."""
    longest = max(map(len, curves), default=0)
    return tuple(statistics.fmean(each) for each in ([curve[epoch] for curve in curves if epoch < len(curve)]
                                                     for epoch in range(longest)))


def _started(folder: StudyFolder) -> float | None:
    """When the study was first started, in seconds since 1970."""
    try:
        return datetime.fromisoformat(str(folder.provenance.get("started"))).timestamp()
    except ValueError:
        return None


# --- how long yet -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """For how long there has been work without a pause, and how many seconds of training a second brought."""

    elapsed: float
    speed: float


def _pace(latest: Sequence[Result], training: Sequence[Training], now: float, started: float | None) -> Pace | None:
    """The pace of the latest stretch of work; None before anything has happened."""
    spans = [(each.ended - each.seconds, each.ended) for each in latest]
    active = [(min(each.curve.began, now - sum(each.curve.values("seconds"))), now) for each in training
              if each.curve.epochs]
    pause = max(PAUSE, 5 * statistics.median(each.seconds for each in latest) if latest else 0.0)
    end = now if training or not latest else latest[0].ended
    began, work, recent = end, 0.0, end
    stretch = [*active, *spans]
    for number, (start, over) in enumerate(stretch):
        if began - over > pause:
            break
        began = min(began, start)
        if number < RECENT:
            recent, work = began, work + over - start
    else:  # back to the very first: before it there were banks and teachers
        began = min(began, started) if started is not None and began - started < LONGEST_START else began
    return None if end == began else Pace(end - began, work / (end - recent) if end > recent and work else 0.0)


def _left(runs: Sequence[Run], states: Mapping[str, str], latest: Sequence[Result], training: Sequence[Training],
          speed: float) -> float | None:
    """How long the runs that are left will take at this speed; None while nothing tells."""
    seconds: dict[tuple[str, ...], list[float]] = {}
    for each in latest:
        for key in ((each.run.condition.name, each.run.arm.name), (each.run.condition.name,), ()):
            seconds.setdefault(key, []).append(each.seconds)
    under_way = {one.run.run_id: sum(one.curve.values("seconds")) for one in training}
    for one in training:
        if one.curve.epochs and () not in seconds:
            seconds[()] = [under_way[one.run.run_id] / len(one.curve.epochs) * one.epochs]
    if not seconds or not speed:
        return None
    left = longest = 0.0
    for run in runs:
        if states[run.run_id] in ("waiting", "running"):
            keys = ((run.condition.name, run.arm.name), (run.condition.name,), ())
            expected = statistics.fmean(next(seconds[key] for key in keys if key in seconds))
            expected = max(0.0, expected - under_way.get(run.run_id, 0.0))
            left, longest = left + expected, max(longest, expected)
    return max(left / speed, longest)


def _explained(folder: StudyFolder) -> int:
    """How many networks are explained."""
    return len(list((folder.path / "explanations").glob(f"*/{store.MANIFEST}")))
