"""`tlkd verify`, with the networks: a sample of each bank and of predictions, from images through weights."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tlkd import arrays, banks, datasets, models, seeding, stages, store, wording
from tlkd.batches import Pixels
from tlkd.conditions import Condition, Distortion
from tlkd.distortions import describe
from tlkd.errors import BadInput
from tlkd.folder import Predictions, Run, StudyFolder, TeacherFit, load_predictions, reading, teacher_fits
from tlkd.specs import Network, canonical
from tlkd.views import View
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

ALLOWED = 1e-4  # of the largest number; `recompute` says why it is one for all
PIECE = 1024  # rows of a bank that are compared at a time
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


def recompute(path: Path, rows: int | None = 16, everything: bool = False, seed: int = 0) -> Recomputed:
    """Recompute up to `rows` rows (None: all) of each bank that a study used, and of its networks' test predictions.

    Which rows, and of which `RUNS` runs unless `everything` is asked for, `seed` draws, so that whoever edits a study
    does not know. Beside them what runs drew, and the content of the decoded images, are computed again. Nothing is
    trained; decoded images are written anew where the cache has lost them. What else it no longer holds is said, and is
    no problem.

    `ALLOWED` is for all of them, since all are computed and stored in float32, on a GPU without TensorFloat-32: of
    `training.precision` only trainings know, and no bank or prediction. Other processors round otherwise, by about
    2e-6 of the largest number through an EfficientNet-lite; numbers in float16 would be off by 4e-4, networks in fp16
    by 3e-3 and more, in bf16 by 3e-2 and more. Those are problems, therefore.
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
    if datasets.content_of(dataset) != folder.card()["content"]:
        found.problems.append(f"{images}: its pixels, ids, labels or splits are not those that the study was run on")
        return found
    workshop = Workshop(folder.study, dataset, store.cache_folder(), torch.device("cpu"))
    if folder.study.bank and not folder.stages():
        found.missed.append("banks, since stages.json names none")
    again = _Again(workshop, folder, rows, seed, found, {str(stage.get("address")) for stage in folder.stages()})
    again.students()
    again.teachers()
    finished = folder.finished()
    chosen = finished if everything or len(finished) <= RUNS else [
        finished[place] for place in _sample(len(finished), RUNS, seed)]
    for run in chosen:
        again.run(run)
    if len(chosen) < len(finished):
        found.missed.append(f"predictions of {len(finished) - len(chosen)} runs (--all recomputes them)")
    found.missed += [f"{stage['stage']}, a bank that no network above gives again"
                     for stage in folder.stages() if str(stage.get("place", "")).startswith(("features/", "logits/"))
                     and stage.get("address") not in again.seen]
    return found


@dataclass(frozen=True, eq=False)
class _Bank:
    """Where a bank lies, and what each row of it comes from."""

    name: str
    recipe: store.Recipe
    sources: dict[str, Pixels]
    forward: Callable[[Tensor], Tensor]


@dataclass
class _Again:
    """One study that is recomputed, a network at a time: networks share a backbone."""

    workshop: Workshop
    folder: StudyFolder
    rows: int | None
    seed: int
    found: Recomputed
    known: set[str]  # the addresses of what the study says that it has used
    seen: set[str] = field(default_factory=set)  # those of them that have had their turn

    def students(self) -> None:
        """The banks of features of the students of all conditions, and of the distorted test images they are shown."""
        study = self.workshop.study
        for condition in study.conditions:
            network = self._network(study.student_of(condition), study.seeds[0], stages.student_key(condition))
            if network is None:
                continue
            self._features(network, "student", condition)
            for distortion in stages.distortions_of(study):
                self._distorted(network, "student", "test", stages.DISTORTED, distortion)

    def teachers(self) -> None:
        """The banks, predictions and copied results of all fits of teachers."""
        for fit in teacher_fits(self.workshop.study):
            self._teacher(fit)

    def _teacher(self, fit: TeacherFit) -> None:
        spec, who, condition = self.workshop.study.teachers[fit.name], f"teacher {fit.fit_id}", fit.condition
        drawn = seeding.seed_from("teacher") if fit.seed is None else fit.seed
        network = self._network(spec, drawn, f"teachers.{fit.name}", fit=spec.fit)
        if network is None:
            return
        self._features(network, who, condition or stages.CLEAN)
        recipe = stages.teacher_recipe(self.workshop, network, fit, inputs_of(self.workshop, network))
        place = self.workshop.cache / "teachers" / recipe.address
        if store.find(place, recipe.address) is None:
            self._miss(place, f"{who}'s weights")
        elif self._load(network, place, str(place)):
            for each in self.workshop.study.conditions:
                self._logits(network, recipe.address, who, each)
            copied = self.folder.teacher_path(fit)
            self._predictions(network, {f"{place}": place, **(
                {f"teachers/{fit.fit_id}": copied} if (copied / "predictions.npz").is_file() else {})})

    def run(self, run: Run) -> None:
        """A run's settings and predictions, and its logits where another run learned from them."""
        path, name = self.folder.run_path(run), f"runs/{run.run_id}"
        if store.damaged(path):  # which the checks of the files name
            return
        student = self.workshop.study.student_of(run.condition)
        network = self._network(student, run.seed, stages.student_key(run.condition))
        if network is None:
            return
        try:
            made = store.read_json(path / store.MANIFEST)
            said, version, address = dict(made["spec"]), made["version"], str(made["address"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            self.found.problems.append(f"{name}/{store.MANIFEST}: cannot be read ({type(error).__name__}: {error})")
            return
        asked = stages.run_spec(self.workshop, network, run)
        if version == stages.VERSION:  # another tlkd says what it made in its own way
            self.found.problems += [f"{name}: its {key} is another than the study's: {_brief(said, key)}, "
                                    f"study.yaml gives {_brief(asked, key)}"
                                    for key in asked if canonical(said.get(key)) != canonical(asked[key])]
        self._drawn(run, path, name)
        if self._load(network, path, name):
            self._logits(network, address, run.run_id, run.condition)
            self._predictions(network, {name: path})

    # --- one network --------------------------------------------------------------------------------------------------

    def _network(self, spec: Network, seed: int, key: str, *, fit: bool = True) -> models.Network | None:
        """A network as the study began with it; None, and said, where its weights cannot be had."""
        try:
            return network_for(self.workshop, spec, seed, key, fit=fit).eval()
        except BadInput as error:
            line = f"what {spec.model} gives ({error})"
            if line not in self.found.missed:
                self.found.missed.append(line)
            return None

    def _load(self, network: models.Network, place: Path, name: str) -> bool:
        """Whether the weights that lie there fit; a problem where they do not, whatever their checksum says."""
        try:
            models.load_trained(network, load_file(place / "model.safetensors"))
        except (BadInput, OSError, ValueError, SafetensorError) as error:
            self.found.problems.append(f"{name}/model.safetensors: cannot be used ({error})")
            return False
        network.eval()
        return True

    def _features(self, network: models.Network, who: str, condition: Condition) -> None:
        if not is_banked(self.workshop, network):
            return
        inputs = inputs_of(self.workshop, network)
        self._bank(_Bank(f"features of {who}", features_recipe(self.workshop, network, inputs),
                         all_pixels(self.workshop, network), network.features))
        if condition.distortion is not None:
            views = corrupted_views(self.workshop, condition)
            self._distorted(network, who, "train", views, condition.distortion)

    def _distorted(self, network: models.Network, who: str, split: str, views: tuple[View, ...],
                   distortion: Distortion) -> None:
        if not is_banked(self.workshop, network):
            return
        recipe = distorted_recipe(self.workshop, network, inputs_of(self.workshop, network), split, views, distortion)
        source = pixels(self.workshop, network, split, views, distortion)
        self._bank(_Bank(f"features of {who}, {describe(distortion)}", recipe, {split: source}, network.features))

    def _logits(self, network: models.Network, address: str, who: str, condition: Condition) -> None:
        """The banks of a fitted network's logits, clean and under a condition; those that nobody used are passed by."""
        self._bank(_Bank(f"logits of {who}", stages.logits_recipe(self.workshop, address),
                         all_pixels(self.workshop, network), network))
        if condition.distortion is not None:
            views = corrupted_views(self.workshop, condition)
            source = pixels(self.workshop, network, "train", views, condition.distortion)
            self._bank(_Bank(f"logits of {who}, {describe(condition.distortion)}",
                             stages.logits_recipe(self.workshop, address, condition), {"train": source}, network))

    # --- what is compared ---------------------------------------------------------------------------------------------

    def _bank(self, bank: _Bank) -> None:
        if bank.recipe.address not in self.known - self.seen:
            return
        self.seen.add(bank.recipe.address)
        place = self.workshop.cache / bank.recipe.kind / bank.recipe.address
        if store.find(place, bank.recipe.address) is None:
            self._miss(place, bank.name)
            return
        name = bank.name if bank.name not in self.found.banks else f"{bank.name} ({bank.recipe.address})"
        for split, source in bank.sources.items():
            shape = len(source.views), len(source.rows)
            file = f"{place / split}.npy"
            try:
                stored = banks.mapped(Path(file))
            except BadInput as error:
                self.found.problems.append(str(error).replace(f"{file}: ", f"{file}: {name}: ", 1))
                continue
            if stored.shape[:2] != shape or stored.ndim != 3 or stored.dtype != np.float32:
                self.found.problems.append(f"{file}: {name}: holds {stored.dtype} {list(stored.shape)}, not "
                                           f"float32 of {shape[0]} views of {shape[1]} images")
                continue
            views, samples = np.divmod(_sample(shape[0] * shape[1], self.rows, self.seed), shape[1])
            off = _difference((np.asarray(stored[views[part], samples[part]]),
                               _through(bank.forward, source, views[part], samples[part]))
                              for part in _pieces(len(samples)))
            self.found.banks[name] = max(self.found.banks.get(name, 0.0), off)
            if not off <= ALLOWED:
                self.found.problems.append(f"{file}: {name}: images and network give other numbers, off by "
                                           f"{off:.3g} of the largest")

    def _predictions(self, network: models.Network, places: dict[str, Path]) -> None:
        """Whether these files, by name, are of the test images and their labels, and say what the network says."""
        test, who = pixels(self.workshop, network, "test"), next(iter(places))
        samples = _sample(len(test.rows), self.rows, self.seed)
        again = _through(network, test, np.zeros_like(samples), samples)
        for name, place in places.items():
            try:
                stored = load_predictions(place / "predictions.npz")
            except BadInput as error:
                self.found.problems.append(str(error))
                continue
            wrong = self._other_images(stored)
            if wrong:
                self.found.problems.append(f"{name}/predictions.npz: {wrong}")
                continue
            off = _difference([(stored.logits[samples], again)])
            self.found.networks[who] = max(self.found.networks.get(who, 0.0), off)
            if not off <= ALLOWED:
                self.found.problems.append(f"{name}/predictions.npz: the weights give other numbers, off by {off:.3g} "
                                           "of the largest")

    def _drawn(self, run: Run, path: Path, name: str) -> None:
        """Whether a run drew the samples, wrong labels and corruptions that its condition and seed draw."""
        if run.condition.plain:
            return
        try:
            epochs = int(self.folder.result(run)["epochs"])
            again = self.workshop.draw(run.condition, run.seed).stored(epochs)
            with reading(path / "drawn.npz"), arrays.stored(path / "drawn.npz") as held:
                wrong = [each for each in again if not np.array_equal(held[each], again[each])]
        except (BadInput, ValueError) as error:
            self.found.problems.append(f"{name}/drawn.npz: cannot be checked ({error})")
            return
        self.found.problems += [f"{name}/drawn.npz: its {each} are not those that its condition and seed draw"
                                for each in wrong]

    def _other_images(self, stored: Predictions) -> str:
        """What predictions say of images, or of their labels, that the data set does not."""
        dataset = self.workshop.dataset
        ids = np.array([dataset.ids[row] for row in dataset.splits["test"]])
        if not np.array_equal(stored.sample_ids, ids):
            return f"is not of the study's {len(ids)} test images, in their order"
        if not np.array_equal(stored.labels, self.workshop.labels["test"]):
            return "holds other labels than the study's data"
        return "" if len(stored.logits) == len(ids) else f"holds {len(stored.logits)} rows of {len(ids)} test images"

    def _miss(self, place: Path, what: str) -> None:
        if (place / store.MANIFEST).is_file():
            self.found.problems.append(f"{place}: {what}: not what the checksums say")
        else:
            self.found.missed.append(f"{what}, which the cache no longer holds")


def _brief(spec: dict[str, Any], key: str) -> str:
    text = canonical(spec.get(key))
    return text if len(text) <= 200 else f"{text[:197]}..."


def _sample(count: int, rows: int | None, seed: int) -> NDArray[np.int64]:
    """Which of `count` rows are recomputed: all, or some that `seed` draws."""
    if rows is None or rows >= count:
        return np.arange(count)
    return np.sort(seeding.generator("verify", seed, count).choice(count, rows, replace=False)).astype(np.int64)


def _pieces(count: int) -> Iterator[slice]:
    """So many rows in pieces: all of a bank would not fit into memory."""
    return (slice(start, start + PIECE) for start in range(0, count, PIECE))


def _through(forward: Callable[[Tensor], Tensor], source: Pixels, views: NDArray[np.int64],
             samples: NDArray[np.int64]) -> NDArray[Any]:
    with torch.inference_mode():
        parts = [forward(source(views[start:start + 64], samples[start:start + 64])).float().cpu().numpy()
                 for start in range(0, len(samples), 64)]
    return np.concatenate(parts)


def _difference(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """The largest difference of what is stored from what is computed, as a part of the largest number computed.

    Infinite where they are not equally many, nan where one is nan.
    """
    far, largest = np.float64(0), np.float64(1e-12)
    for stored, again in pairs:
        if stored.shape != again.shape:
            return float("inf")
        far, largest = np.maximum(far, np.abs(stored - again).max()), np.maximum(largest, np.abs(again).max())
    return float(far / largest)
