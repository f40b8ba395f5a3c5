"""A study's folder: the plan of its runs, where each result lies, and reading them back without torch."""

import csv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tlkd import store
from tlkd.arrays import stored
from tlkd.conditions import Condition
from tlkd.distortions import describe
from tlkd.errors import AWAITED, NO_MEMORY, BadInput
from tlkd.reading import dump_yaml, read_yaml, validate
from tlkd.schema import SCHEMA, study_in, written_by
from tlkd.specs import Arm, Study, canonical

RESULT_COLUMNS = ("run_id", "arm", "condition", "seed", "test_accuracy", "test_precision", "test_recall", "test_f1",
                  "test_log_loss", "test_ece", "teacher_agreement", "epochs", "best_epoch", "seconds")
"""The columns of `results.csv`, a row a finished run; fractions in [0, 1], macro averages."""

EXTENDABLE = ("name", "verdict", "footnotes", "explanation", "robustness", "exclude")
"""Keys that may change when a study is run again into its folder (`data.masks` too); seeds, arms, conditions and
teachers may be added to."""

KILLED = "its worker was killed"
"""How the reason begins of a failure that was none of the step's own: it is tried again at the next start."""


@dataclass(frozen=True)
class Run:
    """One training of one network: arm x condition x seed."""

    arm: Arm
    condition: Condition
    seed: int

    @property
    def run_id(self) -> str:
        """The name of the run's folder, e.g. `tl_kd-clean-3`."""
        return f"{self.arm.name}-{self.condition.name}-{self.seed}"


@dataclass(frozen=True)
class Predictions:
    """A network's raw outputs on the test split."""

    sample_ids: NDArray[np.str_]  # [sample]
    labels: NDArray[np.int64]  # [sample]
    logits: NDArray[np.float32]  # [sample, class]


@dataclass(frozen=True)
class TeacherFit:
    """One fit of a teacher; `condition` where it was fitted under a difficulty, `seed` where for one seed alone."""

    name: str
    condition: Condition | None = None
    seed: int | None = None

    @property
    def fit_id(self) -> str:
        """The name of the fit's folder, e.g. `lite2`, `lite2-3` or `lite2-noisy-3`."""
        parts = [self.name, self.condition and self.condition.name, self.seed]
        return "-".join(str(part) for part in parts if part is not None)

    def __hash__(self) -> int:  # a condition may hold mappings, which have none
        return hash(self.fit_id)


def plan(study: Study) -> tuple[Run, ...]:
    """All runs of a study, in the order they are made: a `tl` arm first, since others may start from it."""
    return tuple(Run(arm, condition, seed) for condition in study.conditions for seed in study.seeds_of(condition)
                 for arm in sorted(study.arms_of(condition, seed), key=lambda arm: arm.kind != "tl"))


def teacher_fit(study: Study, name: str, condition: Condition, seed: int) -> TeacherFit:
    """The fit of a teacher that a run with this condition and seed learns from.

    A teacher that is trained under the condition knows no more than its student: it is fitted for each seed, on the
    samples that this seed draws.
    """
    teacher = study.teachers[name]
    if teacher.fit and teacher.trained_on == "condition" and not condition.plain:
        return TeacherFit(name, condition, seed)
    return TeacherFit(name, None, seed if teacher.per_seed else None)


def teacher_fits(study: Study) -> tuple[TeacherFit, ...]:
    """Every fit of a teacher that some run learns from, in the order of the runs."""
    fits = [teacher_fit(study, run.arm.teacher, run.condition, run.seed) for run in plan(study)
            if run.arm.teacher is not None]
    return tuple({fit.fit_id: fit for fit in fits}.values())


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write `predictions.npz`."""
    np.savez_compressed(path, sample_ids=predictions.sample_ids, labels=predictions.labels, logits=predictions.logits)


def load_predictions(path: Path) -> Predictions:
    """Read `predictions.npz`; nothing in it is unpickled. Raises BadInput where it cannot be read."""
    with reading(path), stored(path) as arrays:
        return Predictions(arrays["sample_ids"], arrays["labels"], arrays["logits"])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file sets off into one plain line."""
    try:
        yield
    except Exception as error:  # a damaged file can fail anywhere inside its parser
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {error}); `tlkd verify` lists what is "
                       "damaged, the study's own `tlkd run` makes it anew") from error


class StudyFolder:
    """What a study left behind, read lazily; BadInput where a file of it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unsound: frozenset[str] = frozenset()  # finished runs that must be made again, where someone has looked
        try:
            path.exists()
        except OSError as error:  # a name too long, a folder that may not be entered
            shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:77]}..."
            said = (error.strerror or "cannot be opened").lower()
            raise BadInput(f"{shown}: {said}; choose another folder") from None

    def run_path(self, run: Run) -> Path:
        """Where a finished run lies."""
        return self.path / "runs" / run.run_id

    def work_path(self, run: Run) -> Path:
        """Where an unfinished run keeps its checkpoint, in a folder named by its address."""
        return self.path / ".work" / run.run_id

    def robustness_path(self, run: Run) -> Path:
        """Where lies what a finished run's student says of distorted test images."""
        return self.path / "robustness" / run.run_id

    def failure_path(self, run: Run) -> Path:
        """Where a failed run says why."""
        return self.path / "failures" / f"{run.run_id}.txt"

    def teacher_failure_path(self, fit: TeacherFit) -> Path:
        """Where a failed teacher says why."""
        return self.path / "failures" / f"teacher-{fit.fit_id}.txt"

    def robustness_done(self, run: Run) -> bool:
        """Whether a run's student was shown all the distorted images that the study asks for now."""
        path = self.robustness_path(run)
        if not self.done(run) or not (path / store.MANIFEST).is_file():
            return False
        try:
            shown = pd.read_csv(path / "robustness.csv")["distortion"].tolist()
            of, made = (store.read_json(where / store.MANIFEST) for where in (path, self.run_path(run)))
            if of["inputs"]["run"] != made["address"] or store.damaged(path):  # of an earlier run in this place
                return False
        except Exception:  # damaged in whatever way: it is made anew
            return False
        return bool(shown == [describe(each) for one in self.study.robustness for each in one.distortions])

    def teacher_there(self, fit: TeacherFit) -> bool:
        """Whether a teacher's result lies there and can be read."""
        path = self.teacher_path(fit)
        try:
            return {"epochs", "parameters"} <= set(store.read_json(path / "result.json")) and (
                (path / "history.csv").is_file() and zipfile.is_zipfile(path / "predictions.npz"))
        except (OSError, ValueError, TypeError):
            return False

    def robustness_failure_path(self, run: Run) -> Path:
        """Where it says why a finished run's student could not be shown distorted images."""
        return self.path / "failures" / f"robustness-{run.run_id}.txt"

    def robustness_failures(self) -> dict[str, str]:
        """Why robustness could not be measured: the first line of what each left, by run."""
        return {f"robustness of {path.stem.removeprefix('robustness-')}": _first_line(path)
                for path in sorted((self.path / "failures").glob("robustness-*.txt"))}

    def forget_failures(self, everything: bool) -> None:
        """Remove what failed steps left, so that they are tried again: those that were killed, or all."""
        for path in (self.path / "failures").glob("*.txt"):
            if not path.name.startswith("explanation-") and (everything or was_killed(path)):
                path.unlink(missing_ok=True)

    def explanation_failure_path(self, who: str) -> Path:
        """Where a failed explanation says why; `who` is the first network of those that were explained together."""
        return self.path / "failures" / f"explanation-{who}.txt"

    def explanation_failures(self) -> dict[str, str]:
        """Why explanations failed: the first line of what each left, by network."""
        return {path.stem.removeprefix("explanation-"): _first_line(path)
                for path in sorted((self.path / "failures").glob("explanation-*.txt"))}

    def teacher_path(self, fit: TeacherFit) -> Path:
        """Where a teacher's result lies."""
        return self.path / "teachers" / fit.fit_id

    @cached_property
    def _file(self) -> dict[str, Any]:
        path = self.path / "study.yaml"
        if not path.is_file():
            raise BadInput(f"{self.path}: no study lies here (there is no study.yaml)")
        return read_yaml(path)

    @cached_property
    def study(self) -> Study:
        """The resolved study."""
        path = str(self.path / "study.yaml")
        raw = study_in(self._file, path)
        try:
            return validate(raw, path)
        except BadInput as error:
            raise BadInput(f"{error}{written_by(self._file)}") from None

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, git commit, hardware and command of the study."""
        found = self._file.get("provenance")
        return dict(found) if isinstance(found, dict) else {}

    def runs(self) -> tuple[Run, ...]:
        """All runs of the study's plan."""
        return plan(self.study)

    def done(self, run: Run) -> bool:
        """Whether a run is finished (a folder appears only when it is whole) and not known to be unsound."""
        return (self.run_path(run) / store.MANIFEST).is_file() and run.run_id not in self.unsound

    def finished(self) -> list[Run]:
        """The finished runs, in the plan's order."""
        return [run for run in self.runs() if self.done(run)]

    def failures(self) -> dict[str, str]:
        """Why runs failed: the first line of what each left, by run id."""
        paths = {run.run_id: self.failure_path(run) for run in self.runs()}
        return {name: _first_line(path) for name, path in paths.items() if path.is_file()}

    def teacher_failures(self) -> dict[str, str]:
        """Why teachers that are not there failed: the first line of what each left, by name (condition and seed)."""
        found = {}
        for fit in teacher_fits(self.study):
            path = self.teacher_failure_path(fit)
            if path.is_file() and not self.teacher_path(fit).is_dir():
                parts = [fit.name, fit.condition and fit.condition.name, fit.seed is not None and f"seed {fit.seed}"]
                found[", ".join(str(part) for part in parts if part)] = _first_line(path)
        return found

    def results(self) -> pd.DataFrame:
        """`results.csv`: a row a finished run."""
        path = self.path / "results.csv"
        if not path.is_file():
            raise BadInput(f"{self.path}: no results yet (there is no results.csv); finish it with `tlkd run`")
        names = dict.fromkeys(("run_id", "arm", "condition"), str)
        with reading(path):  # names are text as they stand: an arm may be called `nan` or `01`
            return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])

    def history(self, run: Run) -> pd.DataFrame:
        """A finished run's curves: a row an epoch."""
        path = self.run_path(run) / "history.csv"
        with reading(path):
            return pd.read_csv(path)

    def curve(self, run: Run) -> NDArray[np.float64]:
        """A finished run's accuracy `[epoch]` on the split that is looked at after each epoch."""
        path, column = self.run_path(run) / "history.csv", f"{self.study.selection}_accuracy"
        with reading(path), path.open(newline="", encoding="utf-8") as file:  # pandas takes ten times as long
            curve = np.array([float(row[column] or "nan") for row in csv.DictReader(file)], np.float64)
            if curve.size == 0:
                raise ValueError("no epochs")
            return curve

    def predictions(self, run: Run) -> Predictions:
        """A finished run's raw outputs on the test split."""
        return load_predictions(self.run_path(run) / "predictions.npz")

    def result(self, run: Run) -> dict[str, Any]:
        """A finished run's `result.json`."""
        return _mapping(self.run_path(run) / "result.json", "epochs", "best_epoch", "seconds")

    def teacher_result(self, path: Path) -> dict[str, Any]:
        """The `result.json` in a teacher's folder."""
        return _mapping(path / "result.json", "parameters")

    def teachers(self) -> dict[str, list[Path]]:
        """The folders of each teacher that some arm uses: one a fit."""
        found: dict[str, list[Path]] = {name: [] for name in self.study.used_teachers}
        for fit in teacher_fits(self.study):
            if self.teacher_path(fit).is_dir():
                found[fit.name].append(self.teacher_path(fit))
        return found

    def teacher_of(self, run: Run) -> Path | None:
        """The teacher that a run's agreement is taken with: its own, or for an arm without one the study's first.

        None where no teacher is fitted for it, as for an arm without one under a condition that has no other arm.
        """
        there = {arm.teacher for arm in self.study.arms_of(run.condition, run.seed)}
        name = run.arm.teacher or next((name for name in self.study.used_teachers if name in there), None)
        return None if name is None else self.teacher_path(teacher_fit(self.study, name, run.condition, run.seed))

    def card(self) -> dict[str, Any]:
        """The data card: source, classes, counts, sizes, notes."""
        return _mapping(self.path / "data.json", "classes", "counts")

    def stages(self) -> list[dict[str, Any]]:
        """What each stage cost: name, seconds, bytes, and whether it came from the cache."""
        path = self.path / "stages.json"
        if not path.is_file():
            return []
        with reading(path):
            found = list(store.read_json(path))
            for each in found:
                _demand(each, "stage", "from_cache", "seconds", "bytes")
            return found

    def refuse_other(self, study: Study) -> None:
        """Refuse a folder that holds another study, naming the first key that differs, or no study at all."""
        if (self.path / "study.yaml").is_file():
            old, new = _by_name(self.study.model_dump(mode="json")), _by_name(study.model_dump(mode="json"))
            used = {*self.study.used_teachers, *study.used_teachers}  # from one that no arm uses, nothing was made
            for key in new:
                if key == "teachers":
                    old[key], new[key] = ({name: each[key][name] for name in each[key].keys() & used}
                                          for each in (old, new))
                if key in ("arms", "teachers", "conditions"):
                    old[key] = {**new[key], **old[key]}
                if key == "seeds" and set(old[key]) <= set(new[key]):
                    continue
                if key not in EXTENDABLE and canonical(old[key]) != canonical(new[key]):
                    where, was, now = _first_difference(key, old[key], new[key])
                    raise BadInput(f"{self.path}: holds a study with {where}: {_brief(was)} (now {_brief(now)}); "
                                   "choose another --out")
        elif self.path.is_dir() and any(not each.name.startswith(".study.yaml.tmp-") for each in self.path.iterdir()):
            if (self.path / "study.yaml").is_file():  # another process has begun the study meanwhile
                self.refuse_other(study)
            else:
                raise BadInput(f"{self.path}: is not empty and holds no study; choose another --out")
        elif self.path.exists() and not self.path.is_dir():
            raise BadInput(f"{self.path}: is a file; choose another --out")

    def prepare(self, study: Study, provenance: Mapping[str, Any], anew: bool = False) -> None:
        """Write `study.yaml`, unless it says the same already; `anew` writes it even so."""
        self.refuse_other(study)
        if (self.path / "study.yaml").is_file() and self.study == study and not anew:
            return
        try:
            with store.guard_disk(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # what some virtual file systems answer
            raise BadInput(f"{self.path}: cannot be made; choose another --out") from None
        text = dump_yaml({"schema": SCHEMA, **study.model_dump(mode="json"), "provenance": dict(provenance)})
        store.replace_text(self.path / "study.yaml", text)
        self.__dict__.pop("_file", None)
        self.__dict__.pop("study", None)


def was_killed(failure: Path) -> bool:
    """Whether what failed did so by none of its own doing."""
    return is_passing(_first_line(failure))


def awaited(failure: Path) -> bool:
    """Whether a step failed for want of another's result alone."""
    return AWAITED in _first_line(failure)


def is_passing(reason: str) -> bool:
    """Whether a failure is the machine's, not the step's: a worker that was killed, memory that ran out."""
    return KILLED in reason or NO_MEMORY in reason


def _first_line(path: Path) -> str:
    return path.read_text(errors="replace").partition("\n")[0]


def _mapping(path: Path, *keys: str) -> dict[str, Any]:
    with reading(path):
        found = dict(store.read_json(path).items())
        _demand(found, *keys)
        return found


def _demand(found: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if found.get(key) is None]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")


def _by_name(study: dict[str, Any]) -> dict[str, Any]:
    return {**study, "arms": {arm["name"]: arm for arm in study["arms"]},
            "conditions": {each["name"]: each for each in study["conditions"]},
            "data": {key: value for key, value in study["data"].items() if key != "masks"}}


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _first_difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _first_difference(f"{path}.{key}", old.get(key), new.get(key))
    return path, old, new
