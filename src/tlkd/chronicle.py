"""The process that keeps one tracker up with a study: it reads the folder and tells the tracker what is new.

`python -m tlkd.chronicle` is started by `tracking` beside the driver, so that a tracker that hangs, crashes or is slow
holds nothing up. It knows the study by its folder alone. A tracker that fails is told of in one line and tried again,
less and less often: what it has missed still lies in the folder.
"""

import hashlib
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from filelock import Timeout

from tlkd import store
from tlkd.folder import Run, StudyFolder, TeacherFit, teacher_fits
from tlkd.mlflow_tracker import MlflowTracker
from tlkd.outlook import Outlook, Watcher
from tlkd.series import base_conditions
from tlkd.specs import Study
from tlkd.trackers import Ending, Entry, Subject, Tracker, lock, masked
from tlkd.underway import Curve, mapping
from tlkd.wandb_tracker import WandbTracker

EVERY = 3.0  # seconds between two looks at the folder
FIRST_REST, LONGEST_REST = 10.0, 300.0  # seconds until a tracker that failed is tried again: twice as long each time
TRACKERS: dict[str, Callable[[str, Path], Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}
NO_ANSWER = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ConnectionRefusedError")  # of whatever library
FINISH, STOP = "finish", "stop"  # what the driver says
Say = Callable[[Mapping[str, Any]], None]


class Chronicle:
    """A study's folder, told to one tracker."""

    def __init__(self, path: Path, tracker: Tracker, say: Say) -> None:
        self._watcher, self._tracker, self._say = Watcher(path), tracker, say
        self._told: dict[str, tuple[str, str]] = {}  # what needs no other look: (state, address) by name
        self._open = False

    def catch_up(self) -> Outlook:
        """Tell the tracker all that is new."""
        outlook = self._watcher.look()
        folder = outlook.found.folder
        if not self._open:
            self._tracker.open(subject_of(folder))
            self._open = True
        entries = [(name, make) for name, state, address, make in self._trainings(outlook)
                   if self._told.get(name) != (state, address) or state == "running"]
        for number, (name, make) in enumerate(entries):
            entry = make()
            self._tracker.log(entry)
            self._told[name] = (entry.state, entry.address)
            self._say({"left": len(entries) - number - 1})
        return outlook

    def lost(self) -> None:
        """The tracker has failed: it is opened anew, and told everything again."""
        self._open = False
        self._told.clear()

    def close(self, state: str) -> list[str]:
        """Tell how it ended, after all that is new."""
        return self._tracker.close(ending_of(self.catch_up(), state))

    def _trainings(self, outlook: Outlook) -> list[tuple[str, str, str, Callable[[], Entry]]]:
        """Name, state, address and what makes the entry, of every training that has begun."""
        folder, found = outlook.found.folder, []
        for fit, standing in zip(teacher_fits(folder.study), outlook.found.teachers, strict=True):
            if standing.state in ("done", "failed"):
                found.append((standing.name, standing.state, "", self._teacher(folder, fit, standing.state,
                                                                               standing.why)))
        for standing in outlook.found.runs:
            if standing.run is not None and standing.state != "waiting":
                address = self._address(folder, standing.run) if standing.state == "done" else ""
                found.append((standing.name, standing.state, address, self._run(
                    folder, standing.run, standing.state, standing.why, address)))
        return found

    def _address(self, folder: StudyFolder, run: Run) -> str:
        manifest = self._watcher.trainings.files.read(folder.run_path(run) / store.MANIFEST, mapping) or {}
        return str(manifest.get("address", ""))

    def _teacher(self, folder: StudyFolder, fit: TeacherFit, state: str, why: str) -> Callable[[], Entry]:
        def make() -> Entry:
            trainings, spec = self._watcher.trainings, folder.study.teachers[fit.name]
            path = folder.teacher_path(fit)
            seed = {} if fit.seed is None else {"seed": str(fit.seed)}
            condition = {} if fit.condition is None else {"condition": fit.condition.name}
            tags = {"kind": "teacher", "arm": f"teacher {fit.name}", **condition, **seed, **_of_the_code(folder)}
            params = flat({"teacher": spec.model_dump(mode="json")})
            return _entry(f"teacher {fit.fit_id}", "teacher", state, "", params, tags,
                          trainings.of_teacher(folder, fit), trainings.result(path), trainings.ended(path), why)

        return make

    def _run(self, folder: StudyFolder, run: Run, state: str, why: str, address: str) -> Callable[[], Entry]:
        def make() -> Entry:
            trainings, path = self._watcher.trainings, folder.run_path(run)
            done = state == "done"
            curve = trainings.of_run(folder, run) if done else trainings.in_training(folder, run)
            tags = {"kind": "run", "arm": run.arm.name, "condition": run.condition.name, "seed": str(run.seed),
                    **_of_the_code(folder)}
            return _entry(run.run_id, "run", state, address or curve.address, params_of(folder.study, run), tags, curve,
                          trainings.result(path) if done else {}, trainings.ended(path) if done else 0.0, why)

        return make


def _entry(name: str, kind: str, state: str, address: str, params: Mapping[str, Any], tags: Mapping[str, str],
           curve: Curve, result: Mapping[str, Any], ended: float, why: str) -> Entry:
    metrics = {key: float(value) for key, value in result.items()
               if isinstance(value, int | float) and not isinstance(value, bool)}
    ended = ended or curve.ended or time.time()
    began = curve.began if curve.epochs and not metrics else ended - metrics.get("seconds", 0.0)
    return Entry(name, kind, state, address, params, tags, curve, metrics, began, ended, why)


# --- what is told -----------------------------------------------------------------------------------------------------


def subject_of(folder: StudyFolder) -> Subject:
    """The study as a tracker's parent: what never changes as parameters, what may be added to as tags."""
    study = folder.study
    spec = study.model_dump(mode="json", include={"data", "student", "training", "selection", "bank"})
    spec["data"].pop("masks", None)
    spec["teachers"] = {name: teacher.model_dump(mode="json") for name, teacher in study.used_teachers.items()}
    spec["arms"] = {arm.name: arm.model_dump(mode="json", exclude={"name", "training"}) for arm in study.arms}
    tags = {"kind": "study", "study": study.name, "folder": str(folder.path.absolute()),
            "arms": ", ".join(arm.name for arm in study.arms),
            "conditions": ", ".join(condition.name for condition in study.conditions),
            "seeds": ", ".join(map(str, study.seeds)), **_of_the_code(folder)}
    try:
        began = datetime.fromisoformat(str(folder.provenance.get("started"))).timestamp()
    except ValueError:
        began = time.time()
    return Subject(study.name, folder.path, began, flat(spec), tags)


def params_of(study: Study, run: Run) -> dict[str, Any]:
    """All that decides what a run is, under the study's own keys."""
    arm = run.arm.model_dump(mode="json", include={"kind", "teacher", "soft_weight", "temperature"})
    return flat({"arm": arm, "condition": run.condition.difficulty, "seed": run.seed,
                 "student": study.student_of(run.condition).model_dump(mode="json"),
                 "training": study.training_of(run.arm, run.condition).model_dump(mode="json"),
                 "data": {"source": study.data.source}, "selection": study.selection})


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested keys as `training.learning_rate`; what is not set is left out."""
    if isinstance(value, Mapping):
        return {key: leaf for name, each in value.items() for key, leaf in
                flat(each, f"{path}.{name}" if path else str(name)).items()}
    return {} if value is None else {path: value}


def _of_the_code(folder: StudyFolder) -> dict[str, str]:
    commit = folder.provenance.get("git_commit")
    version = (folder.provenance.get("versions") or {}).get("tlkd")
    found = {"git_commit": commit, "mlflow.source.git.commit": commit, "tlkd_version": version}
    return {name: str(value) for name, value in found.items() if value}


def ending_of(outlook: Outlook, state: str) -> Ending:
    """How it ended: verdicts out of `summary.txt`, means and gains so far."""
    folder = outlook.found.folder.path
    summary = _text(folder / "summary.txt")
    tags = {f"hypothesis_{number}": text for number, text in re.findall(r"^H(\d) .*?: (.*)$", summary, re.MULTILINE)}
    tags["headline"] = summary.partition("\n")[0]
    study, metrics = outlook.found.folder.study, {}
    base = base_conditions(study)  # a chart for each of a hundred difficulties would bury all others: they have tables
    for group in outlook.groups:
        if group.condition in base and group.accuracies:
            who = group.arm.name if len(base) == 1 else f"{group.arm.name}_{group.condition}"
            metrics[f"mean_test_{study.verdict.metric}_{who}"] = group.mean
            if group.gains:
                metrics[f"gain_{who}"] = group.gain
    metrics |= {f"runs_{name}": float(sum(each.state == name for each in outlook.found.runs))
                for name in ("done", "failed")}
    failed = outlook.failed or outlook.found.folder.explanation_failures()
    known = "".join(_text(folder / name) for name in ("summary.txt", "results.csv", "study.yaml"))
    fingerprint = hashlib.sha256(known.encode()).hexdigest()
    return Ending("failed" if failed and state == "done" else state, time.time(), tags, metrics, summary, fingerprint)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# --- the process ------------------------------------------------------------------------------------------------------


def follow(chronicle: Chronicle, name: str, orders: IO[bytes], say: Say) -> None:
    """Keep up until the driver says how it ended, or is gone."""
    rest, wait, failing, ending = FIRST_REST, 0.0, False, ""
    while not ending:
        ready, _, _ = select.select([orders], [], [], wait)
        order = orders.readline().decode().strip() if ready else None
        ending = "" if order is None else "done" if order == FINISH else "stopped"
        try:
            lines = chronicle.close(ending) if ending else []
            if not ending:
                chronicle.catch_up()
            if failing:
                say({"news": f"{name}: works again; what was missed is logged", "failing": False})
            rest, wait, failing = FIRST_REST, EVERY, False
            say({"lines": lines} if ending else {"alive": True})
        except Exception as error:
            chronicle.lost()
            if not failing:
                say({"news": f"{name}: {one_line(error)}; the study goes on without it, and the same command logs "
                             "later what is missing", "failing": True})
            failing, wait, rest = True, rest, min(2 * rest, LONGEST_REST)


def slug(name: str, where: str) -> str:
    """A tracker's name as files have it: a study may have several of one kind."""
    return f"tracking-{name}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"


def one_line(error: BaseException) -> str:
    """What went wrong in a few words: libraries' messages run on, and the cause lies below them."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in NO_ANSWER:
            return "its server does not answer"
        cause = cause.__cause__ or cause.__context__
    text = (masked(" ".join(str(error).split())) or type(error).__name__).rstrip(".")
    return text if len(text) <= 160 else f"{text[:157]}..."


def main(arguments: list[str]) -> None:
    """Follow the study in a folder with a tracker, as told: `TRACKER WHERE DIR`, orders on stdin, answers on stdout."""
    name, where, folder = arguments[0], arguments[1], Path(arguments[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def say(what: Mapping[str, Any]) -> None:
        with suppress(OSError):  # the driver is gone
            print(json.dumps(what), file=answers, flush=True)

    with suppress(OSError):
        os.nice(5)  # the study comes first
    try:
        with lock(folder, slug(name, where), 0):
            follow(Chronicle(folder, TRACKERS[name](where, folder), say), name, sys.stdin.buffer, say)
    except Timeout:
        say({"news": f"{name}: another `tlkd run` logs this study already", "lines": []})
    except Exception as error:
        say({"news": f"{name}: {one_line(error)}; the study goes on without it", "failing": True})
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
