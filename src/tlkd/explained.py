"""What the explanation stage leaves in a study's folder, written by `explaining`, read back without torch.

`explanations/<who>/` holds `attributions.npz` and `regions.csv` of one network, where `who` is a run's id or
`teacher-<name>`; `explanations/images.npz` and `explanations/masks.json` hold the images that all were explained on.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tlkd import store
from tlkd.arrays import stored
from tlkd.folder import Run, StudyFolder, reading

Floats = NDArray[np.float32]
Outlines = tuple[NDArray[np.float64], ...]  # polygons [point, 2]: x and y as fractions of the fitted square's side


@dataclass(frozen=True, eq=False)
class Explained:
    """One network's attributions.

    `values` are of the true label's output; `pictures` of every class, summed over channels, for a few of the images.
    """

    sample_ids: NDArray[np.str_]  # [image]
    labels: NDArray[np.int64]  # [image]
    predicted: NDArray[np.int64]  # [image]
    values: Floats  # [image, channel, height, width]
    output: Floats  # [image]: the explained output of the image,
    expected: Floats  # [image]: its mean over the background,
    residual: Floats  # [image]: and sum of values + expected - output, nan where the explainer is not additive
    picture_rows: NDArray[np.int64]  # [picture]: numbers of images
    pictures: Floats  # [picture, class, height, width]


@dataclass(frozen=True, eq=False)
class ExplainedImages:
    """The images that a study's networks were explained on, and their foregrounds where masks are there."""

    sample_ids: NDArray[np.str_]  # [image]
    labels: NDArray[np.int64]  # [image]
    images: NDArray[np.uint8]  # [image, side, side, 3], as the data set holds them
    masked: NDArray[np.bool_]  # [image]: whether there is a mask
    masks: NDArray[np.bool_]  # [image, height, width] at the student's input size; all False where there is none
    uncertain: NDArray[np.bool_]  # [image]: whether the mask's author marked it as doubtful
    outlines: Mapping[str, Outlines]  # sample id -> polygons; a mask given as pixels has none
    notes: tuple[str, ...]  # what was left out or mended when the masks were read


KINDS = {"sample_ids": ("U", 1), "labels": ("iu", 1), "predicted": ("iu", 1), "values": ("f", 4), "output": ("f", 1),
         "expected": ("f", 1), "residual": ("f", 1), "picture_rows": ("iu", 1), "pictures": ("f", 4),
         "images": ("u", 4), "masked": ("b", 1), "masks": ("b", 3), "uncertain": ("b", 1)}
"""NumPy's letters for the types, and the number of dimensions, of all that is stored."""


def save(path: Path, explained: Explained) -> None:
    """Write `attributions.npz`, uncompressed: packing would take longer than much of what it holds took to make."""
    np.savez(path, **{each.name: getattr(explained, each.name) for each in fields(explained)})


def save_images(folder: Path, images: ExplainedImages) -> None:
    """Write `images.npz` and `masks.json` into a study's `explanations` folder."""
    arrays = {each.name: getattr(images, each.name) for each in fields(images)
              if each.name not in ("outlines", "notes")}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    store.replace_bytes(folder / "images.npz", packed.getvalue())
    outlines = {name: [polygon.tolist() for polygon in polygons] for name, polygons in images.outlines.items()}
    store.write_json(folder / "masks.json", {"outlines": outlines, "notes": list(images.notes)})


def load(folder: StudyFolder, who: str) -> Explained:
    """A network's attributions. Raises `BadInput` where they cannot be read."""
    return Explained(**arrays_of(place(folder, who) / "attributions.npz", [each.name for each in fields(Explained)]))


def load_images(folder: StudyFolder) -> ExplainedImages:
    """The images that all networks were explained on. Raises `BadInput` where they cannot be read."""
    root = folder.path / "explanations"
    path, beside = root / "images.npz", root / "masks.json"
    with reading(beside):
        said: dict[str, Any] = store.read_json(beside)
        outlines = {name: tuple(np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons)
                    for name, polygons in said["outlines"].items()}
        notes = tuple(map(str, said["notes"]))
    found = arrays_of(path, ("sample_ids", "labels", "images", "masked", "masks", "uncertain"))
    return ExplainedImages(outlines=outlines, notes=notes, **found)


def arrays_of(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """These arrays of an `attributions.npz` or `images.npz`, `sample_ids` among them.

    Raises `BadInput` where they cannot be read, or are of another type or shape than was written.
    """
    with reading(path), stored(path) as arrays:
        found = {name: arrays[name] for name in names}
        for name, array in found.items():
            kinds, dimensions = KINDS[name]
            like = found["picture_rows" if name == "pictures" else "sample_ids"] if name != "picture_rows" else array
            if array.dtype.kind not in kinds or array.ndim != dimensions or len(array) != len(like):
                raise ValueError(f"{name} is {list(array.shape)} of {array.dtype}")
        return found


def regions(folder: StudyFolder, who: str) -> pd.DataFrame:
    """A network's `regions.csv`: a row an image that has a mask."""
    path = place(folder, who) / "regions.csv"
    with reading(path):
        return pd.read_csv(path, dtype={"sample_id": str, "class": str}, keep_default_na=False, na_values=[""])


def place(folder: StudyFolder, who: str) -> Path:
    """Where a network's attributions lie; `who` is a run's id or a teacher's name as `teacher_name` gives it."""
    return folder.path / "explanations" / who


def teacher_name(name: str, seed: int | None = None) -> str:
    """What a teacher is called among the explained networks."""
    return f"teacher-{name}" if seed is None else f"teacher-{name}-{seed}"


def save_current(folder: Path, addresses: Mapping[str, str]) -> None:
    """Write `current.json` into a study's `explanations` folder: what the study explains now, and by which address."""
    store.write_json(folder / "current.json", dict(addresses))


def current(folder: StudyFolder) -> dict[str, str]:
    """The addresses of the explanations that belong to the study as it is, by network."""
    path = folder.path / "explanations" / "current.json"
    if folder.study.explanation is None or not path.is_file():
        return {}
    with reading(path):
        return {str(who): str(address) for who, address in store.read_json(path).items()}


def there(folder: StudyFolder, who: str) -> bool:
    """Whether a network's attributions are there and were made as the study now asks for them.

    A folder appears only when it is whole; one that was made with other images, masks or settings is passed over.
    """
    path, wanted = place(folder, who) / store.MANIFEST, current(folder).get(who)
    if wanted is None or not path.is_file():
        return False
    with reading(path):
        return bool(store.read_json(path)["address"] == wanted)


def explained_runs(folder: StudyFolder) -> list[Run]:
    """The finished runs whose attributions are there, in the plan's order."""
    if not current(folder):  # of thousands of runs even looking takes a while
        return []
    return [run for run in folder.finished() if there(folder, run.run_id)]


def explained_teachers(folder: StudyFolder) -> dict[str, str]:
    """The explained teachers: what each is called among the networks, by its name (of several seeds, the first)."""
    found: dict[str, str] = {}
    for name, teacher in folder.study.used_teachers.items():
        for seed in folder.study.seeds if teacher.per_seed else [None]:
            if there(folder, teacher_name(name, seed)):
                found.setdefault(name, teacher_name(name, seed))
    return found
