"""Predict with an exported network; ONNX Runtime, NumPy and Pillow are all it takes.

    python predict.py photo.jpg folder-of-photos --top 3

In an export this file is called predict.py and stands beside images.py, both of them tlkd's own: what they do to an
image is what was done to the study's test images. Licence: Apache-2.0.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkd.images import BadImage, Fit, decode, fit_image

CONFIG, ONNX, SUMS = "config.json", "model.onnx", "SHA256SUMS"
MADE_BY = "tlkd export"
INPUT, OUTPUT = "images", "logits"  # of the ONNX file
SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DIGITS = 6  # of a probability that is written

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Logits = Callable[[Pixels], NDArray[Any]]
"""Squares `[image, side, side, 3]` -> logits `[image, class]`."""


class Refused(ValueError):
    """Something that the person can put right, in one line."""


@dataclass(frozen=True)
class Preparation:
    """How an image file becomes a network's input, and what the network's outputs are called."""

    classes: tuple[str, ...]
    decoded_side: int  # of the uint8 squares that images are decoded to, in pixels
    fit: Fit
    input_size: int  # side of the network's own input
    mean: tuple[float, ...]  # of pixels in [0, 1]
    sd: tuple[float, ...]


@dataclass(frozen=True)
class Prediction:
    """An image's most probable classes, the first of them first."""

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def read_config(folder: Path | str = ".") -> Preparation:
    """Read the config.json of an export. Raises `Refused` where it is none."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["made_by"] != MADE_BY:
            raise ValueError(f"made_by is {config['made_by']!r}")
        found = config["preprocessing"]
        ready = Preparation(tuple(map(str, config["label_names"])), int(found["decoded_side"]), found["fit"],
                            int(found["input_size"]), _three(found["mean"]), _three(found["sd"]))
        if ready.fit not in get_args(Fit) or min(ready.decoded_side, ready.input_size, *ready.sd) <= 0:
            raise ValueError(f"preprocessing is {found}")
    except FileNotFoundError:
        raise Refused(f"{path}: is not there; it belongs beside {ONNX}") from None
    except Exception as error:  # somebody else's file may hold anything
        raise Refused(f"{path}: is not what `{MADE_BY}` writes ({type(error).__name__}: {error})") from None
    check_sum(path)
    return ready


def check_sum(path: Path) -> None:
    """Raise `Refused` where the SHA256SUMS beside a file, if there is one, says that the file is another."""
    beside = path.parent / SUMS
    if not beside.is_file():
        return
    known = dict(line.split(maxsplit=1)[::-1] for line in beside.read_text(errors="replace").splitlines()
                 if len(line.split(maxsplit=1)) == 2)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if path.name in known and known[path.name] != found:
        raise Refused(f"{path}: is not what {SUMS} says; export it again (or remove {SUMS}, if the change is yours)")


def _three(values: Sequence[Any]) -> tuple[float, ...]:
    red, green, blue = map(float, values)
    return red, green, blue


# --- from a file to a network's input ---------------------------------------------------------------------------------


def square(path: Path | str, ready: Preparation) -> Pixels:
    """An image file as the ONNX file takes it: uint8 `[decoded_side, decoded_side, 3]`, RGB.

    Raises `BadImage`, whose text is the reason, for what is no image.
    """
    with warnings.catch_warnings():  # a large photo is no cause for alarm, and a bomb is refused
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        decoded = decode(Path(path), ready.decoded_side)
    return np.asarray(fit_image(decoded.image, ready.decoded_side, ready.fit))


def network_input(squares: Pixels | Sequence[Pixels], ready: Preparation) -> Floats:
    """Squares as the network itself takes them: float32 `[image, 3, input_size, input_size]`, normalised, resized."""
    scale, shift = channels(ready)
    pixels = (np.asarray(squares).astype(np.float32) * scale + shift).transpose(0, 3, 1, 2)
    if ready.decoded_side != ready.input_size:
        weights = resampling(ready.decoded_side, ready.input_size)
        pixels = np.matmul(weights, np.matmul(pixels, weights.T))
    return np.ascontiguousarray(pixels, np.float32)


def channels(ready: Preparation) -> tuple[Floats, Floats]:
    """The factor and the summand, `[3]` each, that normalise pixels in [0, 255]."""
    scale = 1 / (255 * np.array(ready.sd))
    return scale.astype(np.float32), (-255 * np.array(ready.mean) * scale).astype(np.float32)


def resampling(source: int, target: int) -> Floats:
    """Antialiased bilinear resampling of a row of pixels as a matrix, `[target, source]`."""
    scale = source / target
    centre = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(source) + 0.5 - centre[:, None]) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


# --- from images to predictions ---------------------------------------------------------------------------------------


def onnx_logits(path: Path | str = ONNX, ready: Preparation | None = None, threads: int = 0,
                providers: Sequence[str] = ("CPUExecutionProvider",)) -> Logits:
    """What an export's ONNX file makes of squares; `threads` 0 leaves their number to ONNX Runtime.

    Raises `Refused` where it cannot be loaded or, given `ready`, takes other images or gives other outputs.
    """
    try:
        import onnxruntime
    except ImportError:
        raise Refused("ONNX Runtime is not installed: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not Path(path).is_file():
        raise Refused(f"{path}: is not there")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime has an exception for each kind of damage
        said = " ".join(str(error).split())[:200]
        raise Refused(f"{path}: ONNX Runtime cannot load it ({said})") from None
    taken = [(each.name, each.type, list(each.shape[1:])) for each in session.get_inputs()]
    given = [(each.name, each.type, list(each.shape[1:])) for each in session.get_outputs()]
    if ready is not None and (taken, given) != (
            [(INPUT, "tensor(uint8)", [ready.decoded_side, ready.decoded_side, 3])],
            [(OUTPUT, "tensor(float)", [len(ready.classes)])]):
        raise Refused(f"{path}: takes {taken} and gives {given}, which is not what {CONFIG} says; were the two made "
                      "together?")
    check_sum(Path(path))

    def logits(squares: Pixels) -> NDArray[Any]:
        found: NDArray[Any] = session.run([OUTPUT], {INPUT: np.ascontiguousarray(squares)})[0]
        return found

    return logits


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities `[image, class]`."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True), np.float64)


def predict(paths: Sequence[Path], ready: Preparation, logits: Logits, top: int = 1, batch_size: int = 32,
            advance: Callable[[], None] = lambda: None) -> tuple[list[Prediction], dict[Path, str]]:
    """The `top` classes of each image, and why the images that are missing from them could not be read.

    `advance` is called after each image.
    """
    found: list[Prediction] = []
    problems: dict[Path, str] = {}
    for batch in _batches(paths, batch_size):
        squares = {}
        for path in batch:
            try:
                squares[path] = square(path, ready)
            except BadImage as bad:
                problems[path] = str(bad)
            advance()
        if squares:
            probabilities = softmax(logits(np.stack(list(squares.values()))))
            for path, row in zip(squares, probabilities, strict=True):
                best = np.argsort(-row, kind="stable")[:top]
                found.append(Prediction(text_of(path), tuple(ready.classes[each] for each in best),
                                        tuple(float(row[each]) for each in best)))
    return found, problems


def _batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start:start + size]


def gather(given: Iterable[Path], skip: Path | None = None) -> list[Path]:
    """The image files that were named, and those below folders that were named; each once, in order.

    Hidden files are passed over, and so is the folder `skip`. Raises `Refused` where there is no such thing.
    """
    found: dict[Path, Path] = {}
    own = skip.resolve() if skip is not None else None
    given = [each.expanduser() for each in given]
    for each in given:
        kind = _kind(each)
        if kind == "file":
            found.setdefault(each.resolve(), each)
        elif kind == "folder":
            for path in _below(each):
                if own is None or own not in path.resolve().parents:
                    found.setdefault(path.resolve(), path)
        else:
            raise Refused(f"there is no {str(each)[:200]}; allowed: image files, and folders of them")
    if not found:
        where = f"{', '.join(map(str, given[:3]))} hold{'s' if len(given) == 1 else ''} no image" if given else (
            "no image was named")
        raise Refused(f"{where}; allowed: image files ({', '.join(SUFFIXES)}), and folders of them")
    return list(found.values())


def _kind(path: Path) -> str:
    try:
        return "file" if path.is_file() else "folder" if path.is_dir() else ""
    except (OSError, ValueError):  # a name that cannot be one
        return ""


def _below(folder: Path) -> list[Path]:
    """The image files below a folder, in order."""
    def refuse(error: OSError) -> None:
        raise Refused(f"{error.filename or folder} cannot be read ({error.strerror})")

    found = []
    for at, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [each for each in folders if not each.startswith(".") and each != "__MACOSX"]
        found += [Path(at) / each for each in files if not each.startswith(".") and each.lower().endswith(SUFFIXES)]
    return sorted(found)


# --- what is written --------------------------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    """A path as text that can always be written: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def as_csv(found: Sequence[Prediction], pictures: Mapping[str, str] | None = None) -> str:
    """A row an image and class: image, rank, class, probability; attribution where there are `pictures` by image."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability", *(["attribution"] if pictures is not None else [])])
    for each in found:
        for rank, (name, probability) in enumerate(zip(each.classes, each.probabilities, strict=True), 1):
            more = [pictures.get(each.image, "")] if pictures is not None else []
            writer.writerow([each.image, rank, name, f"{probability:.{DIGITS}f}", *more])
    return buffer.getvalue()


def as_json(found: Sequence[Prediction], pictures: Mapping[str, str] | None = None) -> str:
    """A list of objects: image, predictions (class, probability), and attribution where there are `pictures`."""
    rows: list[dict[str, Any]] = []
    for each in found:
        best = [{"class": name, "probability": round(probability, DIGITS)}
                for name, probability in zip(each.classes, each.probabilities, strict=True)]
        more = {"attribution": pictures.get(each.image)} if pictures is not None else {}
        rows.append({"image": each.image, "predictions": best, **more})
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


FORMATS = {"csv": as_csv, "json": as_json}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"--out: {path} cannot be written ({(error.strerror or str(error)).lower()})") from None


def main(words: Sequence[str] | None = None) -> int:
    """The script: exit code 0 all well, 1 some image could not be read, 2 bad input."""
    parser = argparse.ArgumentParser(description="Predict the classes of images.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--top", type=int, default=1, help="how many classes of each image (default: 1)")
    parser.add_argument("--format", choices=list(FORMATS), default="csv")
    parser.add_argument("--out", type=Path, help="a file instead of the screen")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (default: 32)")
    asked = parser.parse_args(words)
    here = Path(__file__).resolve().parent
    try:
        ready = read_config(here)
        for option, value, most in (("--top", asked.top, len(ready.classes)),
                                    ("--batch-size", asked.batch_size, 10000)):
            if not 1 <= value <= most:
                raise Refused(f"{option}: found {value}; allowed: 1 to {most}")
        found, problems = predict(gather(asked.images), ready, onnx_logits(here / ONNX, ready), asked.top,
                                  asked.batch_size)
        text = FORMATS[asked.format](found)
        if asked.out is None:
            print(text, end="")
        else:
            _write(asked.out, text)
    except Refused as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    for path, reason in problems.items():
        print(f"predict: {text_of(path)}: {reason}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
