"""The pipeline, to be read from top to bottom: the only place that wires stages to artifacts."""

import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from safetensors.torch import load_file

from tlkd import banks, evaluation, explaining, models, progress, seeding, store
from tlkd.batches import Live, Rows, Source
from tlkd.datasets import open_dataset
from tlkd.errors import BadInput, RunFailed
from tlkd.folder import RESULT_COLUMNS, Run, StudyFolder, load_predictions
from tlkd.losses import hard_loss, make_loss
from tlkd.provenance import provenance
from tlkd.specs import Study, Teacher
from tlkd.training import Fit
from tlkd.workshop import Workshop, counted, input_spec, inputs_of, learner, network_for, pixels, train, write_result

VERSION = 2  # of what a teacher or a run is; a change that alters results raises it


Made = TypeVar("Made")


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's raw logits on the training views, and the address that stands for them."""

    source: Source
    address: str
    teacher: Path  # the fitted teacher's folder


def run_study(study: Study, out: Path, device: torch.device, command: str = "") -> dict[str, str]:
    """Run a study into the folder `out`: what is finished there stands, what failed is returned by run id."""
    folder, cache = StudyFolder(out), store.cache_folder()
    folder.refuse_other(study)
    if device.type == "cuda":  # float32 means float32: TensorFloat-32 keeps ten bits of the fraction
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    workshop = Workshop(study, open_dataset(study.data, max_input_size(study), cache), cache, device)
    build_all(workshop)
    subject = explaining.prepare(workshop, folder)
    with store.guard_disk(out):
        folder.prepare(study, provenance(command, device))
        write_card(workshop, out)
        soft = {(name, seed): attempt_teacher(workshop, folder, name, seed)
                for name, teacher in study.used_teachers.items() for seed in teacher_seeds(study, teacher)}
        for run in progress.track(folder.runs(), "runs", len(folder.runs())):
            attempt(folder.failure_path(run), lambda: publish_run(workshop, folder, run, soft))  # noqa: B023
        write_stages(workshop, folder)
        collect(folder)
        if subject is None:
            explaining.forget_failures(folder)
        else:
            explaining.explain_all(workshop, folder, subject, sitters(workshop, folder, subject, soft), attempt)
        if not folder.failures():
            shutil.rmtree(out / ".work", ignore_errors=True)
    return {**folder.failures(), **{f"explanation of {who}": why for who, why in folder.explanation_failures().items()}}


def max_input_size(study: Study) -> int:
    """The largest input size any network of the study needs: what the images are decoded to."""
    return max([study.student.input_size, *(teacher.input_size for teacher in study.used_teachers.values())])


def teacher_seeds(study: Study, teacher: Teacher) -> list[int | None]:
    """The seeds a teacher is fitted with: each of the study's, or one of its own (None)."""
    return list(study.seeds) if teacher.per_seed else [None]


def build_all(workshop: Workshop) -> None:
    """Build every network once, before anything is written: what does not fit is known at once."""
    study = workshop.study
    network_for(workshop, study.student, study.seeds[0], "student")
    for name, teacher in study.used_teachers.items():
        network_for(workshop, teacher, study.seeds[0], f"teachers.{name}", fit=teacher.fit)


def write_stages(workshop: Workshop, folder: StudyFolder) -> None:
    """Write `stages.json`: what each stage cost, those of earlier starts included."""
    stages = {stage["address"]: stage for stage in [*workshop.stages, *folder.stages()]}
    store.write_json(folder.path / "stages.json", list(stages.values()))


def write_card(workshop: Workshop, out: Path) -> None:
    """Write `data.json`: what the report says of the data."""
    dataset = workshop.dataset
    store.write_json(out / "data.json", {**dataset.card, "classes": list(dataset.classes), "content": dataset.content})


# --- teachers ---------------------------------------------------------------------------------------------------------


def publish_teacher(workshop: Workshop, folder: StudyFolder, name: str, seed: int | None) -> SoftLabels:
    """Fit a teacher (or take it as it is), bank its logits, and copy its result into the study's folder."""
    spec = workshop.study.teachers[name]
    who = f"teacher {name}" if seed is None else f"teacher {name}, seed {seed}"
    drawn = seeding.seed_from("teacher") if seed is None else seed
    network = network_for(workshop, spec, drawn, f"teachers.{name}", fit=spec.fit)
    affecting = {"network": spec.model_dump(mode="json", include={"trainable", "batch_norm", "dropout", "fit"}),
                 "training": spec.training.model_dump(mode="json") if spec.fit else None,
                 "selection": workshop.study.selection, "seed": seed if spec.fit else None, "bank": workshop.study.bank,
                 **input_spec(workshop, network)}
    inputs = inputs_of(workshop, network)
    if not spec.fit:
        inputs["head"] = models.state_hash(network.head.state_dict())
    where = store.address("teachers", VERSION, affecting, inputs)
    work = workshop.cache / "teachers" / ".work" / where

    def make(target: Path) -> dict[str, Any]:
        given, fitted = learner(workshop, network, who), Fit()
        if spec.fit:
            fitted = train(workshop, given, hard_loss, None, spec.training, seed=drawn, work=work)
        result = write_result(workshop, target, given, fitted, spec.training, backbone=inputs["backbone"])
        shutil.rmtree(work, ignore_errors=True)
        return result

    from_cache = (workshop.cache / "teachers" / where / store.MANIFEST).is_file()
    artifact = store.get(workshop.cache, "teachers", VERSION, affecting, inputs, make)
    workshop.record(who, artifact, from_cache)
    models.load_trained(network, load_file(artifact.path / "model.safetensors"))
    network.eval()
    copy_result(artifact.path, folder.teacher_path(name, seed))
    return soft_labels(workshop, network, artifact, who)


def soft_labels(workshop: Workshop, network: models.Network, artifact: store.Artifact, who: str) -> SoftLabels:
    """A fitted teacher's logits on all training views, banked, or (`bank: off`) computed anew for every batch."""
    if not workshop.study.bank:
        return SoftLabels(Live(network, pixels(workshop, network, "train")), artifact.address, artifact.path)
    inputs = {"teacher": artifact.address}
    bank = banks.cached(workshop.cache, "logits", {}, inputs)
    from_cache = bank is not None
    if bank is None:
        given = learner(workshop, network, who)
        bank = banks.build(workshop.cache, "logits", {}, inputs, network.classes, counted(workshop, given.sources),
                           given.forward, f"logits of {who}")
    workshop.record(f"logits of {who}", bank.artifact, from_cache)
    return SoftLabels(Rows(bank.arrays["train"], workshop.device), bank.artifact.address, artifact.path)


def copy_result(source: Path, target: Path) -> None:
    """Copy a teacher's result (not its weights, which stay in the cache) so that the study's folder is whole."""
    for name in ("result.json", "history.csv", "predictions.npz"):
        store.replace_bytes(target / name, (source / name).read_bytes())


# --- runs -------------------------------------------------------------------------------------------------------------


def attempt(failure: Path, work: Callable[[], Made]) -> Made | None:
    """Do one piece of work; if it fails, keep why in the file `failure` and let the others go on."""
    try:
        made = work()
    except BadInput:  # a full disk, say: nothing after this would fare better
        raise
    except RunFailed as error:
        store.replace_text(failure, f"{error}\n")
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        store.replace_text(failure, f"{line}\n\n{traceback.format_exc()}")
    else:
        failure.unlink(missing_ok=True)
        return made
    return None


def attempt_teacher(workshop: Workshop, folder: StudyFolder, name: str, seed: int | None) -> SoftLabels | None:
    """Publish a teacher; None where its training failed, which its runs will say."""
    return attempt(folder.teacher_failure_path(name, seed), lambda: publish_teacher(workshop, folder, name, seed))


def publish_run(workshop: Workshop, folder: StudyFolder, run: Run,
                soft: dict[tuple[str, int | None], SoftLabels | None]) -> store.Artifact:
    """Train one student and publish its run folder, unless it lies there already."""
    study, arm = workshop.study, run.arm
    network = network_for(workshop, study.student, run.seed, "student")
    inputs, teacher, start = inputs_of(workshop, network), None, None
    if arm.teacher is not None:
        seed = run.seed if study.teachers[arm.teacher].per_seed else None
        teacher = soft[arm.teacher, seed]
        if teacher is None:
            reason = folder.teacher_failure_path(arm.teacher, seed).read_text().partition("\n")[0]
            raise RunFailed(f"its teacher {arm.teacher} failed: {reason}")
        inputs["soft_labels"] = teacher.address
    if study.student.start == "tl" and arm.kind != "tl":
        start = starting_point(folder, run)
        inputs["start"] = start.address
    spec = run_spec(workshop, network, run)
    where = store.address("run", VERSION, spec, inputs)

    def make(target: Path) -> dict[str, Any]:
        given = learner(workshop, network, "student")
        if start is not None:
            models.load_trained(network, load_file(start.path / "model.safetensors"))
        fitted = train(workshop, given, make_loss(arm.kind, arm.soft_weight, arm.temperature),
                       teacher.source if teacher is not None else None, study.training, seed=run.seed,
                       work=folder.path / ".work" / where)
        store.write_json(target / "spec.json", {"run_id": run.run_id, **spec, "inputs": inputs,
                                                "data": study.data.model_dump(mode="json")})
        return write_result(workshop, target, given, fitted, study.training, backbone=inputs["backbone"])

    made_from = {"kind": "run", "version": VERSION, "spec": spec, "inputs": inputs}
    artifact = store.publish(folder.run_path(run), where, made_from, make)
    shutil.rmtree(folder.path / ".work" / where, ignore_errors=True)
    return artifact


def run_spec(workshop: Workshop, network: models.Network, run: Run) -> dict[str, Any]:
    """All that decides a run's result beside its inputs: a `tl` run's holds no teacher."""
    study, arm = workshop.study, run.arm
    left_out = {"weights", "start"} if arm.kind == "tl" else {"weights"}
    return {"student": study.student.model_dump(mode="json", exclude=left_out),
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


# --- explanations -----------------------------------------------------------------------------------------------------


def sitters(workshop: Workshop, folder: StudyFolder, subject: explaining.Subject,
            soft: dict[tuple[str, int | None], SoftLabels | None]) -> list[explaining.Sitter]:
    """The finished networks that the study explains: its first seeds' students, and each teacher once."""
    spec, seeds = subject.spec, workshop.study.seeds
    wanted = seeds if spec.seeds == "all" else seeds[:spec.seeds]
    found = [explaining.of_run(workshop, folder, run) for run in folder.finished() if run.seed in wanted]
    if spec.teachers:
        found += [explaining.of_teacher(workshop, name, seed, labels.teacher) for (name, seed), labels in soft.items()
                  if labels is not None and seed in (None, seeds[0])]
    return found


# --- results ----------------------------------------------------------------------------------------------------------


def collect(folder: StudyFolder) -> pd.DataFrame:
    """Write `results.csv` from the finished runs."""
    rows = []
    for run in folder.finished():
        row = {"run_id": run.run_id, "arm": run.arm.name, "condition": run.condition.name, "seed": run.seed,
               **folder.result(run)}
        teacher = folder.teacher_of(run)
        if teacher is not None and teacher.is_dir():
            theirs = load_predictions(teacher / "predictions.npz")
            row["teacher_agreement"] = evaluation.agreement(folder.predictions(run).logits, theirs.logits)["top1"]
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(RESULT_COLUMNS))
    store.replace_text(folder.path / "results.csv", table.to_csv(index=False))
    return table
