"""Networks ready to be shown images: a study's run, an export of one, or a bare network with weights."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torchvision.models import get_model_weights

from tlkd import models, plain, seals, specs, standalone, store, weights
from tlkd.errors import BadInput, expanded, nearest
from tlkd.folder import Run, StudyFolder, reading
from tlkd.images import Fit
from tlkd.models import Network

PREFIXES = ("packaged", "torchvision", "timm")
OPTIONS = {"weights": "--weights", "input_size": "--input-size", "model": "MODEL_OR_RUN", "fit": "MODEL_OR_RUN"}
USUAL_SIDE = 224


@dataclass(frozen=True)
class Wanted:
    """What a person named: one run of a study, an export, or a bare network."""

    name: str  # what results are called
    model: str | None = None
    study: StudyFolder | None = None
    run: Run | None = None
    export: Path | None = None

    @property
    def place(self) -> str:
        """The network's name, or the folder it lies in."""
        if self.study is not None and self.run is not None:
            return str(self.study.run_path(self.run).resolve())
        return self.model or str(self.export and self.export.resolve())


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in eval mode, the names of its outputs, and how an image becomes its input."""

    network: Network
    classes: tuple[str, ...]  # [class]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    side: int  # of the uint8 squares that images are decoded to
    fit: Fit
    notes: tuple[str, ...] = ()


def find(text: str) -> Wanted:
    """What `text` names: a run's folder, STUDY:RUN, an export, or a network's name. Raises `BadInput` for all else."""
    prefix, _, rest = text.partition(":")
    if prefix in PREFIXES and rest:
        return Wanted(re.sub(r"[^\w.-]+", "-", text), model=text)
    return find_saved(text, "neither a run's folder nor a network; allowed: STUDY/runs/RUN, an export's folder, "
                            "packaged:NAME, torchvision:NAME, timm:NAME (it stands before --images)")


def find_saved(text: str, otherwise: str) -> Wanted:
    """The finished run or the export that `text` names; raises `BadInput`, with `otherwise` where it is neither."""
    path = expanded(text, "RUN")
    if is_export(path):
        return Wanted(re.sub(r"[^\w.-]+", "-", path.resolve().name) or "export", export=path)
    study, colon, name = text.rpartition(":")
    if colon and kind(path) is None and study and kind(expanded(study, "RUN") / "study.yaml"):
        path = expanded(study, "RUN") / "runs" / name
    if kind(path / "study.yaml"):
        runs = [run.run_id for run in StudyFolder(path).finished()]
        raise BadInput(f"{text}: is a whole study; name one of its finished runs"
                       + (f", e.g. {path / 'runs' / runs[0]}" if runs else ": it has none yet"))
    at = path.resolve() if kind(path) else path.absolute()
    folder = StudyFolder(at.parent.parent)
    if at.parent.name == "teachers" and kind(folder.path / "study.yaml"):
        raise BadInput(f"{text}: is a teacher's result, whose weights stay in the cache; allowed: a run's folder")
    if at.parent.name != "runs" or not kind(folder.path / "study.yaml"):
        raise BadInput(f"{text[:200]}: {otherwise}")
    found = {run.run_id: run for run in folder.runs()}
    if at.name not in found:
        raise BadInput(f"{text}: the study has no run {at.name!r}{nearest(at.name, list(found))}")
    if not folder.done(found[at.name]):
        raise BadInput(f"{text}: this run is not finished; finish it with `tlkd run`")
    return Wanted(f"{folder.study.name}-{at.name}", study=folder, run=found[at.name])


def is_export(path: Path) -> bool:
    """Whether `tlkd export` made a folder."""
    try:
        return bool(store.read_json(path / standalone.CONFIG)["made_by"] == standalone.MADE_BY)
    except (OSError, ValueError, LookupError, TypeError):  # none, or not one that we wrote
        return False


def kind(path: Path) -> Literal["file", "folder"] | None:
    """Whether a file or a folder lies there; a name that cannot be one is none."""
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else None
    except (OSError, ValueError):
        return None


def open_subject(wanted: Wanted, file: str | None, input_size: int | None, fit: Fit | None,
                 device: torch.device) -> Subject:
    """Build the network; `file`, `input_size` and `fit` are None where the person left the choice to us."""
    if wanted.model is not None:
        with _as_options():
            return _bare(wanted.model, file or "imagenet", input_size, fit or "crop", device)
    for option, value in (("--weights", file), ("--input-size", input_size)):
        if value is not None:
            raise BadInput(f"{option}: found {str(value)!r}; {'an export' if wanted.export else 'a run'} has its own; "
                           "it goes with packaged:, torchvision: and timm: networks only")
    if wanted.export is not None:
        return _of_export(wanted.export, fit, device)
    assert wanted.study is not None and wanted.run is not None
    return _of_run(wanted.study, wanted.run, fit, device)


def preparation(subject: Subject) -> standalone.Preparation:
    """How an image becomes this network's input, in the words of an export."""
    return standalone.Preparation(subject.classes, subject.side, subject.fit, subject.network.input_size, subject.mean,
                                  subject.sd)


# --- runs -------------------------------------------------------------------------------------------------------------


def _of_run(folder: StudyFolder, run: Run, fit: Fit | None, device: torch.device) -> Subject:
    """A finished run's network, fed as the study fed it."""
    study, card, path = folder.study, folder.card(), folder.run_path(run)
    student, classes = study.student_of(run.condition), tuple(map(str, card["classes"]))
    try:
        network = models.build(student, len(classes), run.seed)
    except BadInput as error:
        raise BadInput(f"{folder.path / 'study.yaml'}: student.{error}") from None
    with reading(path / "spec.json"):
        spec = store.read_json(path / "spec.json")
        mean, sd, started = _three(spec["input"]["mean"]), _three(spec["input"]["sd"]), spec["inputs"]["backbone"]
    with reading(path / "model.safetensors"):
        state = load_file(path / "model.safetensors")
        damaged = store.damaged(path)
    if damaged:  # of the right length, but not what the training wrote
        raise BadInput(f"{path / damaged[0]}: is damaged; the study's own `tlkd run` makes it anew")
    seals.refuse(folder.path, ("data.json", "study.yaml"))
    if models.backbone_hash(network) != started:
        raise BadInput(f"{path}: was trained from other weights of {student.model} than those found here "
                       f"({network.origin}); bring those back")
    models.load_trained(network, state)
    sizes = [student.input_size, *(each.input_size for each in study.used_teachers.values())]
    return Subject(network.to(device).eval(), classes, mean, sd, int(card.get("stored_side", max(sizes))),
                   fit or study.data.fit)


# --- exports ----------------------------------------------------------------------------------------------------------


def _of_export(path: Path, fit: Fit | None, device: torch.device) -> Subject:
    """An exported network, fed as its study fed it."""
    try:
        ready = standalone.read_config(path)
    except standalone.Refused as error:
        raise BadInput(str(error)) from None
    file = path / standalone.CONFIG
    try:
        config = store.read_json(file)
        spec = specs.Network(model=f"{config['library']}:{config['architecture']}", weights="none", dropout=0.0,
                             input_size=ready.input_size)
        network = models.build(spec, len(ready.classes), 0)
    except (LookupError, TypeError, ValidationError, BadInput) as error:
        raise BadInput(f"{file}: names no network that can be built ({weights.brief(error)})") from None
    try:
        plain.load(network, weights.read_state(path / "model.safetensors"))
        standalone.check_sum(path / "model.safetensors")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except standalone.Refused as error:
        raise BadInput(str(error)) from None
    network.origin = str(path)
    return Subject(network.to(device).eval(), ready.classes, ready.mean, ready.sd, ready.decoded_side,
                   fit or ready.fit)


def _three(values: Sequence[Any]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


# --- bare networks ----------------------------------------------------------------------------------------------------


def _bare(model: str, chosen: str, input_size: int | None, fit: Fit, device: torch.device) -> Subject:
    """A network as its library makes it, with its own head."""
    prefix, _, name = model.partition(":")
    known = weights.known_models(prefix)
    if name.partition(".")[0] not in known:  # before anything is asked of it
        raise BadInput(f"model: found {model!r}; {prefix} has no classifier of that name that can be explained"
                       f"{nearest(name, known)}")
    side = input_size or _own_side(prefix, name, chosen)
    spec = specs.Network(model=model, weights=chosen, input_size=side, dropout=0.0)
    untrained = chosen == "none"
    count = _outputs(spec, prefix, name)
    with torch.random.fork_rng(devices=[]):
        network = models.build(spec, count, 0, fit=untrained)
    classes, notes = _class_names(prefix, name, chosen, count)
    if untrained:
        notes = ("weights: none: the network is untrained, its weights are random",)
    return Subject(network.to(device).eval(), classes, network.mean, network.sd, side, fit, notes)


def _own_side(prefix: str, name: str, chosen: str) -> int:
    """The input size that the weights were made for."""
    if prefix == "torchvision":
        offered = get_model_weights(name).__members__
        entry = offered.get(chosen) or offered.get("IMAGENET1K_V1") or next(iter(offered.values()), None)
        return USUAL_SIDE if entry is None else int(entry.transforms().crop_size[0])
    config = timm.get_pretrained_cfg(f"tf_{name}" if prefix == "packaged" else name)
    return USUAL_SIDE if config is None else int(config.input_size[1])


def _outputs(spec: specs.Network, prefix: str, name: str) -> int:
    """How many outputs the head has that comes with the weights."""
    if weights.is_path(spec.weights):
        return _outputs_in(spec)
    if prefix == "torchvision" and spec.weights in get_model_weights(name).__members__:
        return len(get_model_weights(name)[spec.weights].meta["categories"])
    config = timm.get_pretrained_cfg(name) if prefix == "timm" and spec.weights == "imagenet" else None
    return 1000 if config is None else int(config.num_classes)


def _outputs_in(spec: specs.Network) -> int:
    """How many outputs the head in a file has, whoever named its tensors."""
    state = weights.read_state(expanded(spec.weights, "weights"))
    with torch.random.fork_rng(devices=[]):
        heads = weights.whole_network(spec.model_copy(update={"weights": "none"}), 2, True).heads
    for head in (*heads, "head", "_fc"):
        if f"{head}.weight" in state:
            return len(state[f"{head}.weight"])
    raise BadInput(f"weights: found {spec.weights!r}; it holds no head ({heads[0]}.weight); allowed: the weights of a "
                   "whole network (of a run of a study, name the run's folder in the network's place)")


def _class_names(prefix: str, name: str, chosen: str, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of outputs, as far as they can be known, and what a person should know of them."""
    imagenet = list(get_model_weights("resnet18")["IMAGENET1K_V1"].meta["categories"])
    note = ""
    if prefix == "torchvision" and chosen in get_model_weights(name).__members__:
        found = list(get_model_weights(name)[chosen].meta["categories"])
    elif count == len(imagenet):
        found = imagenet
        note = "1,000 outputs: they are called by ImageNet's classes" if weights.is_path(chosen) else ""
    else:
        found = list(map(str, range(count)))
        note = "the weights name no classes: they are called by their numbers"
    notes = (note,) if note else ()
    return tuple(f"{each} ({number})" if found.count(each) > 1 else each for number, each in enumerate(found)), notes


@contextmanager
def _as_options() -> Iterator[None]:
    """Call what is wrong with a network by the option that the person can change."""
    try:
        yield
    except BadInput as error:
        key, colon, rest = str(error).partition(":")
        if key not in OPTIONS:
            raise
        if key == "fit":  # a word of studies
            rest = rest.partition(";")[2].partition(", so it")[0] + ": it cannot be explained"
        raise BadInput(OPTIONS[key] + colon + rest.replace("give weights: PATH", "give --weights PATH")) from error
