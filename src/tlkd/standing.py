"""What `tlkd status` says: which teachers, runs and robustness of a study are done, running, failed or waiting.

Read from the study's folder and its locks, without torch. A run is running while a process of this machine, or of one
that shares the disk and its locks, holds the run's lock.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkd import store
from tlkd.engine import log_path
from tlkd.folder import Run, StudyFolder, teacher_fits, was_killed
from tlkd.underway import Trainings

STATES = ("done", "running", "failed", "waiting")
MOST_LINES = 60  # runs beyond which a table says it better than a line each


@dataclass(frozen=True)
class Standing:
    """Where one step of a study stands; `step` is its name, `run` whose it is where it is a run's."""

    step: str
    state: str
    why: str = ""  # it failed: one line
    log: Path | None = None  # and the file that says more
    killed: bool = False  # by none of its own doing
    epoch: int | None = None  # of a training in progress: the last one that is over
    run: Run | None = None

    @property
    def name(self) -> str:
        """The step's name as it is shown: a run's is its id."""
        return self.step.removeprefix("run ")


@dataclass(frozen=True)
class Standings:
    """Where all steps of a study stand, in the plan's order."""

    folder: StudyFolder
    teachers: tuple[Standing, ...]
    runs: tuple[Standing, ...]
    robustness: tuple[Standing, ...]

    @property
    def steps(self) -> tuple[Standing, ...]:
        """All of them."""
        return (*self.teachers, *self.runs, *self.robustness)


def standings(folder: StudyFolder, before: Standings | None = None) -> Standings:
    """Look at a study's folder; BadInput where it holds no study.

    Whether robustness is done takes reading: what was `before`, in an earlier look, is not read again.
    """
    runs = folder.runs()
    known = {each.step for each in before.robustness if each.state == "done"} if before is not None else set()
    fits = {fit: folder.teacher_path(fit) / "predictions.npz" for fit in teacher_fits(folder.study)}
    teachers = tuple(_standing(f"teacher {fit.fit_id}", folder, last.is_file(), folder.teacher_failure_path(fit))
                     for fit, last in fits.items())
    robustness = tuple(_standing(step := f"robustness of {run.run_id}", folder,
                                 (step in known and folder.done(run)) or folder.robustness_done(run),
                                 folder.robustness_failure_path(run), folder.robustness_path(run), run)
                       for run in runs if folder.study.robustness)
    return Standings(folder, teachers, tuple(
        _standing(f"run {run.run_id}", folder, folder.done(run), folder.failure_path(run), folder.run_path(run), run)
        for run in runs), robustness)


def _standing(step: str, folder: StudyFolder, done: bool, failure: Path, place: Path | None = None,
              run: Run | None = None) -> Standing:
    """Where a step stands; `place` is where its result will lie in the study's folder."""
    if done:
        return Standing(step, "done", run=run)
    if run is not None and place is not None and store.being_made(place):
        epoch = len(Trainings().in_training(folder, run).epochs) if step.startswith("run ") else None
        return Standing(step, "running", epoch=epoch, run=run)
    if failure.is_file():
        log = log_path(folder.path / "logs", step)
        return Standing(step, "failed", failure.read_text(errors="replace").partition("\n")[0],
                        log if log.is_file() else failure, was_killed(failure), run=run)
    return Standing(step, "waiting", run=run)


def in_the_cache() -> int:
    """How many teachers and banks are being made in the cache now, for this study or another."""
    locks = [path for kind in ("features", "teachers", "logits")
             for path in (store.cache_folder() / kind / ".locks").glob("*.lock")]
    return sum(store.being_made(path.parent.parent / path.stem) for path in locks)


# --- in words ---------------------------------------------------------------------------------------------------------


def text(found: Standings, everything: bool = False) -> str:
    """What there is to say: a line for each step, or (many runs, not `everything`) a table of counts and failures."""
    explanations = found.folder.explanation_failures()
    if everything or len(found.runs) <= MOST_LINES:
        lines = _lines(found, explanations)
    else:
        failed = [f"{each.name} failed: {_why(found, each)}" for each in found.steps if each.state == "failed"]
        failed += [f"{who} failed: its explanation: {why}" for who, why in explanations.items()]
        lines = [*_table(found.runs), *([""] if failed else []), *failed, ""]
    for what, steps in (("teachers", found.teachers), ("robustness", found.robustness)):
        lines += [f"{what}: {_totals(steps)}"] if steps else []
    making = in_the_cache() if any(each.state == "waiting" for each in found.steps) else 0
    lines += [f"in the cache: {making} teachers or banks are being made, for this study or another"] if making else []
    return "\n".join([*lines, _totals(found.runs), *_advice(found, bool(explanations)), ""])


def _lines(found: Standings, explanations: dict[str, str]) -> list[str]:
    rows = [(each.name, each.state, _told(found, each)) for each in found.steps]
    rows += [(who, "failed", f"its explanation: {why}") for who, why in explanations.items()]
    width = max(len(name) for name, _, _ in rows)
    return [f"{name:{width}}  {state:7}  {what}".rstrip() for name, state, what in rows]


def _told(found: Standings, each: Standing) -> str:
    if each.state == "failed":
        return _why(found, each)
    if each.state == "running" and each.epoch is not None and each.run is not None:
        training = found.folder.study.training_of(each.run.arm, each.run.condition)
        return f"epoch {each.epoch} of {training.epochs}"
    if each.state == "done" and each.run is not None and each.step.startswith("run "):
        accuracy, seconds = _result(found.folder, each.run)
        return ("its result.json is damaged; see `tlkd verify`" if accuracy is None or seconds is None
                else f"accuracy {accuracy:.4f}  {seconds:.1f} s")
    return ""


def _why(found: Standings, each: Standing) -> str:
    where = each.log
    if where is not None and where.is_relative_to(found.folder.path):
        where = where.relative_to(found.folder.path)
    return f"{each.why} ({where})"


def _result(folder: StudyFolder, run: Run) -> tuple[float | None, float | None]:
    result = folder.result(run)
    accuracy, seconds = (each if isinstance(each, int | float) else None
                         for each in (result.get("test_accuracy"), result.get("seconds")))
    return accuracy, seconds


def _table(runs: Sequence[Standing]) -> list[str]:
    """Counts of runs by condition and arm."""
    arms = list(dict.fromkeys(each.run.arm.name for each in runs if each.run is not None))
    counts: dict[str, dict[str, Counter[str]]] = {}
    for each in runs:
        if each.run is not None:
            counts.setdefault(each.run.condition.name, {}).setdefault(each.run.arm.name, Counter())[each.state] += 1
    rows = [["/".join(STATES), *arms]]
    for condition, cells in counts.items():
        rows.append([condition, *("/".join(str(cells[arm][state]) for state in STATES) if arm in cells else "-"
                                  for arm in arms)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{'>' if number else '<'}{width}}" for number, (cell, width) in
                      enumerate(zip(row, widths, strict=True))) for row in rows]


def _totals(steps: Sequence[Standing]) -> str:
    counts = Counter(each.state for each in steps)
    return f"{', '.join(f'{counts[state]} {state}' for state in STATES)} of {len(steps)}"


def _advice(found: Standings, explanations: bool) -> list[str]:
    """How to go on where something failed."""
    failed = [each for each in found.steps if each.state == "failed"]
    if any(not each.killed for each in failed):
        return ["start again with --retry-failed to try these once more"]
    return ["start again to try these once more"] if failed or explanations else []


def record(found: Standings) -> dict[str, Any]:
    """The same for machines."""
    def told(each: Standing) -> dict[str, Any]:
        row: dict[str, Any] = {"name": each.name, "state": each.state}
        if each.run is not None:
            row |= {"arm": each.run.arm.name, "condition": each.run.condition.name, "seed": each.run.seed}
        if each.step.startswith("run ") and each.run is not None:
            training = found.folder.study.training_of(each.run.arm, each.run.condition)
            accuracy, seconds = _result(found.folder, each.run) if each.state == "done" else (None, None)
            row |= {"epoch": each.epoch, "epochs": training.epochs, "test_accuracy": accuracy, "seconds": seconds}
        if each.state == "failed":
            row |= {"why": each.why, "log": str(each.log), "killed": each.killed}
        return row

    parts = {"runs": found.runs, "teachers": found.teachers, "robustness": found.robustness}
    counts = {what: Counter(each.state for each in steps) for what, steps in parts.items()}
    return {"folder": str(found.folder.path),
            "totals": {what: {state: count[state] for state in STATES} for what, count in counts.items()},
            **{what: [told(each) for each in steps] for what, steps in parts.items()},
            "explanations_failed": found.folder.explanation_failures()}
