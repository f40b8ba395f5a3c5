"""The pipeline, to be read from top to bottom: the only place that wires stages to artifacts."""

import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlkd import banks, evaluation, models, progress, seeding, store
from tlkd.batches import Live, Pixels, Rows, Source, predict
from tlkd.datasets import Dataset, channel_statistics, open_dataset
from tlkd.errors import BadInput, RunFailed
from tlkd.folder import Predictions, Run, StudyFolder, load_predictions, save_predictions
from tlkd.losses import hard_loss, make_loss
from tlkd.provenance import provenance
from tlkd.specs import Network, Normalisation, Study, Teacher, Training, canonical
from tlkd.training import Fit, Task, fit
from tlkd.views import IDENTITY, View, train_views

VERSION = 1  # of what a teacher or a run is; a change that alters results raises it

RESULT_COLUMNS = ("run_id", "arm", "condition", "seed", "test_accuracy", "test_precision", "test_recall", "test_f1",
                  "test_log_loss", "test_ece", "teacher_agreement", "epochs", "best_epoch", "seconds")


@dataclass
class Workshop:
    """What all stages of a study share."""

    study: Study
    dataset: Dataset
    cache: Path
    device: torch.device
    stages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.views: tuple[View, ...] = train_views(self.study.data.augment)
        self.keys = seeding.keys(list(self.dataset.ids))
        self.labels = {split: self.dataset.labels[rows] for split, rows in self.dataset.splits.items()}
        self.networks: dict[str, models.Network] = {}
        self.feature_banks: dict[str, banks.Bank] = {}
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def normalisation(self, network: models.Network) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and sd for a network's input, as `data.normalise` says."""
        choice = self.study.data.normalise
        if isinstance(choice, Normalisation):
            return choice.mean, choice.sd
        if choice == "model":
            return network.mean, network.sd
        if self._statistics is None:
            self._statistics = channel_statistics(self.dataset)
        return self._statistics

    def splits(self) -> list[str]:
        """The splits that hold samples."""
        return [split for split in ("train", "dev", "test") if len(self.dataset.splits[split])]

    def record(self, stage: str, artifact: store.Artifact, before: bool, seconds: float) -> None:
        """Note what a stage cost."""
        size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
        self.stages.append({"stage": stage, "address": artifact.address, "from_cache": before,
                            "seconds": round(seconds, 3), "bytes": size})


def run_study(study: Study, out: Path, device: torch.device, command: str = "") -> dict[str, str]:
    """Run a study into the folder `out`: what is finished there stands, what failed is returned by run id."""
    folder = StudyFolder(out)
    dataset = open_dataset(study.data, max_input_size(study), store.cache_folder())
    workshop = Workshop(study, dataset, store.cache_folder(), device)
    student = network_for(workshop, study.student, study.seeds[0], "student")
    teachers = {name: network_for(workshop, teacher, study.seeds[0], f"teachers.{name}", teacher.fit)
                for name, teacher in study.used_teachers.items()}
    folder.prepare(study, provenance(command, device))
    with store.guard_disk(out):
        store.write_json(out / "data.json", {**dataset.card, "classes": list(dataset.classes), "content": dataset.content})
        del student, teachers  # built once before anything is written, so that what does not fit is known at once
        soft = {name: [publish_teacher(workshop, folder, name, seed) for seed in teacher_seeds(study, teacher)]
                for name, teacher in study.used_teachers.items()}
        for run in progress.track(folder.runs(), "runs", len(folder.runs())):
            attempt(workshop, folder, run, soft)
        store.write_json(out / "stages.json", workshop.stages)
        collect(folder)
    shutil.rmtree(out / ".work", ignore_errors=True)
    return folder.failures()


def max_input_size(study: Study) -> int:
    """The largest input size any network of the study needs: what the images are decoded to."""
    return max([study.student.input_size, *(teacher.input_size for teacher in study.used_teachers.values())])


def teacher_seeds(study: Study, teacher: Teacher) -> list[int | None]:
    """The seeds a teacher is fitted with: each of the study's, or one of its own (None)."""
    return list(study.seeds) if teacher.per_seed else [None]


# --- networks and what they are fed -----------------------------------------------------------------------------------


def network_for(workshop: Workshop, spec: Network, seed: int, key: str, with_new_head: bool = True) -> models.Network:
    """A network with its weights and a head drawn by `seed`; where only heads are trained its backbone is shared.

    `key` is where the spec stands in the study, which an error names.
    """
    classes = len(workshop.dataset.classes)
    shared = workshop.study.bank and with_new_head and spec.trainable == "head" and spec.batch_norm == "eval" and spec.weights != "none"
    name = canonical(spec.model_dump(mode="json", include=set(Network.model_fields)))
    if shared and name in workshop.networks:
        models.renew_head(workshop.networks[name], seed)
        return workshop.networks[name]
    try:
        network = models.build(spec, classes, seed, fit=with_new_head).to(workshop.device)
    except BadInput as error:
        raise BadInput(f"{key}.{error}") from None
    if shared:
        workshop.networks[name] = network
    return network


def pixels(workshop: Workshop, network: models.Network, split: str, views: tuple[View, ...]) -> Pixels:
    """The images of a split as this network takes them."""
    mean, sd = workshop.normalisation(network)
    rows = workshop.dataset.splits[split]
    return Pixels(workshop.dataset.images, rows, workshop.keys[rows], views, network.input_size,
                  workshop.study.data.data_seed, mean, sd, workshop.device)


def all_pixels(workshop: Workshop, network: models.Network) -> dict[str, tuple[Source, int, int]]:
    """For each split: its images as a source, the number of views, the number of samples."""
    return {split: (pixels(workshop, network, split, views), len(views), len(workshop.labels[split]))
            for split in workshop.splits()
            for views in [workshop.views if split == "train" else (IDENTITY,)]}


def input_spec(workshop: Workshop, network: models.Network) -> dict[str, Any]:
    """What decides a network's input beside the data themselves."""
    mean, sd = workshop.normalisation(network)
    cropped = any(view.crop is not None for view in workshop.views)
    return {"model": network.name, "input_size": network.input_size, "mean": mean, "sd": sd,
            "views": [str(view) for view in workshop.views], "data_seed": workshop.study.data.data_seed if cropped else None}


def feature_bank(workshop: Workshop, network: models.Network, who: str) -> banks.Bank:
    """The features of a frozen backbone for every view of every sample."""
    started = time.perf_counter()
    inputs = {"data": workshop.dataset.content, "backbone": models.backbone_hash(network)}
    spec = input_spec(workshop, network)
    where = store.address("features", banks.VERSION, spec, inputs)
    if where in workshop.feature_banks:  # its checksums were looked at once: that is enough for one process
        return workshop.feature_banks[where]
    before = is_cached(workshop, "features", banks.VERSION, spec, inputs)
    network.eval()
    bank = workshop.feature_banks[where] = banks.build(workshop.cache, "features", spec, inputs, network.width, all_pixels(workshop, network),
                       network.features, f"features of {who}")
    workshop.record(f"features of {who}", bank.artifact, before, time.perf_counter() - started)
    return bank


def inputs_for(workshop: Workshop, network: models.Network, who: str) -> tuple[dict[str, Source], Callable[[Tensor], Tensor]]:
    """Where each split's batches come from and what maps them to logits: banked features, or the images themselves."""
    if workshop.study.bank and models.has_frozen_backbone(network):
        arrays = feature_bank(workshop, network, who).arrays
        return {split: Rows(array, workshop.device) for split, array in arrays.items()}, network.classify
    return {split: source for split, (source, _, _) in all_pixels(workshop, network).items()}, network


def is_cached(workshop: Workshop, kind: str, version: int, spec: Any, inputs: dict[str, str]) -> bool:
    """Whether an artifact lies in the cache, whole or not; only for the account of costs."""
    return (workshop.cache / kind / store.address(kind, version, spec, inputs) / store.MANIFEST).is_file()


def train(workshop: Workshop, network: models.Network, sources: dict[str, Source], forward: Callable[[Tensor], Tensor],
          loss: Callable[..., Tensor], soft_labels: Source | None, training: Training, seed: int, checkpoint: Path,
          who: str) -> Fit:
    """Fit a network on the training split, looking at the split that `selection` names after each epoch."""
    check = workshop.study.selection
    task = Task(sources["train"], workshop.labels["train"], len(workshop.views), soft_labels, check, sources[check],
                workshop.labels[check])
    with progress.bar(who, training.epochs) as advance:
        return fit(network, forward, loss, task, training, seed, workshop.device, checkpoint, lambda _: advance())


# --- teachers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's raw logits on the training views, and the address that stands for them."""

    source: Source
    address: str


def publish_teacher(workshop: Workshop, folder: StudyFolder, name: str, seed: int | None) -> SoftLabels:
    """Fit a teacher (or take it as it is), bank its logits, and copy its result into the study's folder."""
    spec = workshop.study.teachers[name]
    who = f"teacher {name}" if seed is None else f"teacher {name}, seed {seed}"
    network = network_for(workshop, spec, seeding.seed_from("teacher") if seed is None else seed, f"teachers.{name}", spec.fit)
    affecting = {"network": spec.model_dump(mode="json", include={"trainable", "batch_norm", "dropout", "fit"}),
                 "training": spec.training.model_dump(mode="json") if spec.fit else None,
                 "selection": workshop.study.selection, "seed": seed, "bank": workshop.study.bank,
                 **input_spec(workshop, network)}
    inputs = {"data": workshop.dataset.content, "backbone": models.backbone_hash(network)}
    if not spec.fit:
        inputs["head"] = models.state_hash(network.head.state_dict())
    before = is_cached(workshop, "teachers", VERSION, affecting, inputs)
    started = time.perf_counter()
    work = workshop.cache / "teachers" / ".work" / store.address("teachers", VERSION, affecting, inputs)

    def make(folder: Path) -> dict[str, Any]:
        sources, forward = inputs_for(workshop, network, who)
        fitted = Fit()
        if spec.fit:
            fitted = train(workshop, network, sources, forward, hard_loss, None, spec.training,
                           seeding.seed_from("teacher") if seed is None else seed, work / "checkpoint.safetensors", who)
        result = write_result(folder, workshop, network, sources["test"], forward, fitted, inputs["backbone"],
                              time.perf_counter() - started)
        shutil.rmtree(work, ignore_errors=True)
        return result

    try:
        artifact = store.get(workshop.cache, "teachers", VERSION, affecting, inputs, make)
    except RunFailed as error:
        raise BadInput(f"teachers.{name}: its training failed at {error}") from None
    workshop.record(who, artifact, before, time.perf_counter() - started)
    models.load_trained(network, load_file(artifact.path / "model.safetensors"))
    network.eval()
    copy_result(artifact.path, folder.teacher_path(name, seed))
    return soft_labels_of(workshop, network, artifact.address, who)


def soft_labels_of(workshop: Workshop, network: models.Network, address: str, who: str) -> SoftLabels:
    """A fitted teacher's logits on all training views, banked, or (`bank: off`) computed anew for every batch."""
    live = pixels(workshop, network, "train", workshop.views)
    if not workshop.study.bank:
        return SoftLabels(Live(network, live), address)
    sources, forward = inputs_for(workshop, network, who)
    spec, inputs = {"teacher_logits": True}, {"teacher": address}
    started = time.perf_counter()
    before = is_cached(workshop, "logits", banks.VERSION, spec, inputs)
    counts = {split: (source, len(workshop.views) if split == "train" else 1, len(workshop.labels[split]))
              for split, source in sources.items()}
    bank = banks.build(workshop.cache, "logits", spec, inputs, network.classes, counts, forward, f"logits of {who}")
    workshop.record(f"logits of {who}", bank.artifact, before, time.perf_counter() - started)
    return SoftLabels(Rows(bank.arrays["train"], workshop.device), bank.artifact.address)


def copy_result(source: Path, target: Path) -> None:
    """Copy a teacher's result (not its weights, which stay in the cache) so that the study's folder is whole."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", "history.csv", "predictions.npz"):
        temporary = target / f".{name}.tmp"
        shutil.copyfile(source / name, temporary)
        temporary.replace(target / name)


# --- runs -------------------------------------------------------------------------------------------------------------


def attempt(workshop: Workshop, folder: StudyFolder, run: Run, soft: dict[str, list[SoftLabels]]) -> None:
    """Make one run; if it fails, keep why and let the others go on."""
    failure = folder.failure_path(run)
    try:
        publish_run(workshop, folder, run, soft)
        failure.unlink(missing_ok=True)
    except (BadInput, KeyboardInterrupt):
        raise
    except RunFailed as error:
        store.replace_text(failure, f"{error}\n")
    except Exception as error:
        store.replace_text(failure, f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")


def publish_run(workshop: Workshop, folder: StudyFolder, run: Run, soft: dict[str, list[SoftLabels]]) -> store.Artifact:
    """Train one student and publish its run folder, unless it lies there already."""
    study, arm = workshop.study, run.arm
    network = network_for(workshop, study.student, run.seed, "student")
    teacher = None
    if arm.teacher is not None:
        given = soft[arm.teacher]
        teacher = given[study.seeds.index(run.seed)] if study.teachers[arm.teacher].per_seed else given[0]
    inputs = {"data": workshop.dataset.content, "backbone": models.backbone_hash(network)}
    if teacher is not None:
        inputs["soft_labels"] = teacher.address
    start = starting_point(folder, run) if study.student.start == "tl" and arm.kind != "tl" else None
    if start is not None:
        inputs["start"] = start.address
    spec = run_spec(workshop, network, run)
    where = store.address("run", VERSION, spec, inputs)
    work = folder.path / ".work" / where

    def make(target: Path) -> dict[str, Any]:
        started = time.perf_counter()
        if start is not None:
            models.load_trained(network, load_file(start.path / "model.safetensors"))
        sources, forward = inputs_for(workshop, network, "student")
        fitted = train(workshop, network, sources, forward, make_loss(arm.kind, arm.soft_weight, arm.temperature),
                       teacher.source if teacher is not None else None, study.training, run.seed,
                       work / "checkpoint.safetensors", run.run_id)
        store.write_json(target / "spec.json", {"run_id": run.run_id, **spec, "inputs": inputs,
                                                "data": study.data.model_dump(mode="json")})
        return write_result(target, workshop, network, sources["test"], forward, fitted, inputs["backbone"],
                            time.perf_counter() - started)

    made_from = {"kind": "run", "version": VERSION, "spec": spec, "inputs": inputs}
    return store.publish(folder.run_path(run), where, made_from, make)


def run_spec(workshop: Workshop, network: models.Network, run: Run) -> dict[str, Any]:
    """All that decides a run's result beside its inputs: a `tl` run's holds no teacher."""
    study, arm = workshop.study, run.arm
    return {"student": study.student.model_dump(mode="json", exclude={"weights"} | ({"start"} if arm.kind == "tl" else set())),
            "arm": {"kind": arm.kind, "soft_weight": arm.soft_weight, "temperature": arm.temperature},
            "condition": run.condition.name, "seed": run.seed, "training": study.training.model_dump(mode="json"),
            "selection": study.selection, "bank": study.bank, "input": input_spec(workshop, network)}


def starting_point(folder: StudyFolder, run: Run) -> store.Artifact:
    """The same seed's TL student."""
    for other in folder.runs():
        if other.arm.kind == "tl" and (other.seed, other.condition) == (run.seed, run.condition) and folder.done(other):
            path = folder.run_path(other)
            return store.Artifact(path, store.read_json(path / store.MANIFEST)["address"])
    raise RunFailed("student.start is tl, and this seed's TL student is not there")


def write_result(folder: Path, workshop: Workshop, network: models.Network, test: Source,
                 forward: Callable[[Tensor], Tensor], fitted: Fit, backbone: str, seconds: float) -> dict[str, Any]:
    """Write what a training leaves: weights, curves, raw predictions on the test split, and its result.

    `backbone` is the hash of the backbone that the training started from.
    """
    network.eval()
    labels = workshop.labels["test"]
    logits = predict(forward, test, len(labels))
    ids = np.array([workshop.dataset.ids[row] for row in workshop.dataset.splits["test"]])
    save_predictions(folder / "predictions.npz", Predictions(ids, labels, logits))
    save_file(models.trained_state(network), folder / "model.safetensors",
              metadata={"tlkd": canonical({"backbone": backbone, "model": network.name})})  # one key: their order is chance
    pd.DataFrame(fitted.history, columns=list(fitted.history[0]) if fitted.history else ["epoch"]).to_csv(
        folder / "history.csv", index=False)
    result = {**{f"test_{name}": value for name, value in evaluation.metrics(labels, logits).items()},
              "epochs": fitted.epochs, "best_epoch": fitted.best_epoch, "seconds": round(seconds, 3)}
    store.write_json(folder / "result.json", result)
    return result


# --- results ----------------------------------------------------------------------------------------------------------


def collect(folder: StudyFolder) -> pd.DataFrame:
    """Write `results.csv` from the finished runs."""
    rows = []
    for run in folder.finished():
        row = {"run_id": run.run_id, "arm": run.arm.name, "condition": run.condition.name, "seed": run.seed,
               **folder.result(run)}
        teacher = folder.teacher_of(run)
        if teacher is not None:
            theirs = load_predictions(teacher / "predictions.npz")
            row["teacher_agreement"] = evaluation.agreement(folder.predictions(run).logits, theirs.logits)["top1"]
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(RESULT_COLUMNS))
    store.replace_text(folder.path / "results.csv", table.to_csv(index=False))
    return table
