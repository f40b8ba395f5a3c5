"""A COCO file that is changed one image at a time; what else it holds stays as it is.

What COCO has no word for stands in a field of our own beside an image: `"tlkd": {"state": "no_foreground"}`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from tlkd import __version__, annotations
from tlkd.annotations import Annotated, BadAnnotation
from tlkd.naming import class_key

State = Literal["open", "outlined", "no_foreground", "skipped"]
Points = tuple[tuple[float, float], ...]  # of one polygon: x and y in pixels
Raw = dict[str, Any]  # an item of a COCO file, as JSON has it

STATES: tuple[State, ...] = get_args(State)
DIGITS = 2  # of a coordinate: a hundredth of a pixel


@dataclass(frozen=True)
class Entry:
    """What is known of one image's foreground."""

    state: State = "open"
    polygons: tuple[Points, ...] = ()  # none unless `state` is outlined
    uncertain: bool = False
    revision: int = 0  # grows by one with every change


@dataclass(frozen=True)
class CocoFile:
    """The content of a COCO file; never changed, but replaced."""

    head: Raw = field(default_factory=lambda: {"info": {
        "description": "Foregrounds drawn with `tlkd annotate`", "version": f"tlkd {__version__}"}})
    images: Mapping[str, Raw] = field(default_factory=dict)  # by id
    annotations: Mapping[str, tuple[Raw, ...]] = field(default_factory=dict)  # of each image, by its id
    categories: tuple[Raw, ...] = ()

    def state(self, key: str) -> State | None:
        """What the file says of an image beside its polygons; None where it says nothing."""
        own = self.images[key].get("tlkd")
        said = own.get("state") if isinstance(own, dict) else None
        return said if said in STATES else None

    def having(self, key: str | None, name: str, size: tuple[int, int], label: str,
               entry: Entry) -> tuple["CocoFile", str]:
        """The file with what is now known of an image of this name, size and class, and the image's id in it.

        `key` is its id so far, None where the file does not have it.
        """
        if key is None:
            number = 1 + max((int(each) for each in self.images if each.isdecimal()), default=0)
            key, image = str(number), {"id": number, "file_name": name}
        else:
            image = self.images[key]
        image = {**image, "width": size[0], "height": size[1], "tlkd": {"state": entry.state}}
        category, categories = self._category(label)
        annotated = self._annotations(key, image["id"], category, entry) if entry.polygons else ()
        return replace(self, images={**self.images, key: image}, categories=categories,
                       annotations={**self.annotations, key: annotated}), key

    def _category(self, label: str) -> tuple[Any, tuple[Raw, ...]]:
        for each in self.categories:
            if class_key(str(each.get("name"))) == class_key(label):
                return each["id"], self.categories
        taken = [each["id"] for each in self.categories if type(each["id"]) is int]
        number = 1 + max(taken, default=0)
        return number, (*self.categories, {"id": number, "name": label})

    def _annotations(self, key: str, image_id: Any, category: Any, entry: Entry) -> tuple[Raw, ...]:
        """One annotation a polygon; one that was there before keeps its id and whatever others wrote into it."""
        before = {json.dumps(each.get("segmentation")): each for each in self.annotations.get(key, ())}
        number = max((each["id"] for listed in self.annotations.values() for each in listed
                      if type(each.get("id")) is int), default=0)
        made = []
        for polygon in entry.polygons:
            rings = [[coordinate for point in polygon for coordinate in point]]
            old = before.pop(json.dumps(rings), None)
            number += old is None
            attributes = old.get("attributes") if old else None
            made.append({"id": number, "iscrowd": 0, **(old or {}), "image_id": image_id, "category_id": category,
                         "segmentation": rings, "bbox": _box(polygon), "area": _area(polygon),
                         "attributes": {**(attributes if isinstance(attributes, dict) else {}),
                                        "uncertain": entry.uncertain}})
        return tuple(made)

    def text(self) -> str:
        """The file as JSON, one image and one annotation a line: a change shows as such in a version control."""
        parts = [f"{json.dumps(key)}: {_dumped(value)}" for key, value in self.head.items()]
        flat = [each for listed in self.annotations.values() for each in listed]
        for key, items in (("images", list(self.images.values())), ("annotations", flat),
                           ("categories", list(self.categories))):
            lines = ",\n  ".join(_dumped(each) for each in items)
            parts.append(f"{json.dumps(key)}: [\n  {lines}\n ]" if items else f"{json.dumps(key)}: []")
        return "{\n " + ",\n ".join(parts) + "\n}\n"


def parse(content: bytes) -> tuple[CocoFile, dict[str, Annotated]]:
    """A COCO file, and what it says of each image by the image's id. Raises `BadAnnotation` for anything else."""
    annotated = annotations.parse(content)
    found = json.loads(content)
    if not isinstance(found.get("images"), list):
        raise BadAnnotation("it is no COCO file; open it with --open and write to another file with --out")
    images = {_key(each["id"]): each for each in found["images"]}
    listed: dict[str, list[Raw]] = {key: [] for key in images}
    for each in found["annotations"]:
        listed[_key(each["image_id"])].append(each)
    head = {key: value for key, value in found.items() if key not in ("images", "annotations", "categories")}
    file = CocoFile(head, images, {key: tuple(each) for key, each in listed.items()},
                    tuple(found.get("categories") or ()))
    return file, dict(zip(images, annotated, strict=True))


def rounded(polygons: Sequence[Sequence[Sequence[float]]]) -> tuple[Points, ...]:
    """Polygons with the digits that are written, so that what is read again is the same."""
    return tuple(tuple((round(float(x), DIGITS), round(float(y), DIGITS)) for x, y in polygon) for polygon in polygons)


def merged(base: Entry, theirs: Entry, ours: Entry) -> Entry:
    """What two have made of `base`, each without knowing of the other: a polygon of either stays.

    A polygon that both have changed is there twice. The revision is theirs.
    """
    kept = [each for each in theirs.polygons if each in ours.polygons or each not in base.polygons]
    kept += [each for each in ours.polygons if each not in base.polygons and each not in theirs.polygons]
    state = ours.state if ours.state != base.state else theirs.state
    if kept or state == "outlined":
        state = "outlined" if kept else "open"
    uncertain = ours.uncertain if ours.uncertain != base.uncertain else theirs.uncertain
    return Entry(state, tuple(kept), uncertain, theirs.revision)


def corners(polygon: Points) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """The edges of a polygon, each as its two ends."""
    yield from zip(polygon, (*polygon[1:], polygon[0]), strict=True)


def _box(polygon: Points) -> list[float]:
    x, y = zip(*polygon, strict=True)
    return [min(x), min(y), round(max(x) - min(x), DIGITS), round(max(y) - min(y), DIGITS)]


def _area(polygon: Points) -> float:
    twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in corners(polygon))
    return round(abs(twice) / 2, DIGITS)


def _key(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _dumped(value: Any) -> str:
    return json.dumps(value)
