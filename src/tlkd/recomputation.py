"""`tlkd verify`, with the networks: a sample of each bank and of predictions, from images through weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from tlkd import datasets, models, seeding, stages, store, wording
from tlkd.batches import Source
from tlkd.conditions import Condition
from tlkd.errors import BadInput
from tlkd.folder import Run, StudyFolder, load_predictions, teacher_fits
from tlkd.specs import canonical
from tlkd.workshop import (
    Workshop,
    all_pixels,
    corrupted_views,
    distorted_recipe,
    features_recipe,
    inputs_of,
    is_banked,
    network_for,
    pixels,
)

ALLOWED = 1e-4  # of the largest number: other processors, and other numbers of threads, round otherwise
RUNS = 16  # whose predictions are recomputed, unless all are


@dataclass
class Recomputed:
    """What was recomputed, what differs, and what could not be."""

    problems: list[str] = field(default_factory=list)
    banks: dict[str, float] = field(default_factory=dict)  # by name: the largest difference, as a part of the largest
    networks: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def lines(self, rows: int | None) -> list[str]:
        """What was done, for a person."""
        each = "every row" if rows is None else wording.count(rows, "row")
        found = [f"{wording.count(len(largest), what)}: {each}{of} recomputed, largest difference "
                 f"{max(largest.values()):.1g} of the largest number"
                 for what, of, largest in (("bank", " of each split", self.banks),
                                           ("network", " of its test predictions", self.networks)) if largest]
        return [*found, *(f"not recomputed: {each}" for each in self.missed)]


def recompute(path: Path, rows: int | None = 16, everything: bool = False) -> Recomputed:
    """Recompute up to `rows` rows (None: all) of each bank that a study used, and of its networks' test predictions.

    Nothing is trained; decoded images are written anew where the cache has lost them. What else it no longer
    holds is said, and is no problem.
    """
    folder, found = StudyFolder(path), Recomputed()
    try:
        dataset = datasets.open_again(folder.study.data, folder.study.max_input_size, store.cache_folder(),
                                      folder.card()["content"])
    except BadInput as error:
        found.missed.append(f"anything, since the study's images cannot be had ({error})")
        return found
    images = store.cache_folder() / "images" / dataset.address
    found.problems += [f"{images / name}: missing, or not what its checksum says" for name in store.damaged(images)]
    if found.problems:
        return found
    workshop = Workshop(folder.study, dataset, store.cache_folder(), torch.device("cpu"))
    known = {stage["address"] for stage in folder.stages()}
    compared = set()
    for name, bank in _banks(workshop, folder, rows, found):
        if bank.recipe.address in known:
            compared.add(bank.recipe.address)
            _compare_bank(workshop, name, bank, rows, found)
    found.missed += [f"{stage['stage']}, a bank of distorted images that verify cannot make again"
                     for stage in folder.stages() if str(stage.get("place", "")).startswith(("features/", "logits/"))
                     and stage["address"] not in compared]
    finished = folder.finished()
    chosen = finished if everything or len(finished) <= RUNS else [
        finished[place] for place in np.linspace(0, len(finished) - 1, RUNS).round().astype(int)]
    for run in chosen:
        _compare_run(workshop, folder, run, rows, found)
    if len(chosen) < len(finished):
        found.missed.append(f"predictions of {len(finished) - len(chosen)} runs (--all recomputes them)")
    return found


@dataclass(frozen=True, eq=False)
class _Bank:
    """Where a bank lies, and what each row of it comes from."""

    recipe: store.Recipe
    sources: dict[str, Source]
    forward: Callable[[Tensor], Tensor]


def _banks(workshop: Workshop, folder: StudyFolder, rows: int | None,
           found: Recomputed) -> Iterator[tuple[str, _Bank]]:
    """The banks of a study: features and corrupted features of students and teachers, logits of teachers.

    Each is valid until the next one is asked for, since networks share a backbone.
    """
    study, seen = workshop.study, set[str]()
    fits = [(f"teacher {fit.fit_id}", study.teachers[fit.name], f"teachers.{fit.name}", fit.condition, fit)
            for fit in teacher_fits(study)]
    students = [("student", study.student_of(each), stages.student_key(each), each, None) for each in study.conditions]
    for who, spec, key, condition, fit in [*students, *fits]:
        drawn = seeding.seed_from("teacher") if fit is None or fit.seed is None else fit.seed
        network = network_for(workshop, spec, drawn, key, fit=getattr(spec, "fit", True)).eval()
        for name, bank in _feature_banks(workshop, network, who, condition or stages.CLEAN):
            if bank.recipe.address not in seen:
                seen.add(bank.recipe.address)
                yield name, bank
        if fit is None:
            continue
        recipe = stages.teacher_recipe(workshop, network, fit, inputs_of(workshop, network))
        place = workshop.cache / "teachers" / recipe.address
        if store.find(place, recipe.address) is None:
            _miss(place, f"{who}'s weights", found)
            continue
        models.load_trained(network, load_file(place / "model.safetensors"))
        if study.bank:
            yield f"logits of {who}", _Bank(stages.logits_recipe(workshop, recipe.address),
                                            dict(all_pixels(workshop, network)), network.eval())
        _compare(f"{place}", network.eval(), workshop, load_predictions(place / "predictions.npz").logits, rows, found)


def _feature_banks(workshop: Workshop, network: models.Network, who: str,
                   condition: Condition) -> Iterator[tuple[str, _Bank]]:
    if not is_banked(workshop, network):
        return
    inputs = inputs_of(workshop, network)
    yield f"features of {who}", _Bank(features_recipe(workshop, network, inputs), dict(all_pixels(workshop, network)),
                                      network.features)
    views, distortion = corrupted_views(workshop, condition), condition.distortion
    if views and distortion is not None:
        yield f"features of {who}, {condition.name}", _Bank(
            distorted_recipe(workshop, network, inputs, "train", views, distortion),
            {"train": pixels(workshop, network, "train", views, distortion)}, network.features)


def _miss(place: Path, what: str, found: Recomputed) -> None:
    if (place / store.MANIFEST).is_file():
        found.problems.append(f"{place}: {what}: not what the checksums say")
    else:
        found.missed.append(f"{what}, which the cache no longer holds")


def _compare_bank(workshop: Workshop, name: str, bank: _Bank, rows: int | None, found: Recomputed) -> None:
    place = workshop.cache / bank.recipe.kind / bank.recipe.address
    if store.find(place, bank.recipe.address) is None:
        _miss(place, name, found)
        return
    for split, source in bank.sources.items():
        stored = np.load(place / f"{split}.npy", mmap_mode="r")
        places = [divmod(int(row), stored.shape[1]) for row in _sample(stored.shape[0] * stored.shape[1], rows)]
        views, samples = (np.array(each, np.int64) for each in zip(*places, strict=True))
        off = _difference(np.asarray(stored[views, samples]), _through(bank.forward, source, views, samples))
        found.banks[name] = max(found.banks.get(name, 0.0), off)
        if not off <= ALLOWED:
            found.problems.append(f"{place / split}.npy: {name}: images and network give other numbers, off by "
                                  f"{off:.3g} of the largest")


def _compare_run(workshop: Workshop, folder: StudyFolder, run: Run, rows: int | None, found: Recomputed) -> None:
    path = folder.run_path(run)
    if store.damaged(path):  # which the checks of the files name
        return
    student = workshop.study.student_of(run.condition)
    network = network_for(workshop, student, run.seed, stages.student_key(run.condition))
    made, asked = store.read_json(path / store.MANIFEST), stages.run_spec(workshop, network, run)
    if made["version"] == stages.VERSION:  # another tlkd says what it made in its own way
        found.problems += [f"runs/{run.run_id}: its {key} is another than the study's: {_brief(made['spec'], key)}, "
                           f"study.yaml gives {_brief(asked, key)}"
                           for key in asked if canonical(made["spec"].get(key)) != canonical(asked[key])]
    models.load_trained(network, load_file(path / "model.safetensors"))
    _compare(f"runs/{run.run_id}", network.eval(), workshop, folder.predictions(run).logits, rows, found)


def _brief(spec: dict[str, Any], key: str) -> str:
    text = canonical(spec.get(key))
    return text if len(text) <= 200 else f"{text[:197]}..."


def _compare(who: str, network: models.Network, workshop: Workshop, stored: NDArray[Any], rows: int | None,
             found: Recomputed) -> None:
    """Whether a network says of test images what is stored of it."""
    samples = _sample(len(stored), rows)
    again = _through(network, pixels(workshop, network, "test"), np.zeros_like(samples), samples)
    off = found.networks[who] = _difference(stored[samples], again)
    if not off <= ALLOWED:
        found.problems.append(f"{who}/predictions.npz: the weights give other numbers, off by {off:.3g} of the largest")


def _sample(count: int, rows: int | None) -> NDArray[np.int64]:
    """Which of `count` rows are recomputed: all, or some by a draw that is the same each time."""
    if rows is None or rows >= count:
        return np.arange(count)
    return np.sort(seeding.generator("verify", count).choice(count, rows, replace=False)).astype(np.int64)


def _through(forward: Callable[[Tensor], Tensor], source: Source, views: NDArray[np.int64],
             samples: NDArray[np.int64]) -> NDArray[Any]:
    with torch.inference_mode():
        parts = [forward(source(views[start:start + 64], samples[start:start + 64])).float().cpu().numpy()
                 for start in range(0, len(samples), 64)]
    return np.concatenate(parts)


def _difference(stored: NDArray[Any], again: NDArray[Any]) -> float:
    """The largest difference, as a part of the largest number."""
    return float(np.abs(stored - again).max() / max(1e-12, float(np.abs(again).max())))
