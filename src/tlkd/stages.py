"""The stages of a study, each of which publishes one artifact unless it is there: banks, teachers, runs, robustness."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from tlkd import banks, crew, evaluation, models, seeding, store
from tlkd.batches import CleanView, Joined, Live, Rows, Shuffled, Source, predict
from tlkd.distortions import describe
from tlkd.draws import Draw
from tlkd.errors import RunFailed
from tlkd.folder import Run, StudyFolder, TeacherFit, teacher_fit
from tlkd.losses import Loss, hard_loss, label_smoothing_loss, make_loss, mean_entropy, smoothing_for
from tlkd.specs import Condition, Distortion, Network, Student, Training
from tlkd.training import Fit, threads
from tlkd.views import View
from tlkd.workshop import (
    Learner,
    Workshop,
    corrupted_views,
    counted,
    distorted_bank,
    distortion_spec,
    feature_bank,
    input_spec,
    inputs_of,
    is_banked,
    learner,
    network_for,
    pixels,
    train,
    write_result,
)

VERSION = 3  # of what a teacher or a run is; a change that alters results raises it
ROBUSTNESS_VERSION = 1

CLEAN = Condition(name="clean")
DISTORTED = (View(variant=1),)  # test images: whole, in one variant of each distortion


@dataclass(frozen=True)
class SoftLabels:
    """Raw logits on the training views, clean and corrupted, and the address of the network that gives them."""

    source: Source
    address: str


def frozen(spec: Network) -> bool:
    """Whether a network's backbone is the same for all seeds and stays so, as far as its spec tells."""
    return spec.trainable == "head" and spec.batch_norm == "eval" and spec.weights != "none"


# --- banks ------------------------------------------------------------------------------------------------------------


def publish_features(workshop: Workshop, spec: Network, key: str, who: str) -> None:
    """Bank the features of a frozen backbone for the clean views of all splits."""
    fit = getattr(spec, "fit", True)
    feature_bank(workshop, network_for(workshop, spec, workshop.study.seeds[0], key, fit=fit), who)


def publish_corrupted_features(workshop: Workshop, spec: Network, key: str, who: str, condition: Condition) -> None:
    """Bank the features of a frozen backbone for the corrupted training views of a condition."""
    network = network_for(workshop, spec, workshop.study.seeds[0], key, fit=getattr(spec, "fit", True))
    assert condition.distortion is not None
    distorted_bank(workshop, network, "train", corrupted_views(workshop, condition), condition.distortion, who)


# --- teachers ---------------------------------------------------------------------------------------------------------


def publish_teacher(workshop: Workshop, folder: StudyFolder, fit: TeacherFit) -> None:
    """Fit a teacher (or take it as it is), bank its logits on the clean views, copy its result into the folder."""
    artifact, network = fitted_teacher(workshop, folder, fit)
    soft_labels(workshop, network, artifact, f"teacher {fit.fit_id}", CLEAN)
    for name in ("result.json", "history.csv", "predictions.npz"):  # not its weights, which stay in the cache
        store.replace_bytes(folder.teacher_path(fit) / name, (artifact.path / name).read_bytes())


def fitted_teacher(workshop: Workshop, folder: StudyFolder, fit: TeacherFit) -> tuple[store.Artifact, models.Network]:
    """A teacher's artifact, made now where it is not there, and the network with its weights."""
    study, spec = workshop.study, workshop.study.teachers[fit.name]
    condition = fit.condition or CLEAN
    drawn = seeding.seed_from("teacher") if fit.seed is None else fit.seed
    network = network_for(workshop, spec, drawn, f"teachers.{fit.name}", fit=spec.fit)
    affecting = {"network": spec.model_dump(mode="json", include={"trainable", "batch_norm", "dropout", "fit"}),
                 "training": spec.training.model_dump(mode="json") if spec.fit else None,
                 "selection": study.selection, "seed": fit.seed if spec.fit else None, "bank": study.bank,
                 "condition": condition_spec(workshop, condition), **input_spec(workshop, network)}
    inputs = inputs_of(workshop, network)
    if not spec.fit:
        inputs["head"] = models.state_hash(network.head.state_dict())
    where = store.address("teachers", VERSION, affecting, inputs)
    work = workshop.cache / "teachers" / ".work" / where

    def trained() -> tuple[Learner, Fit]:
        given, drawing = learner(workshop, network, f"teacher {fit.name}", condition), workshop.draw(condition, drawn)
        if not spec.fit:
            return given, Fit()
        with crew.call(fitted_teacher, fit, where):
            return given, train(workshop, given, hard_loss, None, spec.training, drawing, seed=drawn, work=work)

    def make(target: Path) -> dict[str, Any]:
        given, done = trained()
        result = write_result(workshop, target, given, done, spec.training, backbone=inputs["backbone"])
        shutil.rmtree(work, ignore_errors=True)
        return {**result, **crew.note()}

    if crew.ordered(where):
        trained()
        return store.Artifact(workshop.cache / "teachers" / where, where), network
    from_cache = (workshop.cache / "teachers" / where / store.MANIFEST).is_file()
    artifact = store.get(workshop.cache, "teachers", VERSION, affecting, inputs, make)
    workshop.record(f"teacher {fit.fit_id}", artifact, from_cache)
    models.load_trained(network, load_file(artifact.path / "model.safetensors"))
    network.eval()
    return artifact, network


def soft_labels(workshop: Workshop, network: models.Network, artifact: store.Artifact, who: str, condition: Condition,
                clean_view: bool = False) -> SoftLabels:
    """A fitted network's logits on all training views, banked, or (`bank: off`) computed anew for every batch.

    Corrupted views stand behind the clean ones; with `clean_view` each is answered by what is said of the clean one.
    """
    views, distortion = corrupted_views(workshop, condition), condition.distortion
    own = None if clean_view else distortion
    if not workshop.study.bank:
        shown = None if own is None else workshop.views + views
        source: Source = Live(network, pixels(workshop, network, "train", shown, own))
    else:
        source = Rows(_logits(workshop, network, artifact, who).arrays["train"], workshop.device)
        if own is not None:
            corrupted = Rows(_corrupted_logits(workshop, network, artifact, who, condition).arrays["train"],
                             workshop.device)
            source = Joined(source, corrupted, len(workshop.views))
    if clean_view and distortion is not None:
        source = CleanView(source, len(workshop.views))
    return SoftLabels(source, artifact.address)


def _logits(workshop: Workshop, network: models.Network, artifact: store.Artifact, who: str) -> banks.Bank:
    """The bank of a network's logits on the clean views of all splits."""
    inputs = {"teacher": artifact.address}
    bank = banks.cached(workshop.cache, "logits", {}, inputs)
    from_cache = bank is not None
    if bank is None:
        given = learner(workshop, network, who)
        bank = banks.build(workshop.cache, "logits", {}, inputs, network.classes, counted(workshop, given.sources),
                           given.forward, f"logits of {who}", workshop.threads)
    workshop.record(f"logits of {who}", bank.artifact, from_cache)
    return bank


def _corrupted_logits(workshop: Workshop, network: models.Network, artifact: store.Artifact, who: str,
                      condition: Condition) -> banks.Bank:
    """The bank of a network's logits on the corrupted training views of a condition."""
    distortion, views = condition.distortion, corrupted_views(workshop, condition)
    assert distortion is not None
    spec = {"distortion": distortion_spec(workshop, distortion), "views": [str(view) for view in views]}
    inputs, what = {"teacher": artifact.address}, f"logits of {who}, {describe(distortion)}"
    bank = banks.cached(workshop.cache, "logits", spec, inputs)
    from_cache = bank is not None
    if bank is None:
        count, forward = len(workshop.labels["train"]), network.forward
        source: Source = pixels(workshop, network, "train", views, distortion)
        if is_banked(workshop, network):
            features = distorted_bank(workshop, network, "train", views, distortion, who)
            source, forward = Rows(features.arrays["train"], workshop.device), network.classify
        bank = banks.build(workshop.cache, "logits", spec, inputs, network.classes,
                           {"train": (source, len(views), count)}, forward, what, workshop.threads)
    workshop.record(what, bank.artifact, from_cache)
    return bank


# --- runs -------------------------------------------------------------------------------------------------------------


def publish_run(workshop: Workshop, folder: StudyFolder, run: Run) -> None:
    """Train one student and publish its run folder, unless it lies there already."""
    study, arm, condition = workshop.study, run.arm, run.condition
    inputs: dict[str, str] = {}
    teacher = teacher_labels(workshop, folder, run)
    if teacher is not None:
        inputs["soft_labels"] = teacher.address
    start = None
    if study.student.start == "tl" and arm.kind != "tl":
        start = tl_run(folder, run)
        inputs["start"] = start.address
    network = network_for(workshop, study.student_of(condition), run.seed, "student")
    inputs = {**inputs_of(workshop, network), **inputs}
    spec, training = run_spec(workshop, network, run), study.training_of(arm, condition)
    where = store.address("run", VERSION, spec, inputs)
    work = folder.path / ".work" / where

    def trained() -> tuple[Learner, Draw, Fit]:
        given, drawn = learner(workshop, network, "student", condition), workshop.draw(condition, run.seed)
        if start is not None:
            models.load_trained(network, load_file(start.path / "model.safetensors"))
        loss, source = arm_loss(workshop, run, teacher)
        with crew.call(publish_run, run, where):
            return given, drawn, train(workshop, given, loss, source, training, drawn, seed=run.seed, work=work)

    def make(target: Path) -> dict[str, Any]:
        given, drawn, fitted = trained()
        store.write_json(target / "spec.json", {"run_id": run.run_id, **spec, "inputs": inputs,
                                                "data": study.data.model_dump(mode="json")})
        if not condition.plain:
            np.savez_compressed(target / "drawn.npz", **drawn.stored(fitted.epochs))
        result = write_result(workshop, target, given, fitted, training, backbone=inputs["backbone"])
        return {**result, **crew.note()}

    if crew.ordered(where):
        trained()
        return
    made_from = {"kind": "run", "version": VERSION, "spec": spec, "inputs": inputs}
    store.publish(folder.run_path(run), where, made_from, make)
    shutil.rmtree(work, ignore_errors=True)


def run_spec(workshop: Workshop, network: models.Network, run: Run) -> dict[str, Any]:
    """All that decides a run's result beside its inputs: a `tl` run's holds no teacher."""
    study, arm = workshop.study, run.arm
    left_out = {"weights", "start"} if arm.kind == "tl" else {"weights"}
    labels = study.teachers[arm.teacher].labels if arm.teacher is not None else None
    clean_view = {"labels": labels} if labels == "clean_view" and run.condition.distortion is not None else {}
    return {"student": study.student_of(run.condition).model_dump(mode="json", exclude=left_out),
            "arm": {"kind": arm.kind, "soft_weight": arm.soft_weight, "temperature": arm.temperature, **clean_view},
            "condition": condition_spec(workshop, run.condition), "seed": run.seed,
            "training": study.training_of(arm, run.condition).model_dump(mode="json"),
            "selection": study.selection, "bank": study.bank, "input": input_spec(workshop, network)}


def condition_spec(workshop: Workshop, condition: Condition) -> dict[str, Any]:
    """A condition as an address holds it: what it does, not what it is called."""
    spec = condition.difficulty
    if condition.distortion is not None:
        corruption = {key: spec["corruption"][key] for key in ("fraction", "redraw", "variants")}
        spec["corruption"] = {**corruption, **distortion_spec(workshop, condition.distortion)}
    return spec


def teacher_labels(workshop: Workshop, folder: StudyFolder, run: Run) -> SoftLabels | None:
    """The soft labels that a run learns from: its teacher's, for a `self` arm its own TL student's, or none."""
    arm, condition = run.arm, run.condition
    if arm.kind == "self":
        start = tl_run(folder, run)
        network = network_for(workshop, workshop.study.student_of(condition), run.seed, "student")
        models.load_trained(network, load_file(start.path / "model.safetensors"))
        return soft_labels(workshop, network.eval(), start, f"TL, {condition.name}, seed {run.seed}", condition)
    if arm.teacher is None:
        return None
    fit = teacher_fit(workshop.study, arm.teacher, condition, run.seed)
    failure = folder.teacher_failure_path(fit)
    if failure.is_file():
        raise RunFailed(f"its teacher {fit.fit_id} failed: {failure.read_text().partition(chr(10))[0]}")
    artifact, network = fitted_teacher(workshop, folder, fit)
    clean_view = workshop.study.teachers[arm.teacher].labels == "clean_view"
    return soft_labels(workshop, network, artifact, f"teacher {fit.fit_id}", condition, clean_view)


def arm_loss(workshop: Workshop, run: Run, teacher: SoftLabels | None) -> tuple[Loss, Source | None]:
    """The loss of a run's arm, and the soft labels that its batches carry."""
    arm, drawn = run.arm, workshop.draw(run.condition, run.seed)
    if arm.kind == "label_smoothing":
        assert teacher is not None and arm.temperature is not None
        logits = np.concatenate([predict(lambda rows: rows, teacher.source, len(workshop.labels["train"]), view=view)
                                 for view in range(len(workshop.views))])
        everyone = logits.reshape(len(workshop.views), -1, logits.shape[1])[:, drawn.samples]
        amount = smoothing_for(mean_entropy(everyone.reshape(-1, logits.shape[1]), arm.temperature), logits.shape[1])
        return label_smoothing_loss(amount), None
    loss = make_loss("tl" if arm.kind == "tl" else "tl_kd", arm.soft_weight, arm.temperature)
    if teacher is None:
        return loss, None
    if arm.kind != "tl_kd_shuffled":
        return loss, teacher.source
    labels = workshop.labels["train"].copy()
    labels[drawn.samples] = drawn.labels(1) if not _redrawn(run.condition) else drawn.given
    keys = workshop.keys[workshop.dataset.splits["train"]]
    return loss, Shuffled(teacher.source, labels, keys, run.seed)


def _redrawn(condition: Condition) -> bool:
    return condition.label_noise is not None and condition.label_noise.redraw == "epoch"


def tl_run(folder: StudyFolder, run: Run) -> store.Artifact:
    """The TL student of the same condition and seed."""
    for other in folder.runs():
        if other.arm.kind == "tl" and (other.seed, other.condition) == (run.seed, run.condition) and folder.done(other):
            path = folder.run_path(other)
            return store.Artifact(path, store.read_json(path / store.MANIFEST)["address"])
    raise RunFailed(f"{run.arm.name} starts from this seed's TL student, which is not there")


# --- robustness -------------------------------------------------------------------------------------------------------


def publish_robustness(workshop: Workshop, folder: StudyFolder, run: Run) -> None:
    """Show a finished student the distorted test images, and publish what it says of them."""
    path = folder.run_path(run)
    manifest = store.read_json(path / store.MANIFEST)
    distortions = [each for one in workshop.study.robustness for each in one.distortions]
    student = workshop.study.student_of(run.condition)
    network = network_for(workshop, student, run.seed, "student")
    spec = {"distortions": [distortion_spec(workshop, each) for each in distortions],
            "input": input_spec(workshop, network, DISTORTED, distortions[0])}
    inputs = {"run": manifest["address"], "data": workshop.dataset.content}
    where = store.address("robustness", ROBUSTNESS_VERSION, spec, inputs)

    def make(target: Path) -> None:
        models.load_trained(network, load_file(path / "model.safetensors"))
        network.eval()
        labels, rows, predicted = workshop.labels["test"], [], []
        training = workshop.study.training_of(run.arm, run.condition)
        for distortion in distortions:
            logits = _distorted_predictions(workshop, network, distortion, training, len(labels))
            rows.append({**_degree(distortion), **evaluation.metrics(labels, logits)})
            predicted.append(logits.argmax(1))
        pd.DataFrame(rows).to_csv(target / "robustness.csv", index=False)
        np.savez_compressed(target / "predicted.npz", predicted=np.array(predicted, np.uint16))

    made_from = {"kind": "robustness", "version": ROBUSTNESS_VERSION, "spec": spec, "inputs": inputs}
    store.publish(folder.robustness_path(run), where, made_from, make)


def _distorted_predictions(workshop: Workshop, network: models.Network, distortion: Distortion, training: Training,
                           count: int) -> Any:
    forward: Callable[[Any], Any] = network.forward
    source: Source = pixels(workshop, network, "test", DISTORTED, distortion)
    if is_banked(workshop, network):
        bank = distorted_bank(workshop, network, "test", DISTORTED, distortion, "student")
        source, forward = Rows(bank.arrays["test"], workshop.device), network.classify
    with threads(training.threads):
        return predict(forward, source, count)


def _degree(distortion: Distortion) -> dict[str, Any]:
    """A distortion's kind and the number that says how strong it is."""
    degree: Any = None
    if distortion.severity is not None:
        degree = distortion.severity
    elif distortion.size is not None:
        degree = distortion.size[0]
    return {"kind": distortion.kind, "degree": degree, "distortion": describe(distortion)}


def student_key(condition: Condition) -> str:
    """Where a condition's student stands in the study, as an error names it."""
    return "student" if condition.student is None else f"conditions.{condition.name}.student"


def same_student(student: Student) -> Any:
    """What of a student decides its features."""
    return student.model_dump(mode="json", include={"model", "weights", "input_size"})
