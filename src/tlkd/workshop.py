"""What all stages of a study share: the data, networks and what feeds them, banked features, one fit, one result."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from tlkd import banks, corruptions, evaluation, models, progress, seeding, store
from tlkd.batches import Joined, Pixels, Rows, Source, predict
from tlkd.conditions import Condition, Distortion
from tlkd.datasets import Dataset, channel_statistics
from tlkd.distortions import describe
from tlkd.draws import Draw, draw
from tlkd.errors import BadInput
from tlkd.folder import Predictions, save_predictions
from tlkd.losses import Loss
from tlkd.specs import Network, Normalisation, Study, Training, canonical
from tlkd.training import Fit, Task, fit, threads
from tlkd.views import IDENTITY, View, corrupted, train_views

Channels = tuple[float, ...]

DRAWS = 16  # that are kept: the arms of one seed follow each other
DISTORTIONS = 1  # version of what the kinds of distortion do; a change that alters images raises it


@dataclass
class Workshop:
    """One study at work: its data on one device, its cache, and what has been opened so far."""

    study: Study
    dataset: Dataset
    cache: Path
    device: torch.device
    threads: int = 0  # that build banks; 0: as many as torch has
    stages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.views: tuple[View, ...] = train_views(self.study.data.augment)
        self.keys = seeding.keys(list(self.dataset.ids))
        self.labels = {split: self.dataset.labels[rows] for split, rows in self.dataset.splits.items()}
        self.networks: dict[str, models.Network] = {}
        self.hashes: dict[int, str] = {}  # of the shared networks' backbones
        self.feature_banks: dict[str, banks.Bank] = {}
        self.draws: dict[str, Draw] = {}
        self._statistics: tuple[Channels, Channels] | None = None

    def normalisation(self, network: models.Network) -> tuple[Channels, Channels]:
        """Mean and sd for a network's input, as `data.normalise` says."""
        choice = self.study.data.normalise
        if isinstance(choice, Normalisation):
            return choice.mean, choice.sd
        if choice == "model":
            return network.mean, network.sd
        if self._statistics is None:
            self._statistics = channel_statistics(self.dataset)
        return self._statistics

    def draw(self, condition: Condition, seed: int) -> Draw:
        """What a condition makes of the training split for one seed."""
        name = canonical([condition.difficulty, seed])
        if name not in self.draws:
            if len(self.draws) >= DRAWS:
                self.draws.pop(next(iter(self.draws)))
            rows = self.dataset.splits["train"]
            self.draws[name] = draw(condition, seed, self.dataset.classes, self.labels["train"], self.keys[rows])
        return self.draws[name]

    def record(self, stage: str, artifact: store.Artifact, from_cache: bool) -> None:
        """Note what a stage cost when it was made, in this study or in one that shared it."""
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        self.stages.append({"stage": stage, "address": artifact.address, "from_cache": from_cache,
                            "seconds": artifact.about["seconds"], "bytes": size,
                            "place": artifact.path.relative_to(self.cache).as_posix()})


@dataclass(frozen=True)
class Learner:
    """A network, where its batches come from, and what maps them to logits."""

    network: models.Network
    who: str
    sources: dict[str, Source]
    forward: Callable[[Tensor], Tensor]


def network_for(workshop: Workshop, spec: Network, seed: int, key: str, *, fit: bool = True) -> models.Network:
    """A network with its weights and a head drawn by `seed`; where only heads are trained its backbone is shared.

    `key` is where the spec stands in the study, which an error names; `fit: false` takes the network as it is.
    """
    frozen = spec.trainable == "head" and spec.batch_norm == "eval" and spec.weights != "none"
    shared = workshop.study.bank and fit and frozen
    name = canonical(spec.model_dump(mode="json", include=set(Network.model_fields)))
    if shared and name in workshop.networks:
        models.renew_head(workshop.networks[name], seed)
        return workshop.networks[name]
    try:
        network = models.build(spec, len(workshop.dataset.classes), seed, fit=fit).to(workshop.device)
    except BadInput as error:
        raise BadInput(f"{key}.{error}") from None
    if shared:
        workshop.networks[name] = network
    return network


def pixels(workshop: Workshop, network: models.Network, split: str, views: tuple[View, ...] | None = None,
           distortion: Distortion | None = None) -> Pixels:
    """The images of a split as this network takes them: train in all its views, the others in the identity.

    `views` replaces these; `distortion` is what the variants among them do.
    """
    mean, sd = workshop.normalisation(network)
    rows = workshop.dataset.splits[split]
    if views is None:
        views = workshop.views if split == "train" else (IDENTITY,)
    return Pixels(workshop.dataset.images, rows, workshop.keys[rows], views,
                  network.input_size, workshop.study.data.data_seed, mean, sd, workshop.device, distortion)


def all_pixels(workshop: Workshop, network: models.Network) -> dict[str, Pixels]:
    """The images of every split that holds any."""
    return {split: pixels(workshop, network, split) for split, rows in workshop.dataset.splits.items() if len(rows)}


def counted(workshop: Workshop, sources: dict[str, Source]) -> dict[str, tuple[Source, int, int]]:
    """For each split: its source, the number of views, the number of samples."""
    return {split: (source, len(workshop.views) if split == "train" else 1, len(workshop.labels[split]))
            for split, source in sources.items()}


def input_spec(workshop: Workshop, network: models.Network, views: tuple[View, ...] | None = None,
               distortion: Distortion | None = None) -> dict[str, Any]:
    """What decides a network's input beside the data themselves; of other views than the study's where given."""
    mean, sd = workshop.normalisation(network)
    views = workshop.views if views is None else views
    drawn = distortion is not None or any(view.crop is not None for view in views)
    spec = {"model": network.name, "input_size": network.input_size, "mean": mean, "sd": sd,
            "views": [str(view) for view in views], "data_seed": workshop.study.data.data_seed if drawn else None}
    return spec if distortion is None else {**spec, "distortion": distortion_spec(workshop, distortion)}


def distortion_spec(workshop: Workshop, distortion: Distortion) -> dict[str, Any]:
    """A distortion as an address holds it: its settings, on the scale that `auto` stands for here, and its chance."""
    spec: dict[str, Any] = {"version": DISTORTIONS, "kind": distortion.kind, **distortion.settings,
                            "data_seed": workshop.study.data.data_seed}
    if "scale" in spec:
        spec["scale"] = corruptions.published_scale(distortion, workshop.dataset.images.shape[1])
    return spec


def corrupted_views(workshop: Workshop, condition: Condition) -> tuple[View, ...]:
    """The study's views in each variant of a condition's corruption; none where it corrupts nothing."""
    corruption = condition.corruption
    return () if condition.distortion is None or corruption is None else corrupted(workshop.views, corruption.variants)


def inputs_of(workshop: Workshop, network: models.Network) -> dict[str, str]:
    """The addresses that everything made of the data and a network hangs on; taken before the network is trained."""
    shared = any(network is each for each in workshop.networks.values())  # one that no training changes
    if not shared or id(network) not in workshop.hashes:
        workshop.hashes[id(network)] = models.backbone_hash(network)
    return {"data": workshop.dataset.content, "backbone": workshop.hashes[id(network)]}


def features_recipe(workshop: Workshop, network: models.Network, inputs: dict[str, str]) -> store.Recipe:
    """What the bank of a backbone's features is made from; `inputs` are those that `inputs_of` gives."""
    return store.Recipe("features", banks.VERSION, input_spec(workshop, network), inputs)


def distorted_recipe(workshop: Workshop, network: models.Network, inputs: dict[str, str], split: str,
                     views: tuple[View, ...], distortion: Distortion) -> store.Recipe:
    """What the bank of a backbone's features for distorted views of one split is made from."""
    spec = {**input_spec(workshop, network, views, distortion), "split": split}
    return store.Recipe("features", banks.VERSION, spec, inputs)


def feature_bank(workshop: Workshop, network: models.Network, who: str) -> banks.Bank:
    """The features of a frozen backbone for every view of every sample."""
    recipe = features_recipe(workshop, network, inputs_of(workshop, network))
    where, spec, inputs = recipe.address, recipe.spec, recipe.inputs
    if where in workshop.feature_banks:  # its checksums were looked at once: that is enough for one process
        return workshop.feature_banks[where]
    bank = banks.cached(workshop.cache, "features", spec, inputs)
    from_cache = bank is not None
    if bank is None:
        network.eval()
        images = counted(workshop, dict(all_pixels(workshop, network)))
        bank = banks.build(workshop.cache, "features", spec, inputs, network.width, images, network.features,
                           f"features of {who}", workshop.threads)
    workshop.record(f"features of {who}", bank.artifact, from_cache)
    workshop.feature_banks[where] = bank
    return bank


def distorted_bank(workshop: Workshop, network: models.Network, split: str, views: tuple[View, ...],
                   distortion: Distortion, who: str) -> banks.Bank:
    """The features of a frozen backbone for distorted views of one split."""
    recipe = distorted_recipe(workshop, network, inputs_of(workshop, network), split, views, distortion)
    where, spec, inputs = recipe.address, recipe.spec, recipe.inputs
    if where in workshop.feature_banks:
        return workshop.feature_banks[where]
    bank = banks.cached(workshop.cache, "features", spec, inputs)
    from_cache, what = bank is not None, f"features of {who}, {describe(distortion)}"
    if bank is None:
        network.eval()
        source = pixels(workshop, network, split, views, distortion)
        bank = banks.build(workshop.cache, "features", spec, inputs, network.width,
                           {split: (source, len(views), len(workshop.labels[split]))}, network.features, what,
                           workshop.threads)
    workshop.record(what, bank.artifact, from_cache)
    workshop.feature_banks[where] = bank
    return bank


def is_banked(workshop: Workshop, network: models.Network) -> bool:
    """Whether a network's features come out of a bank."""
    return workshop.study.bank and models.has_frozen_backbone(network)


def learner(workshop: Workshop, network: models.Network, who: str, condition: Condition | None = None) -> Learner:
    """A network with its batches: banked features where nothing in its backbone changes, the images elsewhere.

    Under a condition that corrupts images, train has the corrupted views behind the clean ones.
    """
    views = () if condition is None else corrupted_views(workshop, condition)
    distortion = None if condition is None else condition.distortion
    if not is_banked(workshop, network):
        sources: dict[str, Source] = dict(all_pixels(workshop, network))
        if distortion is not None:
            sources["train"] = pixels(workshop, network, "train", workshop.views + views, distortion)
        return Learner(network, who, sources, network)
    name = who.partition(",")[0]
    arrays = feature_bank(workshop, network, name).arrays
    sources = {split: Rows(array, workshop.device) for split, array in arrays.items()}
    if distortion is not None:
        bank = distorted_bank(workshop, network, "train", views, distortion, name)
        sources["train"] = Joined(sources["train"], Rows(bank.arrays["train"], workshop.device), len(workshop.views))
    return Learner(network, who, sources, network.classify)


def train(workshop: Workshop, who: Learner, loss: Loss, soft_labels: Source | None, training: Training, drawn: Draw, *,
          seed: int, work: Path) -> Fit:
    """Fit on what a condition makes of the training split, looking at the split that `selection` names each epoch.

    The checkpoint lies in the folder `work` until the caller removes it.
    """
    check = workshop.study.selection
    task = Task(who.sources["train"], drawn, len(workshop.views), soft_labels, check,
                who.sources[check], workshop.labels[check])
    with progress.bar(who.who, training.epochs) as advance:
        return fit(who.network, who.forward, loss, task, training, seed, workshop.device,
                   work / "checkpoint.safetensors", lambda _: advance())


def write_result(workshop: Workshop, folder: Path, who: Learner, fitted: Fit, training: Training, *,
                 backbone: str) -> dict[str, Any]:
    """Write what a training leaves: weights, curves, raw predictions on the test split, and its result.

    `backbone` is the hash of the backbone that the training started from. Seconds are those of the epochs, whether or
    not they were trained in one go, and of the predictions.
    """
    network, labels, started = who.network, workshop.labels["test"], time.perf_counter()
    network.eval()
    with threads(training.threads):
        logits = predict(who.forward, who.sources["test"], len(labels))
    seconds = sum(epoch["seconds"] for epoch in fitted.history) + time.perf_counter() - started
    ids = np.array([workshop.dataset.ids[row] for row in workshop.dataset.splits["test"]])
    save_predictions(folder / "predictions.npz", Predictions(ids, labels, logits))
    # One key of metadata: the order of several is chance, and equal runs shall be equal files.
    save_file(models.trained_state(network), folder / "model.safetensors",
              metadata={"tlkd": canonical({"backbone": backbone, "model": network.name})})
    pd.DataFrame(fitted.history or {"epoch": []}).to_csv(folder / "history.csv", index=False)
    result = {**{f"test_{name}": value for name, value in evaluation.metrics(labels, logits).items()},
              "epochs": fitted.epochs, "best_epoch": fitted.best_epoch,
              "parameters": sum(parameter.numel() for parameter in network.parameters()),
              "seconds": round(seconds, 3)}
    store.write_json(folder / "result.json", result)
    return result
