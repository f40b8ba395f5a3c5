"""Data sets: split by name, decoded once to uint8 squares in a memory-mapped file, described by a card."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from tlkd import archives, images, seeding, shapes, sources, store
from tlkd.errors import BadInput, expanded
from tlkd.progress import track
from tlkd.specs import Data, Shapes, canonical_hash

VERSION = 1
CHUNK = 1024  # samples: what is submitted, copied and hashed at a time
SPLITS = ("train", "dev", "test")
AFFECTING = {"train_per_class", "test_per_class", "test_fraction", "dev_fraction", "data_seed", "fit", "on_bad_image"}

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A decoded, split data set; rows lie in the order train, dev, test."""

    address: str  # of the decoded images in the cache
    classes: tuple[str, ...]
    ids: tuple[str, ...]  # [sample], stable: the path inside the source, posix
    labels: NDArray[np.int64]  # [sample]
    splits: dict[str, NDArray[np.int64]]  # "train", "dev", "test": row numbers; dev is empty if dev_fraction is 0
    images: NDArray[np.uint8]  # [sample, side, side, 3], memory-mapped, read-only
    content: str  # SHA-256 over pixels, ids, labels, splits and classes
    card: dict[str, Any]


def open_dataset(data: Data, size: int, cache: Path) -> Dataset:
    """Open the data set of a study, decoding it into the cache when it is not there yet.

    `size` is the largest input side, in pixels, that any network of the study needs; images that are all smaller are
    not enlarged. Raises `BadInput` with one line for whatever the person can put right.
    """
    fingerprint, list_samples = _source(data, cache)
    spec = {**data.model_dump(mode="json", include=AFFECTING), "size": size, "pillow": PIL.__version__}
    artifact = store.get(cache, "images", VERSION, spec, {"source": fingerprint},
                         lambda folder: _build(list_samples(), data, size, folder))
    return reopen(data, cache, artifact.address)


def reopen(data: Data, cache: Path, address: str) -> Dataset:
    """Open what `open_dataset` has published at this address, without a look at the source it comes from."""
    artifact = store.Artifact(cache / "images" / address, address)
    stored = store.read_json(artifact.path / "samples.json")
    return Dataset(
        address=address,
        classes=tuple(stored["classes"]), ids=tuple(stored["ids"]), labels=np.array(stored["labels"], np.int64),
        splits={split: np.array(rows, np.int64) for split, rows in stored["splits"].items()},
        images=np.load(artifact.path / "images.npy", mmap_mode="r"), content=stored["content"],
        card={"source": data.source, **stored["card"]})


def open_again(data: Data, size: int, cache: Path, content: str) -> Dataset:
    """Open the data set that a study was run on: out of the cache by its content, or from its source again.

    Raises `BadInput` as `open_dataset` does, and where the source holds other images by now.
    """
    for path in sorted((cache / "images").glob("*/samples.json")):
        try:
            found = store.read_json(path)["content"] == content and reopen(data, cache, path.parent.name)
        except (OSError, ValueError, LookupError, TypeError):  # damaged, or just being removed
            continue
        if found:
            return found
    dataset = open_dataset(data, size, cache)
    if dataset.content != content:
        raise BadInput(f"data.source: {data.source} no longer holds the images that the study was run on")
    return dataset


def originals(data: Data, cache: Path) -> sources.Samples:
    """The samples of a study's source as it holds them, all of them and at their native size.

    An archive is unpacked into the cache when it is not there yet. Raises `BadInput` as `open_dataset` does.
    """
    return _source(data, cache)[1]()


def channel_statistics(dataset: Dataset) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels of the train split, in [0, 1].

    The sums are exact (integers), so no chunk size shows in the result. Raises `BadInput` where a channel is constant.
    """
    rows = dataset.splits["train"]
    total, squares, levels = np.zeros(3, np.uint64), np.zeros(3, np.uint64), np.arange(256, dtype=np.uint64)
    for start in range(0, len(rows), 64):  # few, since counting needs eight bytes a pixel
        pixels = dataset.images[rows[start:start + 64]]
        for channel in range(3):
            counts = np.bincount(pixels[..., channel].ravel(), minlength=256).astype(np.uint64)
            total[channel] += counts @ levels
            squares[channel] += counts @ levels**2
    number = len(rows) * dataset.images.shape[1] ** 2
    # Python's integers: number * squares can pass 2^64 on a large set
    mean = [int(each) / number / 255 for each in total]
    sd = [(number * int(two) - int(one) ** 2) ** 0.5 / number / 255 for one, two in zip(total, squares, strict=True)]
    if min(sd) == 0:
        raise BadInput("data.normalise: dataset; a colour channel of the training images is constant, so it cannot be "
                       "normalised; allowed: model, {mean: [...], sd: [...]}")
    return (mean[0], mean[1], mean[2]), (sd[0], sd[1], sd[2])


def _source(data: Data, cache: Path) -> tuple[str, Callable[[], sources.Samples]]:
    """The source's fingerprint, and how its samples are listed; an archive is unpacked only when they are asked for."""
    kind, _, rest = data.source.partition(":")
    if kind == "mnist5k":
        return sources.mnist5k_file()[1], sources.mnist5k
    if kind == "shapes":
        samples = _painted(data.shapes or Shapes(), data.data_seed)
        return samples.fingerprint, lambda: samples
    if kind == "folder":
        path = expanded(rest, "data.source")
        if path.is_file():
            fingerprint = archives.fingerprint(path, data.source)
            return fingerprint, lambda: _unpacked(path, fingerprint, data.source, cache)
        if not path.is_dir():
            raise BadInput(f"data.source: {data.source}: there is no {path.absolute()}; "
                           "allowed: a folder, .tar, .tar.gz, .tgz, .zip")
        samples = sources.folder(path, data.source)
    else:
        root = expanded(data.root, "data.root") if data.root is not None else cache / "downloads"
        samples = sources.torchvision(rest or "CIFAR10", root, data.source)
    return samples.fingerprint, lambda: samples


def _painted(settings: Shapes, data_seed: int) -> sources.Samples:
    """The generated scenes as a source; each is painted when it is asked for."""
    listed = shapes.samples(settings, data_seed)
    return sources.Samples(classes=shapes.CLASSES, ids=listed.ids, labels=listed.labels, held_out=listed.held_out,
                           fetch=lambda index: shapes.render(listed.ids[index], settings, data_seed),
                           fingerprint=listed.fingerprint, notes=listed.notes, side=settings.size)


def _unpacked(archive: Path, fingerprint: str, name: str, cache: Path) -> sources.Samples:
    def build(folder: Path) -> None:
        (folder / "files").mkdir()
        for _ in track(archives.unpack(archive, folder / "files", name), f"unpack {archive.name}", 100):
            pass

    artifact = store.get(cache, "archives", VERSION, {}, {"archive": fingerprint}, build)
    return sources.folder(artifact.path / "files", name)


# Splits


def choose(samples: sources.Samples, data: Data) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Choose the samples of each split, as ascending numbers into `samples`, and note what a person should know.

    A sample's place in a draw depends on `data_seed`, its class and its id alone. So dev is the same whatever the caps,
    and what a smaller cap keeps, a larger cap keeps too. Raises `BadInput` where a class would be left empty.
    """
    chosen: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    short: list[str] = []
    for label, name in enumerate(samples.classes):
        members = np.flatnonzero(samples.labels == label)
        if samples.held_out is None:
            order = _drawn(samples, members, "test", data.data_seed, name)
            count = _share(len(order), data.test_fraction, "data.test_fraction", "test", name)
            rest, test = order[count:], order[:count]
        else:
            rest = members[~samples.held_out[members]]
            test = _drawn(samples, members[samples.held_out[members]], "test", data.data_seed, name)
        order = _drawn(samples, rest, "dev", data.data_seed, name)
        count = _share(len(order), data.dev_fraction, "data.dev_fraction", "dev", name) if data.dev_fraction else 0
        dev, train = order[:count], _drawn(samples, order[count:], "train", data.data_seed, name)
        for empty in [split for split, rows in (("train", train), ("test", test)) if not len(rows)]:
            raise BadInput(f"data.source: {data.source}: class {name!r} has no image in its {empty} split")
        short += [f"class {name!r} has {len(rows)} {split} images, data.{split}_per_class is {cap}: all are kept"
                  for split, rows, cap in (("train", train, data.train_per_class), ("test", test, data.test_per_class))
                  if cap is not None and len(rows) < cap]
        if data.train_per_class is not None:
            dev = dev[:max(1, _round(data.train_per_class * data.dev_fraction / (1 - data.dev_fraction)))]
        for split, rows in zip(SPLITS, (train[:data.train_per_class], dev, test[:data.test_per_class]), strict=True):
            chosen[split].append(rows)
    return {split: np.sort(np.concatenate(rows)).astype(np.int64) for split, rows in chosen.items()}, short


def _drawn(samples: sources.Samples, members: NDArray[Any], draw: str, seed: int, name: str) -> NDArray[np.int64]:
    """Members in the order of a draw that belongs to each of them: adding one moves none of the others about."""
    ids = [samples.ids[index] for index in members]
    numbers = seeding.uniforms(seeding.keys(ids), 1, draw, seed, name)[:, 0] if ids else np.empty(0)
    return members[np.argsort(numbers, kind="stable")].astype(np.int64)


def _round(number: float) -> int:
    return int(number + 0.5)


def _share(count: int, fraction: float, key: str, split: str, name: str) -> int:
    """How many of a class's `count` images a split takes; each side of the cut must keep at least one."""
    share = _round(count * fraction)
    if 0 < share < count:
        return share
    if count < 2:
        remedy = "add images of this class"
    elif share == 0:
        remedy = f"raise it to at least {np.ceil(500 / count) / 1000:g}, or add images of this class"
    else:
        remedy = f"lower it to at most {np.floor(1000 * (count - 1) / count) / 1000:g}, or add images of this class"
    raise BadInput(f"{key}: {fraction:g} takes {share} of the {count} images of class {name!r} for the {split} split, "
                   f"which leaves {'the ' + split + ' split' if share == 0 else 'train'} without that class; {remedy}"
                   + (", or set it to 0 with selection: test" if split == "dev" else ""))


# Decoding


class _Seen(NamedTuple):
    """What was met on decoding one image; `problem` is None for a good one."""

    problem: str | None
    mode: str = ""
    height: int = 0
    width: int = 0
    turned: bool = False


def _build(samples: sources.Samples, data: Data, size: int, folder: Path) -> dict[str, Any]:
    """Fill a folder with `images.npy` and `samples.json`."""
    chosen, notes = choose(samples, data)
    order = np.concatenate([chosen[split] for split in SPLITS])
    with warnings.catch_warnings():  # a large photo is no cause for alarm, and a bomb is refused
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with ThreadPoolExecutor(max(2, _processors())) as pool:
            side = _stored_side(samples, order, data.fit, size, pool)
            pixels = store.allocate(folder / "decoded.npy", (len(order), side, side, 3), np.uint8)
            seen = _decode(samples, order, data.fit, pixels, pool)
    good = np.array([each.problem is None for each in seen])
    of_split = np.repeat(np.arange(len(SPLITS)), [len(chosen[split]) for split in SPLITS])
    _judge(samples, order, of_split, seen, data)
    _keep(pixels, good, folder)
    kept, of_split = order[good], of_split[good]
    stored = {"classes": list(samples.classes), "ids": [samples.ids[index] for index in kept],
              "labels": samples.labels[kept].tolist(),
              "splits": {split: np.flatnonzero(of_split == number).tolist() for number, split in enumerate(SPLITS)}}
    content = _content(np.load(folder / "images.npy", mmap_mode="r"), stored)
    card = _card(stored, [each for each in seen if each.problem is None], side, data, [*samples.notes, *notes])
    card["skipped"] = [{"id": samples.ids[index], "reason": each.problem}
                       for index, each in zip(order, seen, strict=True) if each.problem is not None]
    store.write_json(folder / "samples.json", {**stored, "content": content, "card": card})
    return {"content": content}


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2


def _in_threads(work: Callable[[int], Result], count: int, pool: ThreadPoolExecutor) -> Iterator[Result]:
    """The results of `work` on 0 to `count` - 1, in order; no more than a chunk of them waits at a time."""
    for start in range(0, count, CHUNK):
        yield from pool.map(work, range(start, min(start + CHUNK, count)))


def _stored_side(samples: sources.Samples, order: NDArray[np.int64], fit: images.Fit, size: int,
                 pool: ThreadPoolExecutor) -> int:
    """The side to store, in pixels: no larger than asked for, nor than the largest image fills."""
    if samples.side is not None:
        return min(size, samples.side)

    def fitted(row: int) -> int:
        try:
            return images.fitted_side(images.native_sides(samples.fetch(int(order[row]))), fit)
        except images.BadImage:
            return 0  # met again on decoding, and reported then

    sides = track(_in_threads(fitted, len(order), pool), "measure images", len(order))
    return min(size, max(sides) or size)


def _decode(samples: sources.Samples, order: NDArray[np.int64], fit: images.Fit, pixels: NDArray[np.uint8],
            pool: ThreadPoolExecutor) -> list[_Seen]:
    """Decode each chosen sample into its row of `pixels`, `[sample, side, side, 3]`."""
    side = pixels.shape[1]

    def one(row: int) -> _Seen:
        try:
            decoded = images.decode(samples.fetch(int(order[row])), side)
        except images.BadImage as bad:
            return _Seen(str(bad))
        pixels[row] = np.asarray(images.fit_image(decoded.image, side, fit))
        return _Seen(None, decoded.mode, decoded.height, decoded.width, decoded.turned)

    return list(track(_in_threads(one, len(order), pool), "decode images", len(order)))


def _judge(samples: sources.Samples, order: NDArray[np.int64], of_split: NDArray[np.int64], seen: Sequence[_Seen],
           data: Data) -> None:
    """Refuse bad images, or the gaps that leaving them out makes."""
    bad = [row for row, each in enumerate(seen) if each.problem is not None]
    if not bad:
        return
    first = f"{samples.ids[order[bad[0]]]}: {seen[bad[0]].problem}"
    count = f"{len(bad)} of {len(seen)} images cannot be used"
    if data.on_bad_image == "fail":
        raise BadInput(f"data.source: {data.source}: {first}; {count}; mend or remove them, "
                       "or leave them out with data.on_bad_image: skip")
    good = np.array([each.problem is None for each in seen])
    for number, split in enumerate(SPLITS):
        there = of_split == number
        left = np.bincount(samples.labels[order[there & good]], minlength=len(samples.classes))
        if there.any() and left.min() == 0:
            raise BadInput(f"data.on_bad_image: skip leaves class {samples.classes[int(left.argmin())]!r} without an "
                           f"image in the {split} split; {count}, the first: {first}; mend them or add others")


def _keep(pixels: NDArray[np.uint8], good: NDArray[np.bool_], folder: Path) -> None:
    """Turn `decoded.npy` into `images.npy` without the rows of bad images."""
    if not good.all():
        rows = np.flatnonzero(good)
        kept = store.allocate(folder / "images.npy", (len(rows), *pixels.shape[1:]), np.uint8)
        for start in range(0, len(rows), CHUNK):
            kept[start:start + CHUNK] = pixels[rows[start:start + CHUNK]]
        (folder / "decoded.npy").unlink()
    else:
        (folder / "decoded.npy").rename(folder / "images.npy")


def content_of(dataset: Dataset) -> str:
    """What `content` must be for the pixels, ids, labels, splits and classes that are there."""
    return _content(dataset.images, {"classes": list(dataset.classes), "ids": list(dataset.ids),
                                     "labels": dataset.labels.tolist(),
                                     "splits": {split: rows.tolist() for split, rows in dataset.splits.items()}})


def _content(pixels: NDArray[np.uint8], stored: dict[str, Any]) -> str:
    """SHA-256 over all that a training can see of a data set."""
    digest = hashlib.sha256(canonical_hash([stored, list(pixels.shape)]).encode())
    for start in range(0, len(pixels), CHUNK):
        digest.update(np.ascontiguousarray(pixels[start:start + CHUNK]).data)
    return digest.hexdigest()


def _card(stored: dict[str, Any], seen: Sequence[_Seen], side: int, data: Data, notes: list[str]) -> dict[str, Any]:
    """The data card: counts per split and class, native sizes in pixels, what was converted, how it is stored."""
    def spread(numbers: list[int]) -> dict[str, float]:
        return {"min": min(numbers), "median": float(np.median(numbers)), "max": max(numbers)}

    labels = np.array(stored["labels"])
    counts = {split: np.bincount(labels[np.array(rows, np.int64)], minlength=len(stored["classes"])).tolist()
              for split, rows in stored["splits"].items()}
    return {
        "counts": {split: dict(zip(stored["classes"], each, strict=True)) for split, each in counts.items()},
        "native_size": {"height": spread([each.height for each in seen]),
                        "width": spread([each.width for each in seen])},
        "converted": dict(sorted(Counter(each.mode for each in seen if each.mode != "RGB").items())),
        "turned": sum(each.turned for each in seen),
        "stored_side": side, "fit": data.fit, "notes": notes,
    }
