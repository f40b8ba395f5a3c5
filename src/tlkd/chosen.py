"""Which images of a source a person is asked to outline: a split, some of each class, a list, or a study's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tlkd import datasets, explained, naming, seeding
from tlkd.errors import BadInput, expanded
from tlkd.folder import StudyFolder
from tlkd.sources import Samples
from tlkd.specs import Data

SOURCES = "mnist5k, shapes, cifar10, torchvision:NAME, folder:PATH, or the path of a folder or an archive"
SPLITS = ("test", "train", "all")


@dataclass(frozen=True)
class Choice:
    """What a person asks for; None leaves a choice to the source, or to the study."""

    source: str | None = None
    root: Path | None = None  # where the files of a torchvision source lie
    split: str | None = None
    per_class: int | None = None
    seed: int = 0
    listed: Path | None = None  # a file of image names
    study: Path | None = None


@dataclass(frozen=True, eq=False)
class Chosen:
    """A source, and the images that are to be outlined."""

    data: Data
    samples: Samples
    numbers: NDArray[np.int64]  # [image]: into `samples`, class by class, in the source's order


def choose(choice: Choice, cache: Path) -> Chosen:
    """Find the images. Raises `BadInput` for whatever the person can put right."""
    folder = None if choice.study is None else StudyFolder(choice.study)
    _check(choice)
    data = data_of(choice, folder)
    samples = datasets.originals(data, cache)
    if choice.listed is not None:
        numbers = _listed(choice.listed, samples)
    elif folder is not None:
        if not (folder.path / "explanations" / "images.npz").is_file():
            raise BadInput(f"--study: {folder.path}: no images have been explained there yet; run the study with an "
                           "explanation, or choose images by --per-class")
        numbers = _found(explained.load_images(folder).sample_ids.tolist(), samples, f"--study: {folder.path}")
    else:
        numbers = _of_split(choice.split or "test", samples, data)
    if choice.per_class is not None:
        numbers = drawn(samples, numbers, choice.per_class, choice.seed)
    return Chosen(data, samples, numbers[np.lexsort((numbers, samples.labels[numbers]))])


def data_of(choice: Choice, folder: StudyFolder | None) -> Data:
    """The source as a study names it. Raises `BadInput`."""
    if choice.source is None and folder is None:
        raise BadInput(f"SOURCE: is missing; allowed: {SOURCES}; or --study DIR, whose source is taken then")
    if choice.source is None and folder is not None:
        return folder.study.data
    source, seed = choice.source or "", 0 if folder is None else folder.study.data.data_seed
    root = None if choice.root is None else str(choice.root)
    for name in (source, f"folder:{source}"):
        if name == source or (source and expanded(source, "SOURCE").exists()):
            try:
                return Data(source=name, root=root, data_seed=seed, dev_fraction=0.0)
            except ValidationError:
                continue
    raise BadInput(f"SOURCE: found {source!r}; there is no such file or folder; allowed: {SOURCES}")


def drawn(samples: Samples, numbers: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.int64]:
    """So many images of each class, drawn by name: what a smaller number takes, a larger one takes too."""
    if not len(numbers):
        return numbers
    chance = seeding.uniforms(seeding.keys([samples.ids[each] for each in numbers]), 1, "outlined", seed)[:, 0]
    labels = samples.labels[numbers]
    parts = [numbers[labels == label][np.argsort(chance[labels == label], kind="stable")][:per_class]
             for label in range(len(samples.classes))]
    return np.concatenate(parts)


def _check(choice: Choice) -> None:
    """Refuse options that speak against each other."""
    if choice.split is not None and choice.split not in SPLITS:
        raise BadInput(f"--split: found {choice.split!r}; allowed: {', '.join(SPLITS)}")
    for other, there in (("--study", choice.study is not None), ("--list", choice.listed is not None)):
        if choice.split is not None and there:
            raise BadInput(f"--split: found {choice.split!r} beside {other}, which says by itself which images; "
                           "leave one of them out")
    if choice.study is not None and choice.listed is not None:
        raise BadInput("--list: stands beside --study; leave one of them out")


def _of_split(split: str, samples: Samples, data: Data) -> NDArray[np.int64]:
    """The images of a split, which is the study's own where the source has none: `data_seed` draws it."""
    if split == "all":
        return np.arange(len(samples.ids), dtype=np.int64)
    own = samples.held_out
    chosen = datasets.choose(samples, data)[0]["test"] if own is None else np.flatnonzero(own)
    others = np.setdiff1d(np.arange(len(samples.ids)), chosen)
    return (chosen if split == "test" else others).astype(np.int64)


def _listed(path: Path, samples: Samples) -> NDArray[np.int64]:
    """The images that a file names, one a line."""
    try:
        lines = expanded(str(path), "--list").read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise BadInput(f"--list: {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise BadInput(f"--list: {path}: is no text in UTF-8; allowed: one image name a line") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise BadInput(f"--list: {path}: names no image; allowed: one image name a line")
    return _found(names, samples, f"--list: {path}")


def _found(wanted: Sequence[str], samples: Samples, where: str) -> NDArray[np.int64]:
    """The samples of these names. Raises `BadInput` for a name that means none, or several."""
    names, numbers = naming.Names(samples.ids), dict[int, None]()
    for name in wanted:
        found, _ = names.find(name)
        if not found:
            raise BadInput(f"{where}: the source has no image {name!r}; it has {samples.ids[0]!r}, for example")
        if len(found) > 1:
            raise BadInput(f"{where}: {name!r} means {len(found)} images of the source, {samples.ids[found[0]]} and "
                           f"{samples.ids[found[1]]} among them; put the folder in front of it")
        numbers[found[0]] = None
    return np.array(list(numbers), np.int64)
