"""tlkd from Python: load a study, run it, read what it left as data frames; `docs/python.md` has examples."""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tlkd import difficulty_tables, reading, tables
from tlkd.errors import BadInput, nearest
from tlkd.findings import Findings, find
from tlkd.folder import Run, StudyFolder, load_predictions, teacher_fits
from tlkd.specs import Study

NAMED = ("run_id", "arm", "condition", "seed")
MOST_NAMED = 6  # networks that a mistake lists
Loadable = Study | Mapping[str, Any] | str | Path


def load_study(study: Loadable, changes: Mapping[str, Any] | None = None) -> Study:
    """A study, complete and checked, from a packaged name, a YAML file, a mapping, or another study.

    `changes` lays values on it by their keys' paths, as `tlkd run --set` does: `{"seeds": [0, 1],
    "arms.tl_kd.temperature": 4}`; a value replaces all that stood at its key. Raises `BadInput` in one line that names
    the key, the value found, and what is allowed.
    """
    if isinstance(study, Study):
        raw, origin = study.model_dump(mode="json"), study.name
    elif isinstance(study, Mapping):
        raw, origin = _plain(copy.deepcopy(dict(study)), "study"), "study"
    else:
        raw, origin = reading.raw_study(str(study)), str(study)
    if changes is not None and not isinstance(changes, Mapping):
        raise BadInput(f"changes: found a {type(changes).__name__}; allowed: a mapping, as {{'training.epochs': 5}}")
    for path, value in (changes or {}).items():
        reading.put(raw, str(path), _plain(value, f"changes: {path}"), f"changes: {path}")
    return reading.validate(raw, origin)


def run_study(study: Loadable, out: str | Path | None = None, *, jobs: int = 1, device: str = "auto",
              retry_failed: bool = False, track: str | Sequence[str] | None = None, report: bool = True) -> "Results":
    """Run a study into the folder `out` (default: `out/<name>`) and return what it left.

    What is finished there stands, so that a stopped study goes on. `jobs` steps are taken at a time: with 1 in this
    process, with more each in a process of its own, which runs nothing of your script. `device` is auto, cpu or cuda.
    `track` names trackers, as `tlkd run --track` does. `report=False` leaves `report.html` undrawn.

    A run that fails does not end the study: see `Results.failures`; what failed by itself is tried again only with
    `retry_failed`. Raises `BadInput` before anything is written, as `load_study` does.
    """
    spec = load_study(study)
    folder = Path(out) if out is not None else Path("out") / spec.name
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise BadInput(f"jobs: found {jobs!r}; allowed: a whole number from 1 on")
    from tlkd import engines, tracking
    from tlkd import report as drawing
    from tlkd.console import device_of
    from tlkd.engine import Inline
    from tlkd.study import run_study as run

    try:
        chosen = device_of(device)
        checked = tracking.check([track] if isinstance(track, str) else list(track or ()))
    except BadInput as error:  # both are said as the command line says them
        raise BadInput(str(error).removeprefix("--")) from None
    followers = tracking.choose(checked, folder)
    ways = engines.choose("local", spec, folder, chosen, jobs, None) if jobs > 1 else None
    with tracking.following(followers):
        run(spec, folder, chosen, f"tlkd.run_study({spec.name!r}, {str(folder)!r}, jobs={jobs})",
            ways.executor if ways is not None else lambda work, context: Inline(work, context, folder / "logs"),
            retry_failed, ways.threads if ways is not None else 0, lambda: tracking.start(followers))
        if report:
            drawing.write(folder)
    return Results(folder)


def open_results(path: str | Path) -> "Results":
    """What a study left in its folder, finished or not. Raises `BadInput` where no study lies there."""
    return Results(Path(path))


class Results:
    """What a study left in its folder: data frames of runs, curves, predictions, gains, verdicts; read when asked for.

    Fractions lie in [0, 1], epochs count from 1, and a gain is an arm minus TL. A study that has gone on since is
    opened anew. Torch is not needed. Raises `BadInput` where a file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = StudyFolder(path)
        self.study: Study = self._folder.study

    def __repr__(self) -> str:
        done = len(self._folder.finished())
        return f"<tlkd.Results {self.study.name!r} in {str(self.path)!r}: {done} of {len(self._folder.runs())} runs>"

    @property
    def runs(self) -> pd.DataFrame:
        """A row a finished run: arm, condition, seed, metrics on the test split, epochs, seconds."""
        return self._folder.results()

    @property
    def curves(self) -> pd.DataFrame:
        """A row an epoch of each finished run: losses, accuracy on the split that is looked at, seconds."""
        frames = [self._folder.history(run).assign(**_named(run)) for run in self._folder.finished()]
        if not frames:
            return pd.DataFrame(columns=[*NAMED, "epoch"])
        whole = pd.concat(frames, ignore_index=True)
        return whole[[*NAMED, *(name for name in whole if name not in NAMED)]]

    def predictions(self, who: str) -> pd.DataFrame:
        """What a run's student, or a teacher, says of the test images: a row an image, by its id.

        `who` is a run's name (`tl_kd-clean-0`) or a teacher's (`lite1`). Columns: `label`, `predicted` (names of
        classes), `correct`, and the raw logits, `logit_<class>`.
        """
        runs = {run.run_id: self._folder.run_path(run) for run in self._folder.finished()}
        fits = {fit.fit_id: self._folder.teacher_path(fit) for fit in teacher_fits(self.study)
                if self._folder.teacher_there(fit)}
        paths = {**fits, **runs}
        if who not in paths:
            names = list(paths)
            few = [*names[:MOST_NAMED], *([f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else [])]
            raise BadInput(f"predictions: found {who!r}{nearest(who, names)}; allowed: {', '.join(few) or 'none yet'}")
        given = load_predictions(paths[who] / "predictions.npz")
        classes = np.array(self._folder.card()["classes"], dtype=object)
        chosen = given.logits.argmax(axis=1)
        frame = pd.DataFrame({"label": classes[given.labels], "predicted": classes[chosen],
                              "correct": chosen == given.labels}, index=pd.Index(given.sample_ids, name="sample_id"))
        logits = pd.DataFrame(given.logits, index=frame.index, columns=[f"logit_{name}" for name in classes])
        return pd.concat([frame, logits], axis=1)

    @property
    def gains(self) -> pd.DataFrame:
        """The primary endpoint of TL and of each arm for each seed, and their difference."""
        return self.tables["gains"]

    @property
    def verdicts(self) -> pd.DataFrame:
        """A row an arm and condition: the gain with its interval, tests, and the words on hypotheses 1 to 3."""
        return self.tables["verdicts"]

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables of the report by name, as they lie in `tables/*.csv`."""
        return {**tables.draw(self._found), **difficulty_tables.draw(self._found)}

    @property
    def failures(self) -> dict[str, str]:
        """Why steps failed, in a line each: teachers, runs, robustness, explanations."""
        folder, done = self._folder, {run.run_id for run in self._folder.finished()}
        return {**{f"teacher {name}": why for name, why in folder.teacher_failures().items()},
                **{name: why for name, why in folder.failures().items() if name not in done},
                **folder.robustness_failures(),
                **{f"explanation of {who}": why for who, why in folder.explanation_failures().items()}}

    @property
    def summary(self) -> str:
        """The headline and the verdicts in a few lines."""
        from tlkd import report
        from tlkd.summary import summarise

        return report.plain(summarise(self._found))

    def write_report(self) -> Path:
        """Draw tables, figures and `report.html` anew from what is stored, and return the page's path."""
        from tlkd import report

        return report.write(self.path)

    @cached_property
    def _found(self) -> Findings:
        return find(self._folder)


def _named(run: Run) -> dict[str, Any]:
    return {"run_id": run.run_id, "arm": run.arm.name, "condition": run.condition.name, "seed": run.seed}


def _plain(value: Any, where: str) -> Any:
    """A value of Python as YAML would have given it: tuples, ranges and arrays as lists, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), where)
    if isinstance(value, list | tuple | range):
        return [_plain(item, where) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str | int | float | bool | None):
        return value
    raise BadInput(f"{where}: found a {type(value).__name__}; allowed: what YAML can say, such as text, numbers, lists")
