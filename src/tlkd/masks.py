"""The foregrounds of a study's test images, `data.masks`: matched to the data set, laid onto squares as its images are.

A foreground is a set of pixels of the upright original, whatever the format: polygons are filled at the size they were
drawn at. From there each pixel of the square takes the nearest one.
"""

import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkd import annotations, datasets, images, sources, wording
from tlkd.annotations import Annotated, BadAnnotation, Region
from tlkd.datasets import Dataset
from tlkd.errors import BadInput, expanded
from tlkd.images import Upright
from tlkd.naming import Names, class_key
from tlkd.rasters import Mask, Polygon, axes, fill, lay
from tlkd.specs import Data, Shapes, canonical_hash

STROKES = 0.5  # a digit's grey is the share of the pixel that the pen covered: more than half, as in `exact`
LARGEST_FILE = 2**30  # bytes of JSON
FORMS = ("allowed: strokes (mnist5k), exact (shapes), a COCO, VIA or labelme JSON file, a folder of PNG masks or of "
         "labelme's JSON files")
NOTES = {  # in the order in which they are told: what is counted, and what became of it
    "unmasked": ("test image", "left without a mask, not being annotated"),
    "elsewhere": ("annotated image", "left out, not being in the test split of this study"),
    "unknown": ("name", "left out, unknown to the data source"),
    "by_end": ("name", "matched by the end alone, after folders that the data source does not have"),
    "other": ("annotation", "left out, the category being another class than the image's"),
    "foreign": ("annotation", "taken as foreground, the category being no class here"),
    "nameless": ("annotation", "taken as foreground without a category"),
    "clipped": ("polygon", "clipped, reaching beyond the image"),
    "turned": ("mask", "turned along with its image, having been made before EXIF turned it"),
    "scaled": ("mask", "scaled, having been made at another size than its image's"),
    "empty": ("image", "left out, no pixel of it being foreground"),
    "cut": ("image", "left out, no foreground being left of it by data.fit"),
    "full": ("image", "left out, all of it being foreground"),
}


@dataclass(frozen=True, eq=False)
class Masks:
    """The foregrounds of test images, at a network's input size."""

    rows: NDArray[np.int64]  # [image]: rows of the Dataset, of its test split, ascending: those with a usable mask
    masks: NDArray[np.bool_]  # [image, size, size]: the foreground, laid onto the square as `data.fit` lays images
    uncertain: NDArray[np.bool_]  # [image]: whether the author of the mask doubted any part of it
    # [image]: polygons [point, 2] (x, y) as fractions of the square's side, beyond 0 and 1 where `crop` cut them off;
    # none where any part of the mask was given as pixels
    outlines: tuple[tuple[Polygon, ...], ...]
    notes: tuple[str, ...]  # one line for each kind of thing left out or mended
    content: str  # SHA-256 over the images' ids, masks and uncertain


class Drawn(NamedTuple):
    """A foreground at its own size, `[height, width]`, and the polygons that it was made from."""

    mask: Mask
    polygons: tuple[Polygon, ...] = ()
    uncertain: bool = False


class Notes:
    """What was met, by its kind in `NOTES`; each time with an example."""

    def __init__(self) -> None:
        self.met: dict[str, list[str]] = {kind: [] for kind in NOTES}

    def add(self, kind: str, *examples: str) -> None:
        """Count one thing an example."""
        self.met[kind] += examples

    def lines(self) -> tuple[str, ...]:
        """One line a kind."""
        return tuple(f"{wording.count(len(met), NOTES[kind][0])} {'was' if len(met) == 1 else 'were'} {NOTES[kind][1]} "
                     f"({_some(met)})" for kind, met in self.met.items() if met)


def open_masks(data: Data, dataset: Dataset, size: int, cache: Path) -> Masks:
    """The masks of a study's test images at an input size of `size` pixels.

    Raises `BadInput` with one line for whatever the person can put right.
    """
    if data.masks is None:
        raise ValueError("data.masks is null")
    samples, notes = datasets.originals(data, cache), Notes()
    kind, _, rest = data.masks.partition(":")
    if kind == "strokes":
        where, drawn = data.masks, _strokes(samples, dataset, float(rest or STROKES))
    elif kind == "exact":
        where, drawn = data.masks, _exact(data, dataset)
    else:
        path = expanded(rest if kind == "folder" and rest else data.masks, "data.masks")
        where, drawn = str(path), _annotated(path, samples, dataset, notes)
    try:
        return _laid(drawn, data, dataset, size, notes)
    except BadAnnotation as bad:
        raise BadInput(f"data.masks: {where}: {bad}") from None


class _Laid(NamedTuple):
    """A foreground on the square, `[size, size]`, and its outlines as fractions of the side."""

    mask: Mask
    outlines: tuple[Polygon, ...]
    uncertain: bool


def _laid(drawn: Iterator[tuple[int, Drawn]], data: Data, dataset: Dataset, size: int, notes: Notes) -> Masks:
    """Lay foregrounds, each with its row of the data set, onto squares, and leave out what says nothing."""
    side = dataset.images.shape[1]
    kept: dict[int, _Laid] = {}
    for row, (mask, polygons, uncertain) in drawn:  # one by one: originals may be large
        laid = lay(mask, side, size, data.fit)
        if mask.all() or laid.all():  # the foreground's share of anything would be 1
            notes.add("full", dataset.ids[row])
        elif not laid.any():
            notes.add("cut" if mask.any() else "empty", dataset.ids[row])
        else:
            first, extent, start, length = np.array(axes(mask.shape[1], mask.shape[0], side, data.fit), float).T
            outlines = tuple(((polygon - first) * length / extent + start) / side for polygon in polygons)
            kept[row] = _Laid(laid, outlines, uncertain)
    if not kept:
        raise BadAnnotation(f"no test image of this study has a usable mask; {'; '.join(notes.lines())}")
    rows = sorted(kept)
    masks, doubted = np.stack([kept[row].mask for row in rows]), [kept[row].uncertain for row in rows]
    digest = hashlib.sha256(canonical_hash([[dataset.ids[row] for row in rows], size, doubted]).encode())
    digest.update(np.packbits(masks).tobytes())
    return Masks(np.array(rows, np.int64), masks, np.array(doubted), tuple(kept[row].outlines for row in rows),
                 notes.lines(), digest.hexdigest())


# What sources know of themselves


def _strokes(samples: sources.Samples, dataset: Dataset, threshold: float) -> Iterator[tuple[int, Drawn]]:
    numbers = {name: number for number, name in enumerate(samples.ids)}
    for row in dataset.splits["test"]:
        digit = images.decode(samples.fetch(numbers[dataset.ids[row]])).image
        yield int(row), Drawn(np.asarray(digit.convert("L")) / 255 > threshold)


def _exact(data: Data, dataset: Dataset) -> Iterator[tuple[int, Drawn]]:
    from tlkd import shapes

    settings = data.shapes or Shapes()
    for row in dataset.splits["test"]:
        yield int(row), Drawn(shapes.mask(dataset.ids[row], settings, data.data_seed))


# Files


def read(path: Path) -> tuple[Annotated, ...]:
    """What a file or a folder says of images; PNG masks are opened when they are needed. Raises `BadAnnotation`."""
    try:
        if not path.is_dir():
            return _parsed(path)
        files = sorted(each for each in path.rglob("*") if each.is_file() and
                       not any(part.startswith((".", "__MACOSX")) for part in each.relative_to(path).parts))
        jsons, pngs = ([each for each in files if each.suffix.lower() == suffix] for suffix in (".json", ".png"))
        if jsons and pngs:
            raise BadAnnotation(f"it holds both PNG and JSON files ({len(pngs)} and {len(jsons)}); "
                                "put the masks, or labelme's files, into a folder of their own")
        if not jsons and not pngs:
            raise BadAnnotation("there is no PNG or JSON file in this folder; save masks as PNG")
        for name in [each.name for each in [*jsons, *pngs] if not str(each.relative_to(path)).isprintable()]:
            raise BadAnnotation(f"the file name {name!r} is not plain text; rename it")
        found = [_inside(each, path) for each in jsons] + [(_painted(each, path),) for each in pngs]
        return tuple(entry for entries in found for entry in entries)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = f"there is no {path.absolute()}" if missing else f"it cannot be read ({error.strerror})"
        raise BadAnnotation(f"{why}; {FORMS}") from None


def _parsed(path: Path) -> tuple[Annotated, ...]:
    if (status := path.stat()) and not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device never ends
        raise BadAnnotation(f"it is no plain file; {FORMS}")
    if (length := status.st_size) > LARGEST_FILE:
        raise BadAnnotation(f"it is {wording.size(length)} long, {wording.size(LARGEST_FILE)} are allowed; "
                            "keep the annotations of test images only")
    return annotations.parse(path.read_bytes())


def _inside(path: Path, folder: Path) -> tuple[Annotated, ...]:
    try:
        return _parsed(path)
    except BadAnnotation as bad:
        raise BadAnnotation(f"{path.relative_to(folder).as_posix()}: {bad}") from None


def _painted(path: Path, folder: Path) -> Annotated:
    name = path.relative_to(folder).as_posix()
    return Annotated(name, name, None, (Region(name, "", False, pixels=lambda: _mask_of(path, name)),))


def _mask_of(path: Path, name: str) -> Mask:
    """A PNG's foreground: pixels that are not transparent where it has an alpha channel in use, not black otherwise.

    Of a palette, every entry but the first is foreground, whatever its colour. Raises `BadAnnotation`.
    """
    try:
        images.decode(path)  # for its reasons: what it refuses is no mask either
    except images.BadImage as bad:
        raise BadAnnotation(f"{name}: {bad}") from None
    with Image.open(path) as image:
        values = np.asarray(image)
        alpha = np.asarray(image.getchannel("A")) if "A" in image.getbands() else None
    if alpha is not None:
        if alpha.min() < 255:
            return np.asarray(alpha > 0, np.bool_)
        values = values[..., :-1]
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0, np.bool_)


def matched(entries: Sequence[Annotated], samples: sources.Samples, notes: Notes) -> dict[int, Annotated]:
    """The entry of each annotated sample, by the sample's number. Raises `BadAnnotation` where two may be meant."""
    names, known = Names(samples.ids), dict[int, Annotated]()
    for entry in entries:
        found, cut = names.find(entry.file_name)
        if len(found) > 1 and entry.length is not None:  # VIA tells files of one name apart by their length
            found = [each for each in found if _length(samples.fetch(each)) == entry.length] or found
        if len(found) > 1:
            raise BadAnnotation(f"{entry.name}: the data source has {len(found)} images of this name, "
                                f"{_some([samples.ids[each] for each in found], 2)}; put the folder in front of it")
        if not found:
            notes.add("unknown", entry.file_name)
            continue
        if (before := known.setdefault(found[0], entry)) is not entry:
            raise BadAnnotation(f"{before.name} and {entry.name} are both {samples.ids[found[0]]}; "
                                "put their annotations under one, or remove one")
        if cut:
            notes.add("by_end", entry.file_name)
    return known


def _length(source: Path | Image.Image) -> int | None:
    return source.stat().st_size if isinstance(source, Path) and source.is_file() else None


# From annotations to foregrounds


def _annotated(path: Path, samples: sources.Samples, dataset: Dataset,
               notes: Notes) -> Iterator[tuple[int, Drawn]]:
    """The foregrounds of test images, each with its row of the data set."""
    entries = read(path)
    used = [entry for entry in entries if entry.regions]
    if not used:
        raise BadAnnotation(f"none of its {wording.count(len(entries), 'image')} is annotated; draw outlines first")
    known = matched(used, samples, notes)
    if not known:
        raise BadAnnotation(f"none of its {wording.count(len(used), 'annotated image')} is in the data source: it has "
                            f"{used[0].file_name!r}, the source {samples.ids[0]!r}; name images as the source does")
    rows = {dataset.ids[row]: int(row) for row in dataset.splits["test"]}
    notes.add("elsewhere", *(samples.ids[number] for number in known if samples.ids[number] not in rows))
    annotated = {samples.ids[number] for number in known}
    notes.add("unmasked", *(name for name in rows if name not in annotated))
    for number, entry in known.items():
        name = samples.ids[number]
        label = samples.classes[samples.labels[number]]
        if name in rows and (regions := of_class(entry, name, label, samples.classes, notes)):
            native = _native(samples.fetch(number), name)
            yield rows[name], mended(united(entry, regions, native, notes), entry, native, notes)


def of_class(entry: Annotated, name: str, label: str, classes: Sequence[str], notes: Notes) -> list[Region]:
    """The regions of the image `name` that are of its class, as far as their categories say."""
    own, others = class_key(label), {class_key(each) for each in classes} - {class_key(label)}
    regions = []
    for region in entry.regions:
        if region.category is not None and class_key(region.category) in others:
            notes.add("other", f"{region.category!r} on {name}")
            continue
        if region.category is None:
            notes.add("nameless", region.name)
        elif region.category and class_key(region.category) != own:
            notes.add("foreign", f"{region.category!r} on {name}")
        regions.append(region)
    return regions


def _native(source: Path | Image.Image, name: str) -> Upright:
    try:
        return images.upright(source)
    except images.BadImage as bad:  # the data set has decoded it before
        raise BadInput(f"data.masks: the image {name} cannot be read any more ({bad})") from None


def united(entry: Annotated, regions: Sequence[Region], native: Upright, notes: Notes) -> Drawn:
    """The union of regions at the size that they were annotated at."""
    painted = [region.pixels for region in regions if region.pixels is not None]
    mask = None if entry.size is None else np.zeros(entry.size[::-1], np.bool_)
    for pixels in painted:  # one after the other: each may be as large as the largest photograph
        piece = pixels()
        mask = np.zeros_like(piece) if mask is None else mask
        if piece.shape != mask.shape:
            one, other = (f"{each.shape[1]} x {each.shape[0]}" for each in (mask, piece))
            raise BadAnnotation(f"{entry.name}: its masks have {one} and {other} pixels; give them one size")
        mask |= piece
    mask = np.zeros(native[1::-1], np.bool_) if mask is None else mask
    height, width = mask.shape
    polygons = [(region, polygon) for region in regions for polygon in region.polygons]
    for region, polygon in polygons:
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        if (high <= 0).any() or (low >= (width, height)).any():
            raise BadAnnotation(f"{region.name}: a polygon from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}) "
                                f"lies outside its image of {width} x {height} pixels; move or remove it")
        if (low < 0).any() or (high > (width, height)).any():
            notes.add("clipped", region.name)
        fill(mask, polygon)
    return Drawn(mask, () if painted else tuple(polygon for _, polygon in polygons),
                  any(region.uncertain for region in regions))


def mended(drawn: Drawn, entry: Annotated, native: Upright, notes: Notes) -> Drawn:
    """A foreground in the pixels of the upright original, from those that it was annotated in."""
    height, width = drawn.mask.shape
    if (width, height) == native[:2]:
        return drawn
    if native.turn is not None and (height, width) == native[:2]:
        notes.add("turned", entry.file_name)
        return _turned(drawn, native.turn)
    # The same proportions, but for what rounding takes: a pixel of the smaller one's side.
    if abs(width * native.height - height * native.width) > max(width, height, *native[:2]):
        raise BadAnnotation(f"{entry.name}: it was annotated at {width} x {height} pixels, the image has "
                            f"{native.width} x {native.height}; annotate the image itself")
    notes.add("scaled", entry.file_name)
    scale = np.array([native.width / width, native.height / height])
    grown = Image.fromarray(drawn.mask).resize(native[:2], Image.Resampling.NEAREST)
    return drawn._replace(mask=np.asarray(grown), polygons=tuple(polygon * scale for polygon in drawn.polygons))


def _turned(drawn: Drawn, turn: Image.Transpose) -> Drawn:
    """A foreground turned as EXIF turns an image whose sides it swaps."""
    height, width = drawn.mask.shape
    swapped = [polygon[:, ::-1] for polygon in drawn.polygons]  # the transpose; the others mirror it besides
    far = {Image.Transpose.TRANSPOSE: (0, 0), Image.Transpose.ROTATE_270: (height, 0),
           Image.Transpose.TRANSVERSE: (height, width), Image.Transpose.ROTATE_90: (0, width)}[turn]
    mirrored = tuple(np.where(far, np.array(far) - polygon, polygon) for polygon in swapped)
    return drawn._replace(mask=np.asarray(Image.fromarray(drawn.mask).transpose(turn)), polygons=mirrored)


def _some(items: Sequence[str], count: int = 3) -> str:
    """The first few."""
    return ", ".join(items[:count]) + (f" and {len(items) - count:,} more" if len(items) > count else "")
