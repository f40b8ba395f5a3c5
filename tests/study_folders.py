"""Lays down a finished study's folder as `tlkd run` leaves it, with effects planted in it; trains nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tlkd import evaluation, store
from tlkd.conditions import Condition
from tlkd.folder import Predictions, Run, StudyFolder, save_predictions, teacher_fits
from tlkd.reading import dump_yaml, validate
from tlkd.seeding import generator

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Gains = dict[Any, float]  # by arm, or by (arm, condition)
PROVENANCE = {"command": "tlkd run planted", "started": "2026-01-02T03:04:05+00:00", "git_commit": "0" * 40,
              "versions": {"python": "3.11.7", "tlkd": "0.1.0", "torch": "2.9.0"},
              "hardware": {"processor": "a processor", "cores": 2, "device": "cpu", "memory_gib": 7.8}}


def lay_down(path: Path, *, classes: tuple[str, ...] = CLASSES, per_class: int | tuple[int, ...] = 40, seeds: int = 10,
             gain: float | Gains = 0.06, level: dict[str, float] | None = None, earlier: float = 2.0,
             teacher_accuracy: float = 0.9,
             epochs: int = 30, failed: tuple[str, ...] = (), missing: tuple[str, ...] = (),
             skipped: tuple[dict[str, str], ...] = (), **study: Any) -> StudyFolder:
    """Write the folder; `gain` is what an arm adds to TL's accuracy of .75, `earlier` its lead in epochs.

    `gain` by arm, or by (arm, condition), which goes first; `level` is TL's accuracy by condition where it is not .75.
    """
    raw = {"name": "planted", "data": {"source": "folder:somewhere", "augment": []},
           "student": {"model": "packaged:efficientnet_lite0", "input_size": 48},
           "teachers": {"lite1": {"model": "packaged:efficientnet_lite1", "input_size": 64}},
           "arms": [{"name": "tl", "kind": "tl"}, {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1"}],
           "training": {"epochs": epochs}, "seeds": list(range(seeds)), **study}
    if study.get("selection") == "test":
        raw["data"]["dev_fraction"] = 0
    spec = validate(raw, "planted")
    path.mkdir(parents=True, exist_ok=True)
    (path / "study.yaml").write_text(dump_yaml({**spec.model_dump(mode="json"), "provenance": PROVENANCE}))
    each = (per_class,) * len(classes) if isinstance(per_class, int) else per_class
    labels = np.repeat(np.arange(len(classes)), each)
    _card(path, classes, each, skipped, spec.selection)
    folder = StudyFolder(path)
    for run in folder.runs():
        if run.run_id in failed:
            store.replace_text(folder.failure_path(run), "epoch 3, step 4: the loss is nan\nand a traceback\n")
        elif run.run_id not in missing:
            base = (level or {}).get(run.condition.name, 0.75)
            lift, lead = (0.0, 0.0) if run.arm.kind == "tl" else (_lift(gain, run), earlier)
            _run(folder, run, labels, base + lift, lead)
    for fit in teacher_fits(spec):
        target = folder.teacher_path(fit)
        target.mkdir(parents=True, exist_ok=True)
        accuracy = teacher_accuracy + (level or {}).get(_name(fit.condition), 0.75) - 0.75
        logits = _logits(labels, len(classes), accuracy, ("teacher", fit.name, fit.seed or 0, *_named(fit.condition)))
        _result(target, labels, logits, _curve(accuracy, 0, epochs, ("teacher", fit.name)), spec.selection)
    store.write_json(path / "stages.json", [
        {"stage": "features of student", "address": "a" * 20, "from_cache": False, "seconds": 31.4, "bytes": 2**24},
        {"stage": "teacher lite1", "address": "b" * 20, "from_cache": True, "seconds": 0.2, "bytes": 2**16}])
    return folder


def _lift(gain: float | Gains, run: Run) -> float:
    if not isinstance(gain, dict):
        return gain
    return gain.get((run.arm.name, run.condition.name), gain.get(run.arm.name, 0.0))


def _name(condition: Condition | None) -> str:
    return condition.name if condition is not None else ""


def _named(condition: Condition | None) -> tuple[str, ...]:
    """What tells the draws of a difficult condition from those of a plain one."""
    return () if condition is None or condition.name == "clean" else (condition.name,)


def _card(path: Path, classes: tuple[str, ...], each: tuple[int, ...], skipped: Any, selection: str) -> None:
    def counts(times: int) -> dict[str, int]:
        return {name: count * times for name, count in zip(classes, each, strict=True)}

    store.write_json(path / "data.json", {
        "source": "folder:somewhere", "classes": list(classes), "content": "c" * 64,
        "counts": {"train": counts(9), "dev": counts(1 if selection == "dev" else 0), "test": counts(1)},
        "native_size": {"height": {"min": 32, "median": 48.0, "max": 640},
                        "width": {"min": 32, "median": 64.0, "max": 800}},
        "converted": {"L": 3}, "turned": 1, "stored_side": 64, "fit": "crop", "notes": ["a note on the data"],
        "skipped": list(skipped)})


def _run(folder: StudyFolder, run: Run, labels: np.ndarray, accuracy: float, lead: float) -> None:
    classes = int(labels.max()) + 1
    target = folder.run_path(run)
    target.mkdir(parents=True)
    where = _named(run.condition)
    accuracy += float(generator("luck", run.arm.kind, run.seed, *where).normal(0, 0.008))
    logits = _logits(labels, classes, accuracy, ("student", run.arm.name, run.seed, *where))
    curve = _curve(accuracy, lead, folder.study.training.epochs, ("student", run.arm.kind, run.seed, *where))
    _result(target, labels, logits, curve, folder.study.selection)
    store.write_json(target / "manifest.json", {"address": "d" * 20, "files": {}, "about": {}})


def _result(target: Path, labels: np.ndarray, logits: np.ndarray, curve: np.ndarray, selection: str) -> None:
    ids = np.array([f"test/{number:05d}.png" for number in range(len(labels))])
    save_predictions(target / "predictions.npz", Predictions(ids, labels, logits))
    number = np.arange(1, len(curve) + 1)
    pd.DataFrame({"epoch": number, "learning_rate": 0.01, "train_loss": 2 / number, f"{selection}_loss": 2 / number,
                  f"{selection}_accuracy": curve, "seconds": 0.1}).to_csv(target / "history.csv", index=False)
    store.write_json(target / "result.json", {
        **{f"test_{name}": value for name, value in evaluation.metrics(labels, logits).items()},
        "parameters": 1234567, "epochs": len(curve), "best_epoch": int(curve.argmax()) + 1, "seconds": 3.25})


def _logits(labels: np.ndarray, classes: int, accuracy: float, name: tuple[Any, ...]) -> np.ndarray:
    """Logits `[sample, class]` right with this chance; images differ in difficulty, which all networks share."""
    random = generator("planted", *name)
    shared = generator("difficulty").random(len(labels))
    ease = 0.8 * shared + 0.2 * random.random(len(labels))
    right = ease <= np.quantile(ease, accuracy)
    wrong = (labels + 1 + np.minimum(random.geometric(0.5, len(labels)) - 1, classes - 2)) % classes
    logits = random.normal(0, 0.3, (len(labels), classes))
    logits[np.arange(len(labels)), np.where(right, labels, wrong)] += random.uniform(2, 4, len(labels))
    return logits.astype(np.float32)


def _curve(top: float, lead: float, epochs: int, name: tuple[Any, ...]) -> np.ndarray:
    """Accuracy `[epoch]` that rises to `top`; with a lead, it starts lower and rises sooner."""
    number = np.arange(1, epochs + 1)
    rise = 1 / (1 + np.exp(-(number - (7 - lead)) / (1.6 if lead else 2.6)))
    noise = generator("curve", *name).normal(0, 0.008, epochs)
    return np.clip(top * rise + noise - (0.1 if lead else 0) * np.exp(-number), 0, 1)
