"""Lays down a small finished study's folder by hand, each run published by the store; trains nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from tlkd import evaluation, store
from tlkd.folder import Predictions, Run, StudyFolder, save_predictions, teacher_fits
from tlkd.reading import apply_set, validate
from tlkd.seeding import generator
from tlkd.study import collect

PROVENANCE = {"command": "tlkd run small", "versions": {"python": "3.11"}, "git_commit": None}


def small_raw(*assignments: str) -> dict[str, Any]:
    """A study of two arms and two seeds, raw."""
    raw: dict[str, Any] = {
        "name": "small", "data": {"source": "mnist5k"}, "student": {"model": "timm:resnet18"},
        "teachers": {"big": {"model": "timm:resnet50"}},
        "arms": [{"name": "tl", "kind": "tl"}, {"name": "kd", "kind": "tl_kd", "teacher": "big"}],
        "training": {"epochs": 3}, "seeds": [0, 1]}
    for assignment in assignments:
        apply_set(raw, assignment)
    return raw


def lay_down(path: Path, *assignments: str, waiting: tuple[str, ...] = (), failed: tuple[str, ...] = ()) -> StudyFolder:
    """Write the folder that `tlkd run` would leave, with some runs still waiting and some failed."""
    folder = StudyFolder(path)
    study = validate(small_raw(*assignments), "small.yaml")
    folder.prepare(study, PROVENANCE)
    store.write_json(path / "data.json", {"source": "mnist5k", "classes": ["a", "b", "c"], "content": "0" * 64,
                                          "counts": {"test": {"a": 2, "b": 2, "c": 2}}})
    for fit in teacher_fits(study):
        target = folder.teacher_path(fit)
        target.mkdir(parents=True)
        _result(target, 3, fit.fit_id)
    for run in folder.runs():
        if run.run_id in failed:
            store.replace_text(folder.failure_path(run), "epoch 2, step 5: the loss is nan\nand a traceback\n")
        elif run.run_id not in waiting:
            publish(folder, run)
    store.write_json(path / "stages.json", [{"stage": "teacher big", "seconds": 1.5, "bytes": 10, "from_cache": False}])
    collect(folder)
    return folder


def publish(folder: StudyFolder, run: Run) -> None:
    """Publish one run's folder."""
    def build(target: Path) -> None:
        store.write_json(target / "spec.json", {"run_id": run.run_id})
        save_file({"head.weight": np.ones((3, 4), np.float32)}, target / "model.safetensors")
        _result(target, 3, run.run_id)

    where = store.address("run", 1, {"run": run.run_id}, {})
    store.publish(folder.run_path(run), where, {"kind": "run", "spec": {"run": run.run_id}, "inputs": {}}, build)


def reseal(path: Path) -> None:
    """Make a run's manifest fit its files again, as somebody would who wants an edit to pass."""
    manifest = store.read_json(path / store.MANIFEST)
    manifest.pop("sha256", None)  # of the manifest itself, which older versions did not have
    for name in manifest["files"]:
        file = path / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": store.checksum(file)}
    store.write_json(path / store.MANIFEST, manifest)


def _result(target: Path, classes: int, name: str) -> None:
    random = generator("sealed", name)
    labels = np.repeat(np.arange(classes), 10)
    logits = random.normal(0, 1, (len(labels), classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 1.5
    ids = np.array([f"test/{number:03}" for number in range(len(labels))])
    save_predictions(target / "predictions.npz", Predictions(ids, labels, logits))
    pd.DataFrame({"epoch": [1, 2, 3], "dev_accuracy": [0.3, 0.5, 0.6]}).to_csv(target / "history.csv", index=False)
    store.write_json(target / "result.json", {
        **{f"test_{key}": value for key, value in evaluation.metrics(labels, logits).items()},
        "epochs": 3, "best_epoch": 3, "seconds": 1.25})
