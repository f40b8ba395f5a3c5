"""Example images of each difficulty, as `examples` left them in a study's folder; drawn without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tlkd import figures, store
from tlkd.arrays import stored
from tlkd.figures import Drawing, Maker
from tlkd.findings import Findings
from tlkd.folder import StudyFolder, reading
from tlkd.series import in_words

SIDE, GAP, LABEL, FOOT = 92.0, 5.0, 178.0, 15.0  # pixels of the page
FINEST = 96  # pixels along a side: larger images are thinned out, or pages would grow too large
NOISY = 4  # conditions with wrong labels: of more, the first and the last ones are shown
INK, QUIET, RED = "#1c2126", "#5f6b76", "#c8102e"


@dataclass(frozen=True, eq=False)
class Specimens:
    """A few training images as they are and under each distortion, and what noisy conditions call them.

    `of`: clean, condition or robustness; `what` in words. `taken_for`: condition -> by image a class, None: not kept.
    """

    images: NDArray[np.uint8]  # [row, image, side, side, 3]
    of: tuple[str, ...]
    what: tuple[str, ...]
    labels: tuple[str, ...]
    taken_for: dict[str, tuple[str | None, ...]]


def load(folder: StudyFolder) -> Specimens | None:
    """What a study's folder holds; None where it holds none. Raises `BadInput` where a file cannot be read."""
    path, beside = folder.path / "examples.npz", folder.path / "examples.json"
    if not path.is_file() or not beside.is_file():
        return None
    with reading(beside):
        said: dict[str, Any] = store.read_json(beside)
        rows, labels = [(str(row["of"]), str(row["what"])) for row in said["rows"]], tuple(map(str, said["labels"]))
        taken = {str(name): tuple(each) for name, each in said["taken_for"].items()}
    with reading(path), stored(path) as arrays:
        images = arrays["images"]
        if images.ndim != 5 or images.shape[:2] != (len(rows), len(labels)):
            raise ValueError(f"expected {len(rows)} rows of {len(labels)} images, found shape {images.shape}")
    return Specimens(images, tuple(of for of, _ in rows), tuple(what for _, what in rows), labels, taken)


def draw(folder: StudyFolder, found: Findings) -> list[Drawing]:
    """The pictures of a study's difficulties and of its distorted test images, where it has any."""
    specimens = load(folder)
    return [] if specimens is None else [figures.lighter(figures.render(*each)) for each in _makers(
        specimens, found)]


def _makers(specimens: Specimens, found: Findings) -> Iterator[Maker]:
    names = {each.name: in_words(each) for each in found.study.conditions}
    noisy = [name for name in specimens.taken_for if name in names]
    if len(noisy) > NOISY:
        noisy = [*noisy[:NOISY // 2], *noisy[-NOISY // 2:]]
    rows = [number for number, of in enumerate(specimens.of) if of != "robustness"]
    if len(rows) > 1 or noisy:
        yield ("examples", "Training images as they are and under each difficulty",
               partial(sheet, specimens, rows, [(names[name], specimens.taken_for[name]) for name in noisy]))
    rows = [number for number, of in enumerate(specimens.of) if of != "condition"]
    if len(rows) > 1:
        yield ("examples_robustness", "Images under each distortion that students are tested on",
               partial(sheet, specimens, rows, []))


def sheet(specimens: Specimens, rows: Sequence[int],
          noisy: Sequence[tuple[str, Sequence[str | None]]]) -> Figure:
    """A row a distortion, a column an image; below them the clean images with the labels that noise gives them."""
    columns, lines = len(specimens.labels), [*((specimens.what[row], row, None) for row in rows),
                                             *((words, 0, taken) for words, taken in noisy)]
    heights = [SIDE + GAP + (FOOT if taken is not None else 0) for _, _, taken in lines]
    width, height = LABEL + columns * (SIDE + GAP), 20 + sum(heights)
    figure = Figure(figsize=(width / 96, height / 96))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for column, label in enumerate(specimens.labels):
        axes.text(LABEL + column * (SIDE + GAP), 14, _short(label), fontsize=8.5, fontweight="bold", color=INK)
    y = 20.0
    for (words, row, taken), high in zip(lines, heights, strict=True):
        folded = _folded(words)
        for line, text in enumerate(folded):  # one by one: readers' fonts are narrower, and lines would end unevenly
            axes.text(LABEL - 10, y + SIDE / 2 + 13 * (line - (len(folded) - 1) / 2), text, ha="right", va="center",
                      fontsize=8, color=INK)
        for column in range(columns):
            x = LABEL + column * (SIDE + GAP)
            image = _thinned(specimens.images[row, column])
            kept = taken is None or taken[column] is not None
            axes.imshow(image if kept else 255 - (255 - image) // 4, extent=(x, x + SIDE, y + SIDE, y), aspect="auto",
                        interpolation="none")
            if taken is not None:
                called = taken[column]
                wrong = called is not None and called != specimens.labels[column]
                axes.text(x, y + SIDE + 12, "not kept" if called is None else _short(called), fontsize=8,
                          color=RED if wrong else QUIET, fontweight="bold" if wrong else "normal")
        y += high
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def _thinned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image[::-(-len(image) // FINEST), ::-(-len(image) // FINEST)]


def _short(text: str) -> str:
    return text if len(text) <= 13 else f"{text[:12]}\N{HORIZONTAL ELLIPSIS}"


def _folded(text: str, longest: int = 26) -> list[str]:
    """Words in lines that fit beside a picture."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > longest:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
