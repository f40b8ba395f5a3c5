"""A pool of stored runs of one and the same arm, TL, that differ in their seed alone; not a proof by itself.

Made by tlkd: a frozen EfficientNet-lite0 whose head is trained, 100 training and 200 test images a class of CIFAR-10 at
64 pixels, 10 epochs. Where CIFAR-10 is absent, mnist5k's digits take its place, which need no file.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import DATA

ARCHIVE = DATA / "cifar10-jpeg.tar.gz"


@dataclass(frozen=True)
class Pool:
    """What a pool's runs say: predicted classes `[run, image]`, true ones `[image]`, dev curves `[run, epoch]`."""

    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]
    curves: NDArray[np.float64]
    source: str

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Correctness `[run, image]`."""
        return self.predicted == self.labels

    @property
    def size(self) -> str:
        """What it was made of, for a line above a table."""
        return f"{len(self.predicted)} runs on {self.source}, each judged on {self.labels.size:,} test images"


def options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of the proofs that draw from a pool."""
    parser.add_argument("--data", type=Path, default=ARCHIVE, help="an archive or a folder of CIFAR-10's images")
    parser.add_argument("--pool", type=Path, help="where the pool is kept (default: a temporary folder of the user's)")
    parser.add_argument("--runs", type=int, default=400)
    return parser


def study(data: Path, runs: int) -> dict[str, object]:
    """The pool as a study of one arm."""
    source = f"folder:{data.resolve()}" if data.exists() else "mnist5k"
    return {"name": "pool", "data": {"source": source, "train_per_class": 100, "test_per_class": 200,
                                     "dev_fraction": 0.2, "augment": []},
            "student": {"model": "packaged:efficientnet_lite0", "input_size": 64, "trainable": "head"},
            "arms": [{"name": "tl", "kind": "tl"}], "conditions": [{"name": "clean"}],
            "training": {"epochs": 10, "learning_rate": 0.001, "schedule": "cosine"}, "seeds": list(range(runs))}


def read(given: argparse.Namespace) -> Pool:
    """The pool, which is made first where it is not there."""
    runs = 40 if given.short else given.runs
    raw = study(given.data, runs)
    source = "CIFAR-10" if given.data.exists() else "handwritten digits (CIFAR-10 is absent)"
    place = given.pool or Path(tempfile.gettempdir()) / f"tlkd-pool-{os.getuid()}"
    kept = place / f"{'cifar10' if given.data.exists() else 'digits'}-{runs}.npz"
    if not kept.is_file():
        _make(raw, place / kept.stem, kept)
    with np.load(kept, allow_pickle=False) as arrays:
        return Pool(arrays["predicted"], arrays["labels"], arrays["curves"], source)


def _make(raw: dict[str, object], folder: Path, kept: Path) -> None:
    """Run the study by tlkd itself, and keep what is drawn from."""
    import tlkd
    from tlkd.folder import StudyFolder

    curves = tlkd.run_study(raw, folder, report=False).curves
    curves = curves.pivot(index="seed", columns="epoch", values="dev_accuracy")
    made = StudyFolder(folder)
    stored = [made.predictions(run) for run in made.finished()]
    np.savez(kept, predicted=np.array([each.logits.argmax(axis=1) for each in stored]), labels=stored[0].labels,
             curves=curves.to_numpy())


def planted(predicted: NDArray[np.int64], labels: NDArray[np.int64], gain: float, errors: float,
            random: np.random.Generator) -> NDArray[np.int64]:
    """Predictions `[seed, image]` of an arm that is better by `gain` in the population, whose error rate is `errors`.

    Half of it lies in images that all seeds get right that were wrong, half in single answers; each at random.
    """
    wrong = predicted != labels
    chance = gain / errors
    whole = random.random(labels.size) < chance / 2
    single = random.random(predicted.shape) < (chance / 2) / (1 - chance / 2)
    return np.where(wrong & (whole | single), labels, predicted)
