"""`tlkd verify`: does a study's folder still say what it said when it was written?"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tlkd import arrays, evaluation, explained, regions, seals, store
from tlkd.errors import BadInput
from tlkd.folder import RESULT_COLUMNS, Run, StudyFolder, load_predictions, reading
from tlkd.progress import track
from tlkd.wording import count

NEAR = 1e-3  # of the largest output: an explanation's may be computed on another machine than the predictions'
ROUNDING = 1e-6  # of the attributions' sizes: stored in float32, their sum is not exact
TOLERANCE = 1e-9  # results are recomputed from the same stored numbers, so only the reading of decimals can differ


def verify(path: Path) -> tuple[int, list[str]]:
    """Check every finished run of a study: (number of runs checked, problems, one line each).

    Files against the checksums of their manifests, metrics against the stored predictions, `results.csv` against both,
    teachers' metrics against theirs; attributions against the outputs that they sum to, regions against attributions
    and masks. Raises BadInput where no study lies, or where it has no results yet.
    """
    folder = StudyFolder(path)
    loose = [f"{name}: missing, or not what {seals.NAME} says" for name in seals.damaged(path)]
    loose += [f"{name}: {seals.NAME} lacks it" for name in seals.unsealed(path)]
    try:
        finished = folder.finished()
        rows, problems = _rows(folder, [run.run_id for run in finished])
    except BadInput:
        if not loose:
            raise
        return 0, loose  # what is damaged need not be readable
    problems += loose
    for run in finished:
        problems += [f"runs/{run.run_id}/{line}" for line in _run_problems(folder, run)]
        if run.run_id in rows:
            problems += [f"results.csv: {run.run_id}, {line}" for line in _row_problems(folder, run, rows[run.run_id])]
    for name, paths in folder.teachers().items():
        problems += [f"teachers/{path.name}/{line}" for path in paths for line in _metric_problems(path)]
        learned = [run.run_id for run in finished if run.arm.teacher == name]
        if not paths and learned:  # a study that was stopped early has neither
            problems.append(f"teachers/{name}: is not there, though {learned[0]} learned from it")
    problems += _robustness_problems(folder)
    for who in [*(run.run_id for run in folder.finished()), *explained.explained_teachers(folder).values()]:
        if explained.there(folder, who):
            problems += [f"explanations/{who}/{line}" for line in _explanation_problems(folder, who)]
    return len(finished), problems


def covered(folder_path: Path) -> list[str]:
    """What `verify` looks at in this folder, and what it does not, a line each."""
    folder = StudyFolder(folder_path)
    try:
        runs, teachers = len(folder.finished()), sum(map(len, folder.teachers().values()))
        shown = [who for who in explained.current(folder) if explained.there(folder, who)]
        sealed = len(seals.read(folder_path))
        largest = [store.Artifact(explained.place(folder, who), "").about.get("largest_residual") for who in shown]
    except (BadInput, OSError, ValueError, LookupError, AttributeError):  # so damaged that it cannot be told
        return []
    lines = [f"{count(runs, 'run')}: files, metrics from predictions, results.csv, best epochs from curves",
             f"{count(teachers, 'teacher')}: metrics from predictions"]
    if shown:
        known = [each for each in largest if isinstance(each, int | float)]
        lines.append(f"{count(len(shown), 'explanation')}: files, sums, outputs, regions"
                     + (f"; largest residual when made {max(known):.1g}" if known else ""))
    lines.append(f"{count(sealed, 'other file')}: as in {seals.NAME}" if sealed else
                 f"not checked: files that only {seals.NAME} would vouch for, which a study has when it is over")
    return [*lines, "not checked: curves against trainings; tables and page against the rest (tlkd report writes them "
            "anew); logs, failures, locks, what trackers wrote"]


def refuse_damaged(folder: StudyFolder) -> None:
    """Raise `BadInput` that names the first damaged file of those that a report reads; `.npz` files say so themselves.

    Weights are left to whoever reads them.
    """
    seals.refuse(folder.path)
    finished = folder.finished()
    explained_now = [explained.place(folder, who) for who in explained.current(folder) if explained.there(folder, who)]
    places = [*map(folder.run_path, finished), *map(folder.robustness_path, finished), *explained_now]
    for path in track(places, "compare checksums", len(places)):
        if (path / store.MANIFEST).is_file():
            with reading(path / store.MANIFEST):
                bad = store.damaged(path, (".csv", ".json"))
            if bad:
                raise BadInput(f"{path / bad[0]}: is missing or damaged; the study's own `tlkd run` makes it anew")


def _robustness_problems(folder: StudyFolder) -> list[str]:
    """Whether what students said of distorted images is as it was written, and gives the accuracies beside it."""
    there = [run for run in folder.finished() if (folder.robustness_path(run) / store.MANIFEST).is_file()]
    return [f"robustness/{run.run_id}/{line}" for run in there for line in (
        _damage(folder.robustness_path(run)) or _accuracy_problems(folder, run))]


def _accuracy_problems(folder: StudyFolder, run: Run) -> list[str]:
    """Whether `robustness.csv` says what the predicted classes beside it give."""
    path = folder.robustness_path(run)
    try:
        labels = folder.predictions(run).labels
        with reading(path / "robustness.csv"):
            stored = pd.read_csv(path / "robustness.csv")["accuracy"].to_numpy(np.float64)
        with reading(path / "predicted.npz"), arrays.stored(path / "predicted.npz") as held:
            again = (held["predicted"] == labels).mean(axis=1)
        off = np.flatnonzero(~np.isclose(stored, again, rtol=0, atol=TOLERANCE))
        return [f"robustness.csv: row {row + 1}: accuracy is {stored[row]}, its predicted classes give {again[row]}"
                for row in off]
    except (BadInput, ValueError, LookupError) as error:
        return [f"cannot be checked ({type(error).__name__}: {error})"]


def _explanation_problems(folder: StudyFolder, who: str) -> list[str]:
    """Whether attributions sum to what they say, and regions are what attributions and masks give."""
    problems = _damage(explained.place(folder, who))
    if problems:
        return problems
    try:
        found, images = explained.load(folder, who), explained.load_images(folder)
        spec = folder.study.explanation
        missed = np.abs(found.values.sum((1, 2, 3), dtype=np.float64) + found.expected - found.output - found.residual)
        allowed = ROUNDING * np.maximum(1, np.abs(found.values).sum((1, 2, 3)))
        problems += [f"attributions.npz: {name} does not sum to its output: off by {off:.3g}"
                     for name, off in zip(found.sample_ids[missed > allowed], missed[missed > allowed], strict=True)]
        problems += _output_problems(folder, who, found)
        if spec is not None and images.masked.any() and found.values.shape[2:] == images.masks.shape[1:]:
            table = explained.regions(folder, who).set_index("sample_id")
            ids, masked = found.sample_ids[images.masked], images.masked
            again = regions.measure(found.values[masked], images.masks[masked], spec.signs)
            for name in regions.QUANTITIES:
                stored = table[name].loc[ids.tolist()].to_numpy(np.float64)
                off = ~np.isclose(stored, again[name], rtol=ROUNDING, atol=TOLERANCE, equal_nan=True)
                problems += [f"regions.csv: {name} of {image} is {was}, its attributions and mask give {now}"
                             for image, was, now in zip(ids[off], stored[off], again[name][off], strict=True)]
    except (BadInput, ValueError, KeyError, IndexError) as error:
        problems.append(f"cannot be checked ({type(error).__name__}: {error})")
    return problems


def _output_problems(folder: StudyFolder, who: str, found: explained.Explained) -> list[str]:
    """Whether what was explained is what the network predicts of these images."""
    named = {run.run_id: folder.run_path(run) for run in folder.finished()}
    path = named.get(who, folder.path / "teachers" / who.removeprefix("teacher-")) / "predictions.npz"
    if not path.is_file() or folder.study.explanation is None:  # a teacher of several fits goes by another name
        return []
    predictions = load_predictions(path)
    rows = {name: row for row, name in enumerate(predictions.sample_ids.tolist())}
    outputs = predictions.logits[[rows[name] for name in found.sample_ids.tolist()]].astype(np.float64)
    if folder.study.explanation.output == "probability":
        outputs = np.exp(outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True))
    off = np.abs(outputs[np.arange(len(outputs)), found.labels] - found.output)
    return [f"attributions.npz: the output explained of {name} is off by {far:.3g} from the network's predictions"
            for name, far in zip(found.sample_ids, off, strict=True) if not far <= NEAR * np.abs(outputs).max()]


def _rows(folder: StudyFolder, finished: list[str]) -> tuple[dict[str, dict[Any, Any]], list[str]]:
    """The rows of `results.csv` by run id, and what is wrong with which runs it holds."""
    table = folder.results()
    problems = [f"results.csv: has no column {name}" for name in RESULT_COLUMNS if name not in table]
    if "run_id" not in table:
        return {}, problems
    listed = list(table["run_id"])
    problems += [f"results.csv: holds {name}, which is not a finished run" for name in listed if name not in finished]
    problems += [f"results.csv: lacks {name}" for name in finished if name not in listed]
    problems += [f"results.csv: holds {name} more than once" for name in finished if listed.count(name) > 1]
    return {row["run_id"]: row for row in table.to_dict("records")}, problems


def _row_problems(folder: StudyFolder, run: Run, row: dict[Any, Any]) -> list[str]:
    expected: dict[str, tuple[Any, str]] = {
        key: (value, "its run") for key, value in
        {"arm": run.arm.name, "condition": run.condition.name, "seed": run.seed}.items()}
    try:
        expected |= {key: (value, "its result.json") for key, value in folder.result(run).items()}
        teacher = folder.teacher_of(run)
        if teacher is not None and (teacher / "predictions.npz").is_file():
            theirs = load_predictions(teacher / "predictions.npz").logits
            shared = evaluation.agreement(folder.predictions(run).logits, theirs)["top1"]
            expected["teacher_agreement"] = shared, "its and the teacher's predictions"
    except (BadInput, ValueError):
        pass  # a file that cannot be read, or does not fit the other, is named by the checks of the files themselves
    return [f"{key} is {row[key]}, {source} gives {value}" for key, (value, source) in expected.items()
            if key in row and not _same(row[key], value)]


def _run_problems(folder: StudyFolder, run: Run) -> list[str]:
    path = folder.run_path(run)
    return _damage(path) or [*_name_problems(path, run), *_metric_problems(path), *_epoch_problems(folder, run)]


def _epoch_problems(folder: StudyFolder, run: Run) -> list[str]:
    """Whether a result's epochs are those of its curve."""
    try:
        curve, result = folder.curve(run), folder.result(run)
    except BadInput as error:
        return [f"history.csv: {error}"]
    again = {"epochs": curve.size, "best_epoch": 1 + int(np.nanargmax(curve)) if np.isfinite(curve).any() else 0}
    return [f"result.json: {name} is {result[name]}, history.csv gives {value}" for name, value in again.items()
            if not _same(result[name], value)]


def _name_problems(path: Path, run: Run) -> list[str]:
    """Whether a run lies in its own place: two that have changed places are whole, each by itself."""
    try:
        named = store.read_json(path / "spec.json")["run_id"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [f"spec.json: cannot be read ({type(error).__name__}: {error})"]
    return [] if named == run.run_id else [f"spec.json: is of the run {named}"]


def _damage(path: Path) -> list[str]:
    """The files of an artifact that do not have their checksums."""
    try:
        bad = store.damaged(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{store.MANIFEST}: cannot be read ({type(error).__name__}: {error})"]
    return [f"{name}: missing, or not what its checksum says" for name in bad]


def _metric_problems(path: Path) -> list[str]:
    """Whether a result says what the predictions beside it give."""
    try:
        stored = dict(store.read_json(path / "result.json").items())
    except (OSError, ValueError, AttributeError) as error:
        return [f"result.json: cannot be read ({type(error).__name__}: {error})"]
    try:
        predictions = load_predictions(path / "predictions.npz")
        again = evaluation.metrics(predictions.labels, predictions.logits)
    except (BadInput, ValueError) as error:
        return [f"predictions.npz: cannot be evaluated ({error})"]
    return [f"result.json: test_{name} is {stored.get(f'test_{name}')}, its predictions give {value}"
            for name, value in again.items() if not _same(stored.get(f"test_{name}"), value)]


def _same(found: Any, expected: Any) -> bool:
    """Whether a stored value is the expected one: words exactly, numbers to `TOLERANCE`, null as NaN."""
    if isinstance(expected, str):
        return bool(found == expected)
    try:
        left, right = (np.nan if value is None else float(value) for value in (found, expected))
    except (TypeError, ValueError, OverflowError):  # OverflowError: a whole number of 400 digits
        return bool(found == expected)
    return bool(np.isclose(left, right, rtol=0, atol=TOLERANCE, equal_nan=True))
