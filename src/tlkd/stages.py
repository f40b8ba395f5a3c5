"""The stages of a study, each of which publishes one artifact unless it is there: banks, teachers, runs, robustness."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from tlkd import banks, crew, evaluation, models, seeding, store
from tlkd.batches import CleanView, Joined, Live, Rows, Shuffled, Source, chunks, predict
from tlkd.conditions import Condition, Distortion
from tlkd.distortions import describe
from tlkd.draws import Draw
from tlkd.errors import AWAITED, RunFailed
from tlkd.folder import Run, StudyFolder, TeacherFit, teacher_fit
from tlkd.losses import Loss, hard_loss, label_smoothing_loss, make_loss, mean_entropy, smoothing_for
from tlkd.specs import Network, Study, Training
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
    spec, condition = workshop.study.teachers[fit.name], fit.condition or CLEAN
    drawn = seeding.seed_from("teacher") if fit.seed is None else fit.seed
    network = network_for(workshop, spec, drawn, f"teachers.{fit.name}", fit=spec.fit)
    recipe = teacher_recipe(workshop, network, fit, inputs_of(workshop, network))
    where, work = recipe.address, workshop.cache / "teachers" / ".work" / recipe.address

    def trained() -> tuple[Learner, Fit]:
        given, drawing = learner(workshop, network, f"teacher {fit.name}", condition), workshop.draw(condition, drawn)
        if not spec.fit:
            return given, Fit()
        with crew.call(fitted_teacher, fit, where):
            return given, train(workshop, given, hard_loss, None, spec.training, drawing, seed=drawn, work=work)

    def make(target: Path) -> dict[str, Any]:
        given, done = trained()
        result = write_result(workshop, target, given, done, spec.training, backbone=recipe.inputs["backbone"])
        shutil.rmtree(work, ignore_errors=True)
        return {**result, **crew.note()}

    if crew.ordered(where):
        trained()
        return store.Artifact(workshop.cache / "teachers" / where, where), network
    from_cache = (workshop.cache / "teachers" / where / store.MANIFEST).is_file()
    artifact = store.get(workshop.cache, "teachers", VERSION, recipe.spec, recipe.inputs, make)
    workshop.record(f"teacher {fit.fit_id}", artifact, from_cache)
    models.load_trained(network, load_file(artifact.path / "model.safetensors"))
    network.eval()
    return artifact, network


def teacher_recipe(workshop: Workshop, network: models.Network, fit: TeacherFit,
                   inputs: dict[str, str]) -> store.Recipe:
    """What a fitted teacher is made from; `inputs` are those that `inputs_of` gives of its network."""
    study, spec = workshop.study, workshop.study.teachers[fit.name]
    affecting = {"network": spec.model_dump(mode="json", include={"trainable", "batch_norm", "dropout", "fit"}),
                 "training": spec.training.model_dump(mode="json") if spec.fit else None,
                 "selection": study.selection, "seed": fit.seed if spec.fit else None, "bank": study.bank,
                 "condition": condition_spec(workshop, fit.condition or CLEAN), **input_spec(workshop, network)}
    if not spec.fit:
        inputs = {**inputs, "head": models.state_hash(network.head.state_dict())}
    return store.Recipe("teachers", VERSION, affecting, inputs)


def logits_recipe(workshop: Workshop, address: str, condition: Condition = CLEAN) -> store.Recipe:
    """What the bank of a fitted network's logits is made from: on all clean views, or on those a condition corrupts."""
    spec: dict[str, Any] = {}
    if condition.distortion is not None:
        views = corrupted_views(workshop, condition)
        spec = {"distortion": distortion_spec(workshop, condition.distortion), "views": [str(view) for view in views]}
    return store.Recipe("logits", banks.VERSION, spec, {"teacher": address})


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
    recipe = logits_recipe(workshop, artifact.address)
    bank = banks.cached(workshop.cache, "logits", recipe.spec, recipe.inputs)
    from_cache = bank is not None
    if bank is None:
        given = learner(workshop, network, who)
        bank = banks.build(workshop.cache, "logits", recipe.spec, recipe.inputs, network.classes,
                           counted(workshop, given.sources), given.forward, f"logits of {who}", workshop.threads)
    workshop.record(f"logits of {who}", bank.artifact, from_cache)
    return bank


def _corrupted_logits(workshop: Workshop, network: models.Network, artifact: store.Artifact, who: str,
                      condition: Condition) -> banks.Bank:
    """The bank of a network's logits on the corrupted training views of a condition."""
    distortion, views = condition.distortion, corrupted_views(workshop, condition)
    assert distortion is not None
    recipe, what = logits_recipe(workshop, artifact.address, condition), f"logits of {who}, {describe(distortion)}"
    bank = banks.cached(workshop.cache, "logits", recipe.spec, recipe.inputs)
    from_cache = bank is not None
    if bank is None:
        count, forward = len(workshop.labels["train"]), cast(Callable[[Tensor], Tensor], network.forward)
        source: Source = pixels(workshop, network, "train", views, distortion)
        if is_banked(workshop, network):
            features = distorted_bank(workshop, network, "train", views, distortion, who)
            source, forward = Rows(features.arrays["train"], workshop.device), network.classify
        bank = banks.build(workshop.cache, "logits", recipe.spec, recipe.inputs, network.classes,
                           {"train": (source, len(views), count)}, forward, what, workshop.threads)
    workshop.record(what, bank.artifact, from_cache)
    return bank


# --- runs -------------------------------------------------------------------------------------------------------------


def publish_run(workshop: Workshop, folder: StudyFolder, run: Run) -> None:
    """Train one student and publish its run folder, unless it lies there already."""
    study, arm, condition = workshop.study, run.arm, run.condition
    teacher, start = teacher_labels(workshop, folder, run), tl_run(folder, run) if starts_from_tl(study, run) else None
    network = network_for(workshop, study.student_of(condition), run.seed, student_key(condition))
    recipe = run_recipe(workshop, network, run, inputs_of(workshop, network),
                        None if teacher is None else teacher.address, None if start is None else start.address)
    training, work = study.training_of(arm, condition), folder.work_path(run) / recipe.address

    def trained() -> tuple[Learner, Draw, Fit]:
        given, drawn = learner(workshop, network, "student", condition), workshop.draw(condition, run.seed)
        if start is not None:
            models.load_trained(network, load_file(start.path / "model.safetensors"))
        loss, source = arm_loss(workshop, run, teacher)
        with crew.call(publish_run, run, recipe.address):
            return given, drawn, train(workshop, given, loss, source, training, drawn, seed=run.seed, work=work)

    def make(target: Path) -> dict[str, Any]:
        given, drawn, fitted = trained()
        store.write_json(target / "spec.json", {"run_id": run.run_id, **recipe.spec, "inputs": recipe.inputs,
                                                "data": study.data.model_dump(mode="json")})
        if not condition.plain:
            np.savez_compressed(target / "drawn.npz", **drawn.stored(fitted.epochs))  # type: ignore[arg-type]
        result = write_result(workshop, target, given, fitted, training, backbone=recipe.inputs["backbone"])
        return {**result, **crew.note()}

    if crew.ordered(recipe.address):
        trained()
        return
    store.publish(folder.run_path(run), recipe.address, asdict(recipe), make)
    shutil.rmtree(folder.work_path(run), ignore_errors=True)


def starts_from_tl(study: Study, run: Run) -> bool:
    """Whether a run's student starts from the weights of its seed's TL student."""
    return study.student.start == "tl" and run.arm.kind != "tl"


def run_recipe(workshop: Workshop, network: models.Network, run: Run, inputs: dict[str, str], teacher: str | None,
               start: str | None) -> store.Recipe:
    """What a run is made from; `teacher` and `start` are the addresses of what it learns and starts from."""
    others = {"soft_labels": teacher, "start": start}
    inputs = {**inputs, **{name: address for name, address in others.items() if address is not None}}
    return store.Recipe("run", VERSION, run_spec(workshop, network, run), inputs)


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
        network = network_for(workshop, workshop.study.student_of(condition), run.seed, student_key(condition))
        models.load_trained(network, load_file(start.path / "model.safetensors"))
        return soft_labels(workshop, network.eval(), start, f"TL, {condition.name}, seed {run.seed}", condition)
    if arm.teacher is None:
        return None
    fit = teacher_fit(workshop.study, arm.teacher, condition, run.seed)
    failure = folder.teacher_failure_path(fit)
    if failure.is_file() and not folder.teacher_path(fit).is_dir():
        raise RunFailed(f"its teacher {fit.fit_id} failed: {failure.read_text().partition(chr(10))[0]}")
    artifact, network = fitted_teacher(workshop, folder, fit)
    clean_view = workshop.study.teachers[arm.teacher].labels == "clean_view"
    return soft_labels(workshop, network, artifact, f"teacher {fit.fit_id}", condition, clean_view)


def arm_loss(workshop: Workshop, run: Run, teacher: SoftLabels | None) -> tuple[Loss, Source | None]:
    """The loss of a run's arm, and the soft labels that its batches carry."""
    arm, drawn = run.arm, workshop.draw(run.condition, run.seed)
    if arm.kind == "label_smoothing":
        assert teacher is not None and arm.temperature is not None
        entropy = shown_entropy(teacher.source, drawn, len(workshop.views), arm.temperature)
        return label_smoothing_loss(smoothing_for(entropy, drawn.classes)), None
    loss = make_loss("tl" if arm.kind == "tl" else "tl_kd", arm.soft_weight, arm.temperature)
    if teacher is None:
        return loss, None
    if arm.kind != "tl_kd_shuffled":
        return loss, teacher.source
    labels = workshop.labels["train"].copy()
    labels[drawn.samples] = drawn.labels(1) if not _redrawn(run.condition) else drawn.given
    keys = workshop.keys[workshop.dataset.splits["train"]]
    return loss, Shuffled(teacher.source, labels, keys, run.seed)


def shown_entropy(source: Source, drawn: Draw, views: int, temperature: float) -> float:
    """The mean entropy, in nats, of the soft labels that a run would be shown: of its samples in all views.

    Where they are corrupted anew each epoch, of every variant, as often as it is drawn.
    """
    corruption, shown = drawn.condition.corruption, [(1.0, drawn.variants(1))]
    if corruption is not None and corruption.redraw == "epoch":
        chances = [1 - corruption.fraction, *[corruption.fraction / corruption.variants] * corruption.variants]
        shown = [(chance, np.full_like(drawn.samples, variant)) for variant, chance in enumerate(chances) if chance > 0]
    found = 0.0
    with torch.inference_mode():
        for chance, variants in shown:
            for view in range(views):
                rows = [source(view + views * variants[some], drawn.samples[some]).float().cpu()
                        for some in chunks(len(variants), 256)]
                found += chance / views * mean_entropy(torch.cat(rows).numpy(), temperature)
    return found


def _redrawn(condition: Condition) -> bool:
    return condition.label_noise is not None and condition.label_noise.redraw == "epoch"


def tl_run(folder: StudyFolder, run: Run) -> store.Artifact:
    """The TL student of the same condition and seed."""
    first = next((other for other in folder.runs() if other.arm.kind == "tl"
                  and (other.seed, other.condition) == (run.seed, run.condition)), None)
    if first is None or not folder.done(first):
        raise RunFailed(f"{run.arm.name} needs this seed's TL student, {AWAITED}")
    path = folder.run_path(first)
    return store.Artifact(path, store.read_json(path / store.MANIFEST)["address"])


# --- robustness -------------------------------------------------------------------------------------------------------


def publish_robustness(workshop: Workshop, folder: StudyFolder, run: Run) -> None:
    """Show a finished student the distorted test images, and publish what it says of them."""
    path = folder.run_path(run)
    if not folder.done(run):
        raise RunFailed(f"it needs the run {run.run_id}, {AWAITED}")
    manifest = store.read_json(path / store.MANIFEST)
    distortions = distortions_of(workshop.study)
    student = workshop.study.student_of(run.condition)
    network = network_for(workshop, student, run.seed, student_key(run.condition))
    recipe = robustness_recipe(workshop, network, manifest["address"])

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

    store.publish(folder.robustness_path(run), recipe.address, asdict(recipe), make)


def distortions_of(study: Study) -> list[Distortion]:
    """What is done to the test images that finished students are shown, in the order asked for."""
    return [each for one in study.robustness for each in one.distortions]


def robustness_recipe(workshop: Workshop, network: models.Network, run: str) -> store.Recipe:
    """What a run's robustness is made from; `run` is the run's address."""
    distortions = distortions_of(workshop.study)
    spec = {"distortions": [distortion_spec(workshop, each) for each in distortions],
            "input": input_spec(workshop, network, DISTORTED, distortions[0])}
    return store.Recipe("robustness", ROBUSTNESS_VERSION, spec, {"run": run, "data": workshop.dataset.content})


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
