"""Attributions and pictures of one network on any images: what `tlkd explain` leaves in its folder."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkd import (
    __version__,
    explainers,
    figures,
    pictures,
    progress,
    store,
    wording,
)
from tlkd.attribution import Attributions, Output, deep_shap_of_heads
from tlkd.errors import BadInput, RunFailed, nearest
from tlkd.images import Fit
from tlkd.program import Program, trace
from tlkd.showcase import Ints, Pixels, background, gather, inputs, laid, names_of
from tlkd.subjects import Subject, Wanted, find, kind, open_subject

RECORD = "explanation.json"
MOST_VALUES = 2**28  # attributions that are held at a time: 1 GiB
TOGETHER = 4  # images explained between two steps of the progress bar
TILES, COLUMNS = 14, 5  # classes that are drawn at most; tiles side by side, the image's own among them
TILE, EDGE = 240, 6  # pixels of a page: a tile's side, the sheet's edge


@dataclass(frozen=True)
class Options:
    """What a person asks for; None leaves a choice to the network or to its study."""

    images: tuple[Path, ...]
    background: str | None = None
    background_size: int = 20
    seed: int | None = None
    weights: str | None = None
    input_size: int | None = None
    fit: str | None = None
    explainer: str = "deep_shap"
    output: str = "logit"
    classes: str = "winner"
    out: Path | None = None


@dataclass(frozen=True)
class Drawn:
    """One picture that was written, and the probabilities of the classes it explains."""

    path: Path
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Gallery:
    """What was written, and where."""

    path: Path
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True, eq=False)
class Result:
    """All that is known of the explained images."""

    names: tuple[str, ...]  # [image]
    classes: Ints  # [image, target]
    probabilities: NDArray[np.float64]  # [image, target]
    attributions: Attributions  # [image, target, ...]


def explain(text: str, options: Options, device: torch.device) -> Gallery:
    """Explain the network that `text` names on images, and write attributions, a table and a picture an image.

    Raises `BadInput` for whatever the person can put right, before anything is written, and `RunFailed` where the
    attributions are not what they should be.
    """
    _check(options)
    wanted = find(text)
    out = options.out if options.out is not None else Path("out") / "explanations" / wanted.name
    old = written_before(out)
    paths = gather(options.images, out)
    names = names_of(paths)
    taken = [name for name in names if f"{name}.png" not in old and (out / f"{name}.png").exists()]
    if taken:
        raise BadInput(f"{out / taken[0]}.png: is there already, and `tlkd explain` did not write it; "
                       "choose another --out")
    if device.type == "cuda":  # float32 means float32: TensorFloat-32 keeps ten bits of the fraction
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    subject = open_subject(wanted, options.weights, options.input_size, cast(Fit | None, options.fit), device)
    asked = asked_classes(options.classes, subject.classes)
    _check_size(len(paths), asked, subject)
    squares = np.stack([laid(path, subject, str(path)) for path in
                        progress.track(paths, "decode images", len(paths))])
    references, told = background(options.background, options.background_size, options.seed, wanted, subject, paths)
    for note in (*subject.notes, told):
        progress.say(note)
    store.check_writable(out / RECORD if out.is_dir() else out, "--out")  # last of all, since it makes folders
    result = attribute(subject, options, names, inputs(subject, squares, device), inputs(subject, references, device),
                       asked)
    return write(out, old, wanted, options, subject, paths, squares, result, told)


def _check(options: Options) -> None:
    """Refuse words that are not allowed."""
    for option, found, allowed in (("--explainer", options.explainer, list(explainers.EXPLAINERS)),
                                   ("--output", options.output, list(get_args(Output))),
                                   ("--fit", options.fit, [None, *get_args(Fit)])):
        if found not in allowed:
            words = [word for word in allowed if word is not None]
            raise BadInput(f"{option}: found {found!r}{nearest(str(found), words)}; allowed: {', '.join(words)}")


def _check_size(count: int, asked: int | tuple[int, ...], subject: Subject) -> None:
    targets = asked if isinstance(asked, int) else len(asked)
    size = count * targets * 3 * subject.network.input_size**2
    if size > MOST_VALUES:
        raise BadInput(f"--images and --classes: {count} images and {targets} classes of each make "
                       f"{size * 4 / 2**30:.1f} GiB of attributions; allowed: {MOST_VALUES * 4 / 2**30:.0f} GiB at a "
                       "time; name fewer")


# --- attributions -----------------------------------------------------------------------------------------------------


def asked_classes(text: str, names: Sequence[str]) -> int | tuple[int, ...]:
    """Which classes are asked for: so many of the most probable ones of each image, or these."""
    word, colon, number = text.strip().partition(":")
    if text.strip() == "winner":
        return 1
    if text.strip() == "all":
        return tuple(range(len(names)))
    if word == "top" and colon and text not in names:
        if not number.strip().isdecimal() or not 1 <= int(number) <= len(names):
            raise BadInput(f"--classes: found {text!r}; allowed: top:1 to top:{len(names)}")
        return int(number)
    parts = [text] if text in names else [part.strip() for part in text.split(",")]
    return tuple(dict.fromkeys(_class(part, names) for part in parts))


def _class(text: str, names: Sequence[str]) -> int:
    """A class by its name, by its name in other capitals, or by its number."""
    for fold in (str, str.casefold):
        found = [number for number, name in enumerate(names) if fold(name) == fold(text)]
        if len(found) == 1:
            return found[0]
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    some = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:3])}, ... ({len(names)} names)"
    raise BadInput(f"--classes: found {text!r}, which is no class of this network{nearest(text, list(names))}; "
                   f"allowed: winner, top:K, all, numbers from 0 to {len(names) - 1}, and names: {some}")


def attribute(subject: Subject, options: Options, names: Sequence[str], images: Tensor, references: Tensor,
              asked: int | tuple[int, ...]) -> Result:
    """The attributions of the classes asked for, most probable first where they were not named."""
    network = subject.network
    with torch.no_grad():
        logits = torch.cat([network(part) for part in torch.split(images, 32)]).double()
    probabilities = logits.softmax(1)
    if isinstance(asked, int):
        classes = logits.argsort(dim=1, descending=True, stable=True)[:, :asked]
    else:
        classes = torch.tensor(asked, device=logits.device).expand(len(images), -1)
    program = None
    if options.explainer in ("deep_shap", "deep_lift"):
        progress.say(f"reading {network.name}, which takes some seconds")
        program = trace(network, tuple(images.shape[1:]), network.name)
    parts = []
    with progress.bar(options.explainer, len(images)) as advance:
        for first in range(0, len(images), TOGETHER):
            chunk = slice(first, first + TOGETHER)
            try:
                parts.append(_explained(network, program, options, images[chunk], references, classes[chunk]))
            except RunFailed as error:
                raise RunFailed(f"{', '.join(names[chunk])}: {error}") from error
            except BadInput as error:
                raise BadInput(str(error).replace("explanation.explainer:", "--explainer:")) from error
            for _ in names[chunk]:
                advance()
    found = Attributions(*(torch.cat([getattr(part, name).cpu() for part in parts])
                           for name in ("values", "output", "expected", "residual")))
    return Result(tuple(names), classes.cpu().numpy(), probabilities.gather(1, classes).cpu().numpy(), found)


def _explained(network: nn.Module, program: Program | None, options: Options, images: Tensor, references: Tensor,
               classes: Tensor) -> Attributions:
    """Attributions `[image, target, channel, height, width]` of the classes `[image, target]`."""
    columns: list[Any] = list(classes.unbind(1))
    output = cast(Output, options.output)
    if program is None:
        found = [explainers.explain(options.explainer, network, images, references, column, output)
                 for column in columns]
    else:  # traced once, where `explainers.explain` would trace the network anew for every few images
        if options.explainer == "deep_lift":
            references = references.mean(0, keepdim=True)
        found = deep_shap_of_heads(network, [None] * len(columns), images, references, columns, output,
                                   program=program)
    return Attributions(*(torch.stack([getattr(each, name) for each in found], 1)
                          for name in ("values", "output", "expected", "residual")))


# --- what is written --------------------------------------------------------------------------------------------------


def written_before(out: Path) -> frozenset[str]:
    """The names of the files that an earlier call wrote there. Raises `BadInput` for a folder of somebody else's."""
    if kind(out) == "file" or (out.is_symlink() and not out.exists()):
        raise BadInput(f"{out}: is a file; choose another --out")
    try:
        if kind(out) is None or not any(out.iterdir()):
            return frozenset()
    except OSError as error:
        raise BadInput(f"{out}: cannot be read ({error.strerror}); choose another --out") from None
    try:
        record = store.read_json(out / RECORD)
        if record["made_by"] == "tlkd explain":
            return frozenset(map(str, record["files"]))
    except (OSError, ValueError, LookupError, TypeError):  # none, or not one that we wrote
        pass
    raise BadInput(f"{out}: is not empty and was not made by `tlkd explain`; choose another --out")


def write(out: Path, old: frozenset[str], wanted: Wanted, options: Options, subject: Subject, paths: Sequence[Path],
          squares: Pixels, result: Result, told: str) -> Gallery:
    """Write everything into `out`, and remove what an earlier call left there and this one does not replace."""
    files = [*(f"{name}.png" for name in result.names), "attributions.npz", "attributions.csv"]
    record = {
        "made_by": "tlkd explain", "versions": {"tlkd": __version__, "torch": torch.__version__},
        "network": wanted.place,
        "weights": subject.network.origin, "input_size": subject.network.input_size, "mean": subject.mean,
        "sd": subject.sd, "fit": subject.fit, "explainer": options.explainer, "output": options.output,
        "classes": options.classes, "background": told, "seed": options.seed,
        "additive": explainers.EXPLAINERS[options.explainer].additive,
        "images": {name: str(path) for name, path in zip(result.names, paths, strict=True)}}
    with store.guard_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        store.write_json(out / RECORD, {**record, "files": sorted({*old, *files})})  # a stopped call's are ours too
        store.replace_bytes(out / "attributions.npz", _npz(subject, squares, result))
        store.replace_text(out / "attributions.csv", table(subject, result).to_csv(index=False))
        drawn = []
        with progress.bar("pictures", len(paths)) as advance:
            for row, name in enumerate(result.names):
                drawing = figures.render(name, "", lambda: picture(subject, options, squares, result, row, told))  # noqa: B023
                store.replace_bytes(out / f"{name}.png", drawing.png)
                drawn.append(Drawn(out / f"{name}.png", {
                    subject.classes[label]: float(probability) for label, probability in
                    zip(result.classes[row], result.probabilities[row], strict=True)}))
                advance()
        for left in old - set(files):
            (out / Path(left).name).unlink(missing_ok=True)
        store.write_json(out / RECORD, {**record, "files": files})
    return Gallery(out, tuple(drawn))


def _npz(subject: Subject, squares: Pixels, result: Result) -> bytes:
    found, buffer = result.attributions, io.BytesIO()
    np.savez_compressed(
        buffer, names=np.array(result.names), class_indices=result.classes,
        class_names=np.array(subject.classes)[result.classes], probabilities=result.probabilities,
        values=found.values.float().numpy(), outputs=found.output.double().numpy(),
        expected=found.expected.double().numpy(), residuals=found.residual.double().numpy(), images=squares)
    return buffer.getvalue()


def table(subject: Subject, result: Result) -> pd.DataFrame:
    """A row an image and class; the residual is empty where the explainer is not additive."""
    found = result.attributions
    return pd.DataFrame([
        {"image": name, "class": subject.classes[label], "probability": result.probabilities[row, column],
         **{key: float(values[row, column]) for key, values in (
             ("output", found.output), ("expected", found.expected), ("residual", found.residual))}}
        for row, name in enumerate(result.names) for column, label in enumerate(result.classes[row])])


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(subject: Subject, options: Options, squares: Pixels, result: Result, row: int, told: str) -> Figure:
    """An image as the network sees it, beside what speaks for and against each of the classes, most of them likely."""
    likely = np.argsort(-result.probabilities[row], kind="stable")[:TILES]
    shown = np.sort(likely)  # in the order that was asked for
    values = result.attributions.values[row, torch.from_numpy(shown)].double().sum(1).numpy()
    side = values.shape[-1]
    finest = math.ceil(side / math.ceil(side / pictures.FINEST))  # blocks of one size, or the map would have a pattern
    maps = [pictures.coarse(each, finest) for each in values]
    limit = pictures.limit_of(maps)
    rows = math.ceil((len(shown) + 1) / COLUMNS)
    columns = math.ceil((len(shown) + 1) / rows)
    step, head = TILE + 8, 44
    sheet = pictures.Sheet(EDGE + columns * step + pictures.BAR, rows * (TILE + head) + 26 + 14 * (columns == 2))
    sheet.say(_short(result.names[row], 32), EDGE, head - 22, fontsize=10, fontweight="bold")
    sheet.say(f"{side} x {side} pixels", EDGE, head - 8, fontsize=7, color=pictures.QUIET)
    sheet.tile(squares[row], EDGE, head, TILE)
    for place, (column, each) in enumerate(zip(shown, maps, strict=True), 1):
        x, y = EDGE + place % columns * step, head + place // columns * (TILE + head)
        sheet.say(_short(subject.classes[result.classes[row, column]], 32), x, y - 22, fontsize=10, fontweight="bold")
        sheet.say(_numbers(options, result, row, int(column)), x, y - 8, fontsize=7, color=pictures.QUIET)
        sheet.tile(pictures.heat(each, limit, squares[row]), x, y, TILE)
    sheet.bar(limit, EDGE + columns * step + 2, head, TILE)
    left = len(result.classes[row]) - len(shown)
    lines = [f"{method(options.explainer)} of the {options.output}: red speaks for a class, blue against it",
             told.partition(";")[0] + (f"; {left} less likely classes are not drawn" if left else "")]
    foot = rows * (TILE + head) + 16
    for number, line in enumerate(lines if columns == 2 else ["; ".join(lines)]):  # a narrow sheet has two lines
        sheet.say(_short(line, 62 * columns), EDGE, foot + 14 * number, fontsize=7.5, color=pictures.QUIET)
    return sheet.figure


def method(explainer: str) -> str:
    """What readers call an explainer: how its own sentence starts."""
    return re.split(r"[:,]| with | of | by ", explainers.EXPLAINERS[explainer].sentence)[0]


def _numbers(options: Options, result: Result, row: int, column: int) -> str:
    found, said = result.attributions, f"probability {result.probabilities[row, column]:.3f}"
    before, after = (float(each[row, column]) for each in (found.expected, found.output))
    if options.output == "logit":
        said += f", logit {round(after, 2) + 0.0:.2f}"
    digits = 2 if options.output == "logit" else 3
    return f"{said}, background {round(before, digits) + 0.0:.{digits}f}".replace("-", wording.MINUS)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest - 1]}\N{HORIZONTAL ELLIPSIS}"
