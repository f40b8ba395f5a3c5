"""What the difficulties of a study look like: a few training images under each, kept beside it for the report."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tlkd import store
from tlkd.batches import Pixels
from tlkd.conditions import Distortion
from tlkd.distortions import describe
from tlkd.views import View
from tlkd.workshop import Workshop

SHOWN = 6  # images: one of each of the first classes
LARGEST = 128  # pixels: the side that they are shown at, at most

VIEWS = (View(), View(variant=1))


def write(workshop: Workshop, out: Path) -> None:
    """Write `examples.npz` and `examples.json`: the images as a student sees them under each corruption.

    `images`, uint8 `[row, image, side, side, 3]`, has the clean ones first; `examples.json` says what each row is, and
    which wrong labels the first seed gives them. Nothing is written where the study has no difficulty.
    """
    study, dataset = workshop.study, workshop.dataset
    rows: list[tuple[str, str, Distortion | None]] = [("clean", "as they are", None)]
    seen: dict[Distortion, str] = {}
    for condition in study.conditions:
        if condition.distortion is not None and condition.distortion not in seen:
            seen[condition.distortion] = condition.name
            rows.append(("condition", describe(condition.distortion), condition.distortion))
    rows += [("robustness", describe(each), each) for one in study.robustness for each in one.distortions]
    noisy = [each for each in study.conditions if "label_noise" in each.difficulty]
    if len(rows) == 1 and not noisy:
        return
    train = dataset.splits["train"]
    first = [int(np.flatnonzero(dataset.labels[train] == label)[0]) for label in range(len(dataset.classes))][:SHOWN]
    chosen = np.array(first, np.int64)
    images = np.stack([_shown(workshop, chosen, distortion) for _, _, distortion in rows])
    packed = io.BytesIO()
    np.savez_compressed(packed, images=images)
    store.replace_bytes(out / "examples.npz", packed.getvalue())
    store.write_json(out / "examples.json", {
        "rows": [{"of": of, "what": what} for of, what, _ in rows],
        "labels": [dataset.classes[label] for label in dataset.labels[train[chosen]]],
        "taken_for": {each.name: _taken_for(workshop, each.name, chosen) for each in noisy}})


def _shown(workshop: Workshop, chosen: NDArray[np.int64], distortion: Distortion | None) -> NDArray[np.uint8]:
    """Images `[image, side, side, 3]` at the student's input size, or smaller where that is large."""
    rows = workshop.dataset.splits["train"][chosen]
    side = min(LARGEST, workshop.study.student.input_size)
    source = Pixels(workshop.dataset.images, rows, workshop.keys[rows], VIEWS, side, workshop.study.data.data_seed,
                    (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.device("cpu"), distortion)
    which = np.full(len(rows), 0 if distortion is None else 1, np.int64)
    inputs = source(which, np.arange(len(rows)))
    shown: NDArray[np.uint8] = (255 * inputs).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return shown


def _taken_for(workshop: Workshop, name: str, chosen: NDArray[np.int64]) -> list[str | None]:
    """The class that each image is called under a noisy condition by the first seed, None where it is not kept."""
    condition = next(each for each in workshop.study.conditions if each.name == name)
    drawn = workshop.draw(condition, workshop.study.seeds_of(condition)[0])
    labels: dict[int, Any] = dict(zip(drawn.samples.tolist(), drawn.labels(1).tolist(), strict=True))
    classes = workshop.dataset.classes
    return [classes[labels[row]] if row in labels else None for row in chosen.tolist()]
