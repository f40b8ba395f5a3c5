"""`tlkd predict`: the classes of any images, by a run, an export, or its ONNX file, which needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tlkd import progress, standalone, store
from tlkd.errors import BadInput, expanded, nearest, needs
from tlkd.standalone import FORMATS, Logits, Pixels, Preparation, Refused

if TYPE_CHECKING:
    import torch

    from tlkd.subjects import Subject

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """What a person asks for."""

    top: int = 1
    format: str = "csv"
    out: Path | None = None
    attributions: Path | None = None
    device: str = "auto"
    batch_size: int = 32


@dataclass(frozen=True)
class Predicted:
    """The predictions as text, already written where `--out` names a file, and what could not be read and why."""

    text: str
    count: int
    problems: dict[Path, str]


def predict(model: str, images: Sequence[Path], options: Options) -> Predicted:
    """Predict the images with the network that `model` names.

    Raises `BadInput` for whatever the person can put right, before the work where that can be known.
    """
    _check(options)
    try:
        paths = standalone.gather(images, options.attributions)
    except Refused as error:
        raise BadInput(f"IMAGE_OR_FOLDER: {error}") from None
    onnx = model.lower().endswith(".onnx")
    if onnx and options.attributions is not None:
        raise BadInput(f"--attributions: {model} runs in ONNX Runtime, which has no gradients; name the export's "
                       f"folder instead: {Path(model).parent}")
    ready, logits = _onnx(model, options.device) if onnx else _torch(model, options.device)
    if options.top > len(ready.classes):
        raise BadInput(f"--top: found {options.top}; allowed: 1 to {len(ready.classes)}, the number of classes")
    with progress.bar("predict", len(paths)) as advance:
        found, problems = standalone.predict(paths, ready, logits, options.top, options.batch_size, advance)
    pictures = None
    if options.attributions is not None:
        good = [path for path in paths if path not in problems]
        pictures = _pictures(model, good, options) if good else {}
    text = FORMATS[options.format](found, pictures)
    if options.out is not None:
        store.replace_text(options.out, text)
    return Predicted(text, len(found), problems)


def _check(options: Options) -> None:
    """Refuse words that are not allowed, and an output that cannot be written, before the work."""
    for option, found, allowed in (("--format", options.format, list(FORMATS)),
                                   ("--device", options.device, list(DEVICES))):
        if found not in allowed:
            raise BadInput(f"{option}: found {found!r}{nearest(found, allowed)}; allowed: {', '.join(allowed)}")
    if options.out is not None:
        if options.out.is_dir():
            raise BadInput(f"--out: {options.out} is a folder; allowed: a file")
        store.check_writable(options.out, "--out")
    if options.attributions is not None and not options.attributions.is_dir():
        store.check_writable(options.attributions, "--attributions")


def _onnx(model: str, device: str) -> tuple[Preparation, Logits]:
    """An export's ONNX file in ONNX Runtime."""
    path = expanded(model, "MODEL")
    if not path.is_file():
        raise BadInput(f"{model}: there is no such file; allowed: an export's model.onnx")
    offered = needs("onnxruntime", f"tlkd predict {model}", "export").get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in offered:
        raise BadInput("--device: found 'cuda', but this ONNX Runtime has no CUDA (onnxruntime-gpu has); allowed: "
                       "auto, cpu")
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    try:
        ready = standalone.read_config(path.parent)
        return ready, standalone.onnx_logits(path, ready, providers=providers)
    except Refused as error:
        raise BadInput(str(error)) from None


def _torch(model: str, device: str) -> tuple[Preparation, Logits]:
    """A run or an export in PyTorch."""
    import torch

    from tlkd import subjects
    from tlkd.console import device_of

    chosen = device_of(device)
    wanted = subjects.find_saved(model, "is no network to predict with; allowed: STUDY/runs/RUN of a finished run, an "
                                        "export's folder, its model.onnx")
    if chosen.type == "cuda":  # float32 means float32: TensorFloat-32 keeps ten bits of the fraction
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    subject = subjects.open_subject(wanted, None, None, None, chosen)
    return subjects.preparation(subject), _in_torch(subject, chosen)


def _in_torch(subject: "Subject", device: "torch.device") -> Logits:
    import torch

    from tlkd.showcase import inputs

    def logits(squares: Pixels) -> NDArray[Any]:
        with torch.inference_mode():
            found: torch.Tensor = subject.network(inputs(subject, squares, device))
        return found.cpu().numpy()

    return logits


def _pictures(model: str, paths: list[Path], options: Options) -> dict[str, str]:
    """A picture of what speaks for the winners of each image, by image."""
    from tlkd import gallery
    from tlkd.console import device_of

    asked = gallery.Options(tuple(paths), classes=f"top:{options.top}", out=options.attributions)
    try:
        made = gallery.explain(model, asked, device_of(options.device))
    except BadInput as error:
        said = str(error)
        if said.startswith("--background:"):
            said = (f"{said.removeprefix('--background: ').partition('; allowed')[0]}; `tlkd explain {model} --images "
                    "PATH --background SOURCE` compares with others")
        for option in ("--images and --classes: ", "--images: "):
            said = said.removeprefix(option)
        raise BadInput(f"--attributions: {said.replace('--out', '--attributions')}") from None
    return {standalone.text_of(path): standalone.text_of(drawn.path)
            for path, drawn in zip(paths, made.drawn, strict=True)}
