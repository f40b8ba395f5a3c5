"""Difficulties and controls for studies that `study_folders.lay_down` lays, and what robustness and examples leave."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tlkd import store
from tlkd.distortions import describe
from tlkd.folder import StudyFolder
from tlkd.seeding import generator

BLACK = {"kind": "center_black", "size": [0.8928571428571429, 1.0]}
ARMS = [{"name": "tl", "kind": "tl"}, {"name": "tl_kd", "kind": "tl_kd", "teacher": "lite1"}]
CONTROLS = [{"name": "smooth", "kind": "label_smoothing", "teacher": "lite1"},
            {"name": "shuffled", "kind": "tl_kd_shuffled", "teacher": "lite1"}, {"name": "own", "kind": "self"}]
ROBUSTNESS = [{"kind": "gaussian_noise", "severities": [1, 3, 5]}, {"kind": "center_black", "sizes": [0.25, 0.5]},
              {"kind": "low_pass", "bands": [[0.0, 0.25], [0.0, 0.5]]}]


def fractions(*numbers: float) -> list[dict[str, Any]]:
    """Conditions with ever fewer training images, `few_10` for a tenth."""
    return [{"name": f"few_{round(100 * each)}", "train_fraction": each} for each in numbers]


def noises(*numbers: float) -> list[dict[str, Any]]:
    """Conditions with ever more wrong labels, `noise_40` for .4."""
    return [{"name": f"noise_{round(100 * each)}", "label_noise": {"fraction": each}} for each in numbers]


def blacks(*numbers: float) -> list[dict[str, Any]]:
    """Conditions with ever more images under CenterBlack, `black_95` for .95."""
    return [{"name": f"black_{round(100 * each)}", "corruption": {**BLACK, "fraction": each}} for each in numbers]


def write_robustness(folder: StudyFolder, gains: Mapping[str, float] | None = None) -> None:
    """Leave robustness files of all finished runs: accuracy falls with the degree, `gains` are added by arm."""
    distortions = [each for one in folder.study.robustness for each in one.distortions]
    for run in folder.finished():
        target = folder.robustness_path(run)
        target.mkdir(parents=True)
        luck = float(generator("robust", run.run_id).normal(0, 0.005))
        rows = []
        for each in distortions:
            degree = each.severity if each.severity is not None else each.size[0] if each.size is not None else None
            strength = degree / 5 if each.severity is not None else degree or 0.3
            accuracy = 0.7 - 0.4 * strength + luck + (gains or {}).get(run.arm.name, 0.0)
            rows.append({"kind": each.kind, "degree": degree, "distortion": describe(each), "accuracy": accuracy,
                         "f1": accuracy - 0.01})
        pd.DataFrame(rows).to_csv(target / "robustness.csv", index=False)
        store.write_json(target / store.MANIFEST, {"address": "r" * 20, "files": {}, "about": {}})


def write_examples(folder: StudyFolder, side: int = 32) -> None:
    """Leave `examples.npz` and `examples.json`: blobs of colour, black in the middle where a condition says so."""
    study, labels = folder.study, folder.card()["classes"][:6]
    rows: list[tuple[str, str]] = [("clean", "as they are")]
    for condition in study.conditions:
        if condition.distortion is not None and ("condition", describe(condition.distortion)) not in rows:
            rows.append(("condition", describe(condition.distortion)))
    rows += [("robustness", describe(each)) for one in study.robustness for each in one.distortions]
    random = generator("examples")
    clean = random.integers(60, 255, (len(labels), 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    images = np.stack([clean.astype(np.uint8)] * len(rows))
    for number, (_, what) in enumerate(rows):
        if "Black" in what:
            images[number, :, 3:-3, 3:-3] = 0
    packed = io.BytesIO()
    np.savez_compressed(packed, images=images)
    store.replace_bytes(folder.path / "examples.npz", packed.getvalue())
    noisy = [each.name for each in study.conditions if "label_noise" in each.difficulty]
    store.write_json(folder.path / "examples.json", {
        "rows": [{"of": of, "what": what} for of, what in rows], "labels": labels,
        "taken_for": {name: [labels[(number + 1) % len(labels)] if number % 2 else None if number == 4 else label
                             for number, label in enumerate(labels)] for name in noisy}})
