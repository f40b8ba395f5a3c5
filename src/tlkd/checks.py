"""`tlkd verify`: does a study's folder still say what it said when it was written?"""

import json
from pathlib import Path

import numpy as np

from tlkd import evaluation, store
from tlkd.folder import Run, StudyFolder

TOLERANCE = 1e-9  # results are recomputed from the same stored numbers, so only the reading of decimals can differ


def verify(path: Path) -> tuple[int, list[str]]:
    """Check every finished run of a study: (number of runs checked, problems, one line each).

    Files against the checksums of their manifests, metrics against the stored predictions, `results.csv` against both.
    """
    folder = StudyFolder(path)
    table = folder.results().set_index("run_id")
    problems = [f"results.csv: holds {name}, which is not a finished run" for name in table.index
                if name not in {run.run_id for run in folder.finished()}]
    for run in folder.finished():
        problems += [f"runs/{run.run_id}/{line}" for line in _run_problems(folder, run)]
        if run.run_id not in table.index:
            problems.append(f"results.csv: lacks {run.run_id}")
            continue
        row = table.loc[run.run_id]
        problems += [f"results.csv: {run.run_id}, {key} is {row[key]}, its result.json says {value}"
                     for key, value in folder.result(run).items()
                     if key in row and not np.isclose(float(row[key]), value, rtol=0, atol=TOLERANCE)]
    return len(folder.finished()), problems


def _run_problems(folder: StudyFolder, run: Run) -> list[str]:
    path = folder.run_path(run)
    try:
        bad = store.damaged(path)
    except (OSError, ValueError, KeyError) as error:
        return [f"{store.MANIFEST}: cannot be read ({error})"]
    if bad:
        return [f"{name}: missing, or not what its checksum says" for name in bad]
    predictions = folder.predictions(run)
    again = {f"test_{name}": value for name, value in evaluation.metrics(predictions.labels, predictions.logits).items()}
    stored = json.loads((path / "result.json").read_text())
    return [f"result.json: {name} is {stored.get(name)}, its predictions give {value}" for name, value in again.items()
            if not np.isclose(stored.get(name, np.nan), value, rtol=0, atol=TOLERANCE, equal_nan=True)]
