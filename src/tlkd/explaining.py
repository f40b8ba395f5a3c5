"""The explanation stage: attributions of finished networks on test images, and how they lie over the masks."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from tlkd import explained, explainers, models, progress, regions, seeding, store
from tlkd.attribution import Attributions, deep_shap, deep_shap_of_heads
from tlkd.errors import BadInput, RunFailed
from tlkd.explained import Explained, ExplainedImages
from tlkd.folder import Run, StudyFolder, load_predictions
from tlkd.masks import Masks, open_masks
from tlkd.models import Network
from tlkd.program import Program, trace
from tlkd.specs import Explanation, canonical
from tlkd.specs import Network as NetworkSpec
from tlkd.training import epoch_batches
from tlkd.views import IDENTITY, render
from tlkd.workshop import Workshop, input_spec, network_for, pixels

VERSION = 1  # of what an explanation is; a change that alters results raises it
MOST_VALUES = 2**28  # numbers of attributions that are held at a time: 1 GiB
DEFAULT_IMAGES = 2  # of each class, where there are no masks to say which
PIXELS = 64 * 96**2  # of the pairs that Deep SHAP holds at a time: 64 pairs of 96-pixel images
MOST_DRAWN = 2**27  # numbers that the pictures of one network hold: fewer images are drawn where classes are many
TOGETHER = 4  # images explained between two steps of the progress bar

Ints = NDArray[np.int64]


@dataclass(eq=False)
class Subject:
    """What is explained: test images, and their masks where there are any."""

    spec: Explanation
    rows: Ints  # [image]: rows of the data set, ascending
    pictured: Ints  # [picture]: the numbers of those among `rows` that every class is drawn for
    masks: dict[int, Masks]  # input size -> masks of test images, not only of those that are explained
    content: str  # changes with the images and with the student's masks
    programs: dict[str, Program] = field(default_factory=dict)
    input_specs: dict[str, dict[str, Any]] = field(default_factory=dict)


def prepare(workshop: Workshop, folder: StudyFolder) -> Subject | None:
    """Choose what will be explained, and make sure that it can be, before anything is trained.

    None where the study explains nothing. Raises `BadInput` for masks that cannot be used, and for a network with an
    operator that the explainer has no rule for.
    """
    spec = workshop.study.explanation
    if spec is None:
        return None
    there = len(workshop.dataset.splits["train"])
    if spec.background.kind in ("random", "first") and spec.background.size > there:
        raise BadInput(f"explanation.background.size: found {spec.background.size}; allowed: 1 to {there}, the "
                       "images of the training split")
    masks = {}
    for network in [workshop.study.student, *(workshop.study.used_teachers.values() if spec.teachers else [])]:
        if workshop.study.data.masks is not None and network.input_size not in masks:
            masks[network.input_size] = open_masks(workshop.study.data, workshop.dataset, network.input_size,
                                                   workshop.cache)
    own = masks.get(workshop.study.student.input_size)
    rows, pictured = choose(workshop, spec, own)
    ids = [workshop.dataset.ids[row] for row in rows]
    digest = hashlib.sha256(canonical([ids, own and own.content]).encode()).hexdigest()
    subject = Subject(spec, rows, pictured, masks, digest)
    _try_out(workshop, subject, _tried(folder, spec))
    return subject


def _tried(folder: StudyFolder, spec: Explanation) -> set[str]:
    """Where the specs stand of the networks that this folder holds an explanation of, by the same explainer."""
    if not (folder.path / "study.yaml").is_file():
        return set()
    before = folder.study.explanation
    if before is None or before.explainer != spec.explainer:
        return set()
    return {*(f"teachers.{name}" for name in explained.explained_teachers(folder)),
            *(["student"] if explained.explained_runs(folder) else [])}


def choose(workshop: Workshop, spec: Explanation, masks: Masks | None) -> tuple[Ints, Ints]:
    """The rows of the test images to explain, ascending, and the numbers among them of those to draw.

    Of each class those come first that have a mask which its author did not doubt, then doubtful ones, then those
    without; among equals a draw by `data_seed` decides what is explained, and the order of rows what is drawn.
    """
    dataset, seed = workshop.dataset, workshop.study.data.data_seed
    test = dataset.splits["test"]
    standing = np.full(len(dataset.ids), 2)
    if masks is not None:
        standing[masks.rows] = masks.uncertain
    drawn = seeding.uniforms(workshop.keys, 1, "explained", seed)[:, 0]
    rows: Ints = np.empty(0, np.int64)
    if masks is not None and spec.images in ("masks", None):
        rows = masks.rows
    else:
        number = spec.images if isinstance(spec.images, int) else DEFAULT_IMAGES
        for label in range(len(dataset.classes)):
            members = test[dataset.labels[test] == label]
            rows = np.append(rows, members[np.lexsort((drawn[members], standing[members]))][:number])
    rows = np.sort(rows)
    pictured = [number for label in range(len(dataset.classes))
                for number in sorted(np.flatnonzero(dataset.labels[rows] == label),
                                     key=lambda number: (standing[rows[number]], number))[:spec.pictures]]
    most = max(1, MOST_DRAWN // (len(dataset.classes) * workshop.study.student.input_size**2))
    return rows, np.sort(np.array(pictured, np.int64))[:most]


def _try_out(workshop: Workshop, subject: Subject, tried: set[str]) -> None:
    """Explain one black image by one white one: an operator without a rule is known before hours of training.

    Networks whose place in the study is in `tried` are passed over: tracing them takes seconds.
    """
    study = workshop.study
    for key, spec in [("student", study.student), *(
            (f"teachers.{name}", teacher) for name, teacher in study.used_teachers.items() if subject.spec.teachers)]:
        if key in tried:
            continue
        network = network_for(workshop, spec, study.seeds[0], key, fit=getattr(spec, "fit", True))
        black, white = (torch.full((1, 3, spec.input_size, spec.input_size), value, device=workshop.device)
                        for value in (-1.0, 1.0))
        with suppress(RunFailed):  # two images that are no photographs: what rounding does to them is no reason to stop
            if subject.spec.explainer == "deep_shap":
                deep_shap(network.backbone, black, white, 0, program=_program(subject, network, spec))
            else:
                explainers.explain(subject.spec.explainer, network, black, white, 0, subject.spec.output)


def _program(subject: Subject, network: Network, spec: NetworkSpec) -> Program:
    """The traced backbone, once for all weights of one architecture."""
    key = canonical(spec.model_dump(mode="json", include={"model", "input_size"}))
    if key not in subject.programs:
        shape = (3, network.input_size, network.input_size)
        subject.programs[key] = trace(network.backbone, shape, network.name)
    return subject.programs[key]


# --- runs and teachers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sitter:
    """One finished network that is to be explained, and where that goes."""

    who: str
    spec: NetworkSpec
    key: str  # where the spec stands in the study
    seed: int
    weights: Path  # its folder: weights, predictions
    address: str
    pictured: bool  # whether every class is drawn for some images
    fit: bool = True


def of_run(workshop: Workshop, folder: StudyFolder, run: Run) -> Sitter:
    """A finished run as something to explain; the networks of the first seed are drawn."""
    path = folder.run_path(run)
    return Sitter(run.run_id, workshop.study.student, "student", run.seed, path, _address(path),
                  run.seed == workshop.study.seeds[0])


def of_teacher(workshop: Workshop, name: str, seed: int | None, weights: Path) -> Sitter:
    """A fitted teacher as something to explain."""
    spec = workshop.study.teachers[name]
    return Sitter(explained.teacher_name(name, seed), spec, f"teachers.{name}",
                  seeding.seed_from("teacher") if seed is None else seed, weights, _address(weights), True, spec.fit)


def _address(path: Path) -> str:
    return str(store.read_json(path / store.MANIFEST)["address"])


def explain_all(workshop: Workshop, folder: StudyFolder, subject: Subject, sitters: Sequence[Sitter],
                attempt: Callable[[Path, Callable[[], Any]], Any]) -> None:
    """Explain networks and publish each under `explanations/` in the study's folder, unless it lies there already.

    Networks that share a frozen backbone are explained together. `attempt` does one piece of work and keeps why it
    failed.
    """
    root, wanted = folder.path / "explanations", {each.who: _where(workshop, subject, each) for each in sitters}
    forget_failures(folder)
    if explained.current(folder) != wanted:  # what lies there now is not of the images that are written next
        explained.save_current(root, {})
    explained.save_images(root, _images(workshop, subject))
    explained.save_current(root, wanted)
    waiting = [each for each in sitters if store.find(explained.place(folder, each.who), wanted[each.who]) is None]
    with progress.bar("explanations", len(waiting)) as advance:
        for group in _groups(workshop, subject, waiting):
            def make(group: Sequence[Sitter] = group) -> None:
                for sitter, values in zip(group, _explain(workshop, subject, group), strict=True):
                    _publish(workshop, folder, subject, sitter, *values)

            failure = folder.explanation_failure_path(group[0].who)
            attempt(failure, make)
            why = failure.read_text() if failure.is_file() else ""
            failure.unlink(missing_ok=True)
            for each in group:
                if why and not explained.there(folder, each.who):
                    store.replace_text(folder.explanation_failure_path(each.who), why)
                advance()


def forget_failures(folder: StudyFolder) -> None:
    """Remove what failed explanations of an earlier start left."""
    for path in (folder.path / "failures").glob("explanation-*.txt"):
        path.unlink()


def _groups(workshop: Workshop, subject: Subject, waiting: Sequence[Sitter]) -> Iterator[list[Sitter]]:
    """What is explained in one go: networks of one frozen backbone, as many as memory holds."""
    classes = len(workshop.dataset.classes)
    group: list[Sitter] = []
    for each in waiting:
        drawn = len(subject.pictured) * classes if each.pictured else 0
        most = max(1, MOST_VALUES // (each.spec.input_size**2 * (3 * len(subject.rows) + drawn) + 1))
        alone = (subject.spec.explainer != "deep_shap" or each.spec.trainable != "head" or each.spec.weights == "none"
                 or each.spec.batch_norm != "eval")
        if group and (alone or each.spec != group[0].spec or each.pictured != group[0].pictured or len(group) >= most):
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _explain(workshop: Workshop, subject: Subject, group: Sequence[Sitter]) -> list[tuple[Attributions, Tensor]]:
    """Attributions of the true labels' outputs, and those of all classes for the images that are drawn."""
    network = network_for(workshop, group[0].spec, group[0].seed, group[0].key, fit=group[0].fit)
    heads = []
    for sitter in group:
        models.load_trained(network, load_file(sitter.weights / "model.safetensors"))
        heads.append(copy.deepcopy(network.head))
    network.eval()
    images, background = inputs(workshop, subject, network), backgrounds(workshop, subject, network)
    labels = torch.from_numpy(workshop.dataset.labels[subject.rows]).to(workshop.device)

    def explain(rows: Ints, everything: bool) -> list[list[Attributions]]:
        """The attributions of every head, a few images at a time."""
        parts: list[list[Attributions]] = []
        with progress.bar(f"{group[0].who}{' and others' if len(group) > 1 else ''}", len(rows)) as advance:
            for first in range(0, len(rows), TOGETHER):
                part = torch.from_numpy(rows[first:first + TOGETHER]).to(workshop.device)
                targets: Any = "all" if everything else labels[part]
                if subject.spec.explainer == "deep_shap":
                    parts.append(deep_shap_of_heads(
                        network.backbone, cast(list[nn.Linear | None], heads), images[part], background,
                        [targets] * len(heads), subject.spec.output, min(128, max(16, PIXELS // network.input_size**2)),
                        _program(subject, network, group[0].spec)))
                else:
                    parts.append([explainers.explain(subject.spec.explainer, network, images[part], background, targets,
                                                     subject.spec.output)])
                parts[-1] = [_kept(each, everything) for each in parts[-1]]
                for _ in part:
                    advance()
        return [list(each) for each in zip(*parts, strict=True)]

    of_labels = [_joined(each) for each in explain(np.arange(len(subject.rows)), False)]
    side = network.input_size
    if not group[0].pictured or not len(subject.pictured):
        return [(each, torch.empty(0, len(workshop.dataset.classes), side, side)) for each in of_labels]
    return list(zip(of_labels, [_joined(each).values for each in explain(subject.pictured, True)], strict=True))


def _kept(found: Attributions, everything: bool) -> Attributions:
    """What is kept of a part: on the CPU, and of all classes the sums over channels alone."""
    values = found.values.sum(2) if everything else found.values
    return Attributions(*(each.cpu() for each in (values, found.output, found.expected, found.residual)))


def _joined(parts: Sequence[Attributions]) -> Attributions:
    return Attributions(*(torch.cat([getattr(part, name) for part in parts])
                          for name in ("values", "output", "expected", "residual")))


def _where(workshop: Workshop, subject: Subject, sitter: Sitter) -> str:
    return store.address("explanation", VERSION, _affecting(workshop, subject, sitter),
                         _inputs(workshop, subject, sitter))


def _affecting(workshop: Workshop, subject: Subject, sitter: Sitter) -> dict[str, Any]:
    """What decides an explanation beside its inputs."""
    spec = subject.spec.model_dump(mode="json", include={"explainer", "output", "background", "signs"})
    if subject.spec.background.kind in ("black", "mean"):
        del spec["background"]["size"]  # one image
    if sitter.key not in subject.input_specs:
        network = network_for(workshop, sitter.spec, sitter.seed, sitter.key, fit=sitter.fit)
        subject.input_specs[sitter.key] = input_spec(workshop, network)
    first = workshop.study.seeds[0] if subject.spec.background.kind == "first" else None
    return {**spec, "pictured": subject.pictured.tolist() if sitter.pictured else [], "first_seed": first,
            "data_seed": workshop.study.data.data_seed, "input": subject.input_specs[sitter.key]}


def _inputs(workshop: Workshop, subject: Subject, sitter: Sitter) -> dict[str, str]:
    masks = subject.masks.get(sitter.spec.input_size)
    return {"network": sitter.address, "images": subject.content, "data": workshop.dataset.content,
            "masks": masks.content if masks is not None else ""}


def _publish(workshop: Workshop, folder: StudyFolder, subject: Subject, sitter: Sitter, found: Attributions,
             pictures: Tensor) -> None:
    """Write one network's `attributions.npz` and `regions.csv`."""
    dataset = workshop.dataset
    ids, labels = np.array([dataset.ids[row] for row in subject.rows]), dataset.labels[subject.rows]
    predicted = _predicted(sitter.weights / "predictions.npz", ids)
    values = found.values.float().numpy()

    def make(target: Path) -> dict[str, Any]:
        output, expected, residual = (each.float().numpy() for each in (found.output, found.expected, found.residual))
        explained.save(target / "attributions.npz", Explained(
            ids, labels, predicted, values, output, expected, residual,
            subject.pictured if sitter.pictured else subject.pictured[:0], pictures.float().cpu().numpy()))
        masks = subject.masks.get(sitter.spec.input_size)
        if masks is not None:
            mine, theirs = _common(subject.rows, masks.rows)
            quantities = regions.measure(values[mine], masks.masks[theirs], subject.spec.signs)
            table = regions.table(ids[mine], labels[mine], dataset.classes, predicted[mine], masks.uncertain[theirs],
                                  quantities)
            (target / "regions.csv").write_text(table.to_csv(index=False))
        additive = explainers.EXPLAINERS[subject.spec.explainer].additive
        return {"additive": additive, "largest_residual": float(np.abs(residual).max()) if additive else None}

    where = _where(workshop, subject, sitter)
    made_from = {"kind": "explanation", "version": VERSION, "spec": _affecting(workshop, subject, sitter),
                 "inputs": _inputs(workshop, subject, sitter)}
    store.publish(explained.place(folder, sitter.who), where, made_from, make, renewed=True)


def _predicted(path: Path, ids: NDArray[np.str_]) -> Ints:
    """The class that a network gave each image, from its stored predictions."""
    stored = load_predictions(path)
    places = {name: number for number, name in enumerate(stored.sample_ids.tolist())}
    chosen: Ints = stored.logits[[places[name] for name in ids.tolist()]].argmax(1)
    return chosen


def _common(rows: Ints, masked: Ints) -> tuple[Ints, Ints]:
    """Where rows that stand in both stand in each."""
    _, mine, theirs = np.intersect1d(rows, masked, return_indices=True)
    return mine, theirs


# --- images -----------------------------------------------------------------------------------------------------------


def inputs(workshop: Workshop, subject: Subject, network: Network) -> Tensor:
    """The explained images as a network takes them."""
    places = np.searchsorted(workshop.dataset.splits["test"], subject.rows)
    return pixels(workshop, network, "test")(np.zeros_like(places), places)


def backgrounds(workshop: Workshop, subject: Subject, network: Network) -> Tensor:
    """The background as a network takes it: training images, the mean training image, or a black one.

    `random` draws by `data_seed`; `first` takes those that the first seed's training saw first.
    """
    dataset, background = workshop.dataset, subject.spec.background
    train = dataset.splits["train"]
    if background.kind == "black":
        chosen = np.zeros_like(dataset.images[:1])
    elif background.kind == "mean":
        total = np.zeros(dataset.images.shape[1:], np.int64)
        for first in range(0, len(train), 1024):
            total += dataset.images[train[first:first + 1024]].sum(0, dtype=np.int64)
        chosen = ((2 * total + len(train)) // (2 * len(train))).astype(np.uint8)[None]
    else:
        if background.kind == "first":
            order, _ = next(iter(epoch_batches(workshop.study.seeds[0], 1, len(train), 1, len(train))))
        else:
            order = np.argsort(seeding.uniforms(workshop.keys[train], 1, "background",
                                                workshop.study.data.data_seed)[:, 0], kind="stable")
        chosen = np.stack([dataset.images[row] for row in train[order[:background.size]]])
    mean, sd = workshop.normalisation(network)
    whole = np.zeros(len(chosen), np.int64)
    return render(torch.from_numpy(chosen).to(workshop.device), whole.astype(np.uint64), (IDENTITY,), whole,
                  network.input_size, 0, mean, sd)


def _images(workshop: Workshop, subject: Subject) -> ExplainedImages:
    dataset, side = workshop.dataset, workshop.study.student.input_size
    masks = subject.masks.get(side)
    count = len(subject.rows)
    masked, uncertain, laid = np.zeros(count, bool), np.zeros(count, bool), np.zeros((count, side, side), bool)
    outlines = {}
    if masks is not None:
        mine, theirs = _common(subject.rows, masks.rows)
        masked[mine], uncertain[mine], laid[mine] = True, masks.uncertain[theirs], masks.masks[theirs]
        outlines = {dataset.ids[subject.rows[one]]: masks.outlines[other] for one, other in
                    zip(mine, theirs, strict=True)}
    return ExplainedImages(np.array([dataset.ids[row] for row in subject.rows]), dataset.labels[subject.rows],
                           dataset.images[subject.rows], masked, laid, uncertain, outlines,
                           masks.notes if masks is not None else ())
