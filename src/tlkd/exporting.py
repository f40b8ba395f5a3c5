"""`tlkd export`: a finished run's student as files that other software loads, checked, weighed and described."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from tlkd import (
    __version__,
    cards,
    datasets,
    findings,
    footprint,
    onnx_file,
    plain,
    progress,
    provenance,
    seals,
    specs,
    standalone,
    store,
    subjects,
    weights,
    wording,
)
from tlkd.cards import Facts, Weighed
from tlkd.errors import BadInput, RunFailed, expanded, needs
from tlkd.folder import Predictions, Run, StudyFolder, reading
from tlkd.images import BadImage
from tlkd.licences import Licence, licence_of
from tlkd.models import Network
from tlkd.standalone import CONFIG, MADE_BY, ONNX, SUMS, Pixels, Preparation, onnx_logits
from tlkd.subjects import Subject, Wanted

FORMAT = 1  # of config.json
CARD, WEIGHTS, SCRIPT, REQUIREMENTS = "README.md", "model.safetensors", "predict.py", "requirements.txt"
FILES = (CARD, WEIGHTS, CONFIG, ONNX, SCRIPT, "images.py", REQUIREMENTS, SUMS)
LEAVINGS = ("__pycache__", ".DS_Store")  # what using an export leaves in it
MOST = 200  # images that ONNX Runtime is held to PyTorch on
BATCH = 32
THREADS = 1  # that are timed
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Exported:
    """What was written, and what its reader should know at once."""

    path: Path
    sizes: dict[str, int]  # of each file, in bytes
    check: onnx_file.Check
    checked_on: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Shown:
    """The images that the export is checked on, and which of the study's test images they are, if any."""

    squares: Pixels  # [image, side, side, 3]
    ids: tuple[str, ...]  # [image], empty where they are others
    said: str


def export(text: str, to: Path, force: bool = False, images: Sequence[Path] = (), timed: bool = True) -> Exported:
    """Export the run that `text` names into the folder `to`, which appears when everything in it is checked.

    `images` are checked on instead of the study's test images. Raises `BadInput` for whatever the person can put right,
    and `RunFailed` where a check fails; in both cases `to` is as it was.
    """
    for package in onnx_file.EXTRA:
        needs(package, f"tlkd export {text}", "export")
    wanted = _run_named(text)
    assert wanted.study is not None and wanted.run is not None
    to = expanded(str(to), "--to")
    check_target(to, force)
    subject = subjects.open_subject(wanted, None, None, None, CPU)
    ready = subjects.preparation(subject)
    shown = _shown(wanted.study, ready, images)
    found = findings.find(wanted.study)
    progress.say(f"exporting {wanted.run.run_id}, which takes up to a minute")
    made: list[Facts] = []

    def build(folder: Path) -> None:
        made.append(_build(folder, wanted.study, wanted.run, subject, ready, shown, found, timed))  # type: ignore[arg-type]

    store.replace_folder(to, build)
    facts, sizes = made[0], {name: (to / name).stat().st_size for name in FILES}
    return Exported(to, sizes, facts.check, shown.said, tuple(_warnings(facts)))


def _run_named(text: str) -> Wanted:
    """The finished, undamaged run that `text` names."""
    wanted = subjects.find_saved(text, "is no run's folder; allowed: STUDY/runs/RUN of a finished run")
    if wanted.export is not None:
        raise BadInput(f"{text}: is an export already; allowed: a finished run's folder")
    assert wanted.study is not None and wanted.run is not None
    path = wanted.study.run_path(wanted.run)
    with reading(path / store.MANIFEST):
        damaged = store.damaged(path)
    if damaged:
        raise BadInput(f"{path / damaged[0]}: is missing or damaged; the study's own `tlkd run` makes it anew")
    return wanted


def check_target(to: Path, force: bool) -> None:
    """Refuse a folder that something else lies in, before the work; raises `BadInput`."""
    try:
        inside = sorted(each.name for each in to.iterdir()) if to.is_dir() else []
        there = to.exists() or to.is_symlink()
    except OSError as error:
        said = (error.strerror or str(error)).lower()
        raise BadInput(f"--to {str(to)[:200]}: cannot be read ({said}); choose another folder") from None
    if there and not to.is_dir():
        raise BadInput(f"--to {to}: is a file; choose another folder")
    if inside and not subjects.is_export(to):
        raise BadInput(f"--to {to}: is not empty and is no export of tlkd's; choose another folder")
    if inside and not force:
        raise BadInput(f"--to {to}: holds an export already; --force replaces it, or choose another folder")
    others = [name for name in inside if name not in (*FILES, *LEAVINGS)]
    if others:
        raise BadInput(f"--to {to}: also holds {others[0]}, which no export wrote and --force would delete; move it, "
                       "or choose another folder")
    store.check_writable(to.resolve(), "--to")


def _shown(folder: StudyFolder, ready: Preparation, images: Sequence[Path]) -> Shown:
    """What the export is checked on: the images given, or some of the study's test images, evenly spread."""
    if images:
        try:
            paths = standalone.gather(images)[:MOST]
        except standalone.Refused as error:
            raise BadInput(f"--images: {error}") from None
        squares = [_square(path, ready) for path in progress.track(paths, "decode images", len(paths))]
        given = wording.count(len(squares), "image")
        return Shown(np.stack(squares), (), f"{given} given with --images")
    study = folder.study
    try:
        dataset = datasets.open_again(study.data, study.max_input_size, store.cache_folder(), folder.card()["content"])
    except BadInput as error:
        raise BadInput(f"the study's test images, on which an export is checked, cannot be had ({error}); give others: "
                       "--images PATH") from None
    test = dataset.splits["test"]
    rows = test[np.unique(np.linspace(0, len(test) - 1, min(MOST, len(test))).round().astype(np.int64))]
    return Shown(np.ascontiguousarray(dataset.images[rows]), tuple(dataset.ids[row] for row in rows),
                 f"{len(rows):,} of the study's {len(test):,} test images")


def _square(path: Path, ready: Preparation) -> Pixels:
    try:
        return standalone.square(path, ready)
    except BadImage as bad:
        raise BadInput(f"--images: {standalone.text_of(path)}: {bad}; mend it, or leave it out") from None


# --- what is written --------------------------------------------------------------------------------------------------


def _build(folder: Path, study: StudyFolder, run: Run, subject: Subject, ready: Preparation, shown: Shown,
           found: findings.Findings, timed: bool) -> Facts:
    """Fill the export's folder."""
    network = subject.network
    expected = _logits(network, shown.squares, ready)
    own = plain.plain(network, torch.from_numpy(standalone.network_input(shown.squares[:BATCH], ready)))
    # Not by save_file, whose files only their owner may read; one key, since the order of several is chance.
    (folder / WEIGHTS).write_bytes(save(own.state, metadata={"format": "pt"}))
    onnx_file.write(own.module, ready, folder / ONNX, network.name)
    checked = onnx_file.check(folder / ONNX, expected, shown.squares, ready)
    predictions = study.predictions(run)
    same = _same_as_study(predictions, shown, expected)
    student, teacher = _weigh(folder, study, run, own, ready, shown.squares, timed)
    names = _teachers(study.study, run)
    facts = Facts(
        found=found, run=run, plain=own, ready=ready, own=predictions, epochs=int(study.result(run)["epochs"]),
        student=student, teacher=teacher, licence=licence_of(student.spec),
        teacher_licences={name: licence_of(study.study.teachers[name]) for name in names},
        check=checked, checked_on=shown.said, same_as_study=same, machine=_machine(), threads=THREADS,
        made_with=_made_with(study, run))
    store.write_json(folder / CONFIG, _config(facts, study, run))
    source = resources.files("tlkd")
    script = source.joinpath("standalone.py").read_text(encoding="utf-8").replace("from tlkd.images", "from images")
    store.replace_text(folder / SCRIPT, script)
    store.replace_text(folder / "images.py", source.joinpath("images.py").read_text(encoding="utf-8"))
    store.replace_text(folder / REQUIREMENTS, "onnxruntime>=1.18\nnumpy>=1.26\npillow>=10.1\n")
    store.replace_text(folder / CARD, cards.write(facts))
    seals.seal(folder, [name for name in FILES if name != SUMS])
    return facts


def _logits(network: Network, squares: Pixels, ready: Preparation) -> NDArray[Any]:
    """What the student as it was trained makes of these squares, `[image, class]`."""
    with torch.inference_mode():
        return np.concatenate([network(torch.from_numpy(standalone.network_input(squares[start:start + BATCH], ready)))
                               .numpy() for start in range(0, len(squares), BATCH)])


def _same_as_study(stored: Predictions, shown: Shown, logits: NDArray[Any]) -> tuple[int, int] | None:
    """On how many of the test images the study had stored the same winner."""
    if not shown.ids:
        return None
    places = {name: place for place, name in enumerate(stored.sample_ids.tolist())}
    rows = [places[name] for name in shown.ids]
    same = int((stored.logits[rows].argmax(1) == logits.argmax(1)).sum())
    if same < 0.95 * len(rows) - 1:  # other hardware rounds otherwise, but not so
        raise RunFailed(f"this run's student says of {len(rows) - same} of {len(rows)} test images something else than "
                        "the study stored, so that its results are not those of these weights; nothing was exported")
    return same, len(rows)


def _config(facts: Facts, study: StudyFolder, run: Run) -> dict[str, Any]:
    """All that loading and predicting need, under timm's names where timm has one, and what was measured."""
    own, ready = facts.plain, facts.ready
    with reading(study.run_path(run) / store.MANIFEST):
        address = store.read_json(study.run_path(run) / store.MANIFEST)["address"]
    config: dict[str, Any] = {
        "made_by": MADE_BY, "format": FORMAT, "library": own.library, "architecture": own.architecture,
        "num_classes": len(ready.classes), "label_names": list(ready.classes),
        "model_args": {name: value for name, value in own.arguments.items() if name != "num_classes"},
        "preprocessing": {"decoded_side": ready.decoded_side, "fit": ready.fit, "input_size": ready.input_size,
                          "mean": ready.mean, "sd": ready.sd, "interpolation": "bilinear", "antialias": True},
        "onnx": {"file": ONNX, "input": {"name": standalone.INPUT, "type": "uint8", "shape": [
            "batch", ready.decoded_side, ready.decoded_side, 3]}, "output": {
            "name": standalone.OUTPUT, "type": "float32", "shape": ["batch", len(ready.classes)]}},
        "study": study.study.name, "run": {"name": run.run_id, "arm": run.arm.name, "condition": run.condition.name,
                                           "seed": run.seed, "address": address},
        "licence": asdict(facts.licence), "teacher_licences": {
            name: asdict(each) for name, each in facts.teacher_licences.items()},
        "metrics": study.result(run), "check": {**asdict(facts.check), "on": facts.checked_on},
        "footprint": {name: _weighed(each) for name, each in (("student", facts.student), ("teacher", facts.teacher))
                      if each is not None},
        "machine": facts.machine, "versions": dict(_versions())}
    if own.library == "timm":
        config["pretrained_cfg"] = _timm_config(facts)
    return config


def _timm_config(facts: Facts) -> dict[str, Any]:
    """What timm reads of a network: with it `timm.create_model('local-dir:PATH', pretrained=True)` loads the folder."""
    module: Any = facts.plain.module
    known = dict(module.pretrained_cfg)
    side = facts.ready.input_size
    return {**{key: known.get(key) for key in ("first_conv", "classifier", "pool_size", "fixed_input_size")},
            "input_size": [3, side, side], "mean": facts.ready.mean, "std": facts.ready.sd, "interpolation": "bilinear",
            "crop_pct": 1.0, "num_classes": len(facts.ready.classes), "license": facts.licence.identifier}


def _weighed(each: Weighed) -> dict[str, Any]:
    return {"name": each.name, "model": each.spec.model, "input_size": each.spec.input_size, **asdict(each.size),
            "onnx_bytes": each.onnx_bytes, "latency_seconds": {
                engine: asdict(one) for engine, one in each.latencies.items()}}


# --- what it costs ----------------------------------------------------------------------------------------------------


def _teachers(study: specs.Study, run: Run) -> list[str]:
    """The teachers whose outputs the student learnt from."""
    return [run.arm.teacher] if run.arm.teacher is not None else []


def _weigh(folder: Path, study: StudyFolder, run: Run, own: plain.Plain, ready: Preparation, squares: Pixels,
           timed: bool) -> tuple[Weighed, Weighed | None]:
    """Sizes and latencies of the student and, beside it, of its teacher or of the study's first."""
    spec = study.study.student_of(run.condition)
    used = study.study.used_teachers
    name = next(iter(_teachers(study.study, run) or used), None)
    calls = _calls("student", own.module, ready, squares, folder / ONNX)
    size = footprint.size_of(own.module, ready.input_size)
    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        module, file, at = None, None, ready
        if name is not None:
            module, at = _teacher_module(used[name], ready), _at(ready, used[name].input_size)
            file = _teacher_file(module, at, Path(scratch) / ONNX, name) if timed else None
            calls |= _calls("teacher", module, at, squares, file)
        taken = footprint.latencies(calls, THREADS) if timed else {}
        student = Weighed("student", spec, size, (folder / ONNX).stat().st_size, _of("student", taken))
        if name is None or module is None:
            return student, None
        return student, Weighed(name, used[name], footprint.size_of(module, at.input_size),
                                None if file is None else file.stat().st_size, _of("teacher", taken))


def _at(ready: Preparation, side: int) -> Preparation:
    return Preparation(ready.classes, ready.decoded_side, ready.fit, side, ready.mean, ready.sd)


def _teacher_module(spec: specs.Teacher, ready: Preparation) -> torch.nn.Module:
    """A teacher's network as its library makes it, with random weights: they take no other time than its own."""
    bare = specs.Network(model=spec.model, weights="none", input_size=spec.input_size)
    with torch.random.fork_rng(devices=[]):
        return weights.whole_network(bare, len(ready.classes), True).module.eval()


def _teacher_file(module: torch.nn.Module, ready: Preparation, path: Path, name: str) -> Path | None:
    """The teacher as ONNX, to be timed; None, with a word on why, where that cannot be."""
    try:
        onnx_file.write(module, ready, path, f"teacher {name}")
    except RunFailed as error:
        progress.say(f"{error}; it is not timed in ONNX Runtime")
        return None
    return path


def _calls(who: str, module: torch.nn.Module, ready: Preparation, squares: Pixels,
           file: Path | None) -> dict[str, Callable[[], Any]]:
    """What is timed of one network: one image through PyTorch, and through ONNX Runtime."""
    image = torch.from_numpy(standalone.network_input(squares[:1], ready))
    calls: dict[str, Callable[[], Any]] = {f"{who}/PyTorch": lambda: module(image)}
    if file is not None:
        logits = onnx_logits(file, ready, threads=THREADS)
        calls[f"{who}/ONNX Runtime"] = lambda: logits(squares[:1])
    return calls


def _of(who: str, taken: dict[str, footprint.Latency]) -> dict[str, footprint.Latency]:
    return {name.partition("/")[2]: each for name, each in taken.items() if name.startswith(f"{who}/")}


# --- what it was made with --------------------------------------------------------------------------------------------


def _machine() -> str:
    found = provenance.hardware(CPU)
    return f"{found['processor']} ({found['cores']} cores here)"


def _versions() -> list[tuple[str, str]]:
    found = provenance.versions()
    return [(name, found[name]) for name in ("python", "torch", "torchvision", "timm", "numpy", "pillow")] + [
        ("tlkd", __version__), *((name, metadata.version(name)) for name in onnx_file.EXTRA)]


def _made_with(study: StudyFolder, run: Run) -> list[tuple[str, str]]:
    """Where the run comes from, for the card; no path, which is nobody's business."""
    known = study.provenance
    rows = [("Study", study.study.name), ("Run", f"`{run.run_id}`")]
    rows += [(label, str(known[key])) for key, label in (("started", "Study started"), ("git_commit", "tlkd's commit"))
             if known.get(key)]
    return [*rows, ("Exported with", ", ".join(f"{name} {version}" for name, version in _versions()))]


def _warnings(facts: Facts) -> list[str]:
    """What nobody may overlook, in a line each."""
    def line(who: str, licence: Licence) -> str:
        return (f"{who} under {licence.name} ({licence.about}): not for commercial use; README.md says more")

    found = [line("the student's weights came", facts.licence)] if facts.licence.warns else []
    return found + [line(f"the weights of the teacher {name} came", each)
                    for name, each in facts.teacher_licences.items() if each.warns]
