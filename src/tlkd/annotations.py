"""Foregrounds as annotation files tell them: COCO's JSON, the VGG Image Annotator's own, labelme's."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlkd.rasters import Mask, Polygon, counts_of, unroll
from tlkd.wording import count

MOST_PIXELS = 178_956_970  # in one mask: as many as Pillow decodes before it speaks of a decompression bomb
FARTHEST = 1e9  # pixels from an image's corner: beyond lie slips of the pen, and overflows
ROUND = 256  # points on a circle or an ellipse: with a radius of 1,000 pixels it is cut by less than 0.1 pixel
CATEGORY_KEYS = ("class", "category", "label", "name", "type", "object")  # what people call it in VIA, likeliest first
ALLOWED = ("allowed: COCO (images, annotations, categories), the VGG Image Annotator's project or annotations "
           "(filename, regions), labelme's (imagePath, shapes)")


class BadAnnotation(ValueError):
    """What a file says and cannot be used; its text is the reason, without the file's name."""


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image's foreground: the union of polygons, or pixels."""

    name: str  # as an error calls it
    category: str | None  # None where its author named none; empty where the format has no place for it
    uncertain: bool  # its author doubted it
    polygons: tuple[Polygon, ...] = ()
    pixels: Callable[[], Mask] | None = None  # raises BadAnnotation


@dataclass(frozen=True, eq=False)
class Annotated:
    """What a file says of one image."""

    file_name: str  # as the file has it
    name: str  # as an error calls it
    size: tuple[int, int] | None  # width and height that the annotation was made at; None where it does not say
    regions: tuple[Region, ...]
    length: int | None = None  # of the image's file, in bytes, where it says so


def parse(content: bytes) -> tuple[Annotated, ...]:
    """What a JSON file says of its images, in its own order. Raises `BadAnnotation`."""
    try:
        found = json.loads(content)
    except RecursionError:
        raise BadAnnotation(f"its JSON is nested too deeply; {ALLOWED}") from None
    except ValueError as error:
        raise BadAnnotation(f"it is not JSON ({' '.join(str(error).split())[:100]}); {ALLOWED}") from None
    if not isinstance(found, dict):
        raise BadAnnotation(f"it holds {_shown(found)}; {ALLOWED}")
    if "_via_img_metadata" in found:
        return _via(_mapping(found["_via_img_metadata"], "_via_img_metadata"))
    if "annotations" in found or "images" in found:
        return _coco(found)
    if "shapes" in found or "imagePath" in found:
        return (_labelme(found),)
    if any(isinstance(each, dict) and {"filename", "regions"} & each.keys() for each in found.values()):
        return _via(found)
    raise BadAnnotation(f"it is no annotation file that is known here, its keys being {_some(found)}; {ALLOWED}")


# COCO


def _coco(found: Mapping[str, Any]) -> tuple[Annotated, ...]:
    categories = _categories(found.get("categories"))
    images: dict[str, Mapping[str, Any]] = {}
    names: dict[str, str] = {}
    for number, each in enumerate(_list(found, "images", "the file")):
        image = _mapping(each, f"images[{number}]")
        key = _key(image, "id", f"images[{number}]")
        file_name = _text(image, "file_name", f"image {key}")
        if key in images:
            raise BadAnnotation(f"the image id {key} is there twice, for {names[key]!r} and for {file_name!r}; "
                                "give each image an id of its own")
        images[key], names[key] = image, file_name
    sizes = {key: _size(image.get("width"), image.get("height"), f"image {key} ({names[key]})")
             for key, image in images.items()}
    regions: dict[str, list[Region]] = {key: [] for key in images}
    for number, each in enumerate(_list(found, "annotations", "the file")):
        annotation = _mapping(each, f"annotations[{number}]")
        what = f"annotation {_key(annotation, 'id', f'annotations[{number}]')}"
        key = _key(annotation, "image_id", what)
        if key not in images:
            raise BadAnnotation(f"{what}: its image_id {key} is the id of no image in the file")
        what = f"{what} of {names[key]}"
        polygons, pixels = _segmentation(annotation.get("segmentation"), sizes[key], what)
        attributes = annotation.get("attributes")
        uncertain = isinstance(attributes, dict) and _says_yes(attributes.get("uncertain"))
        regions[key].append(Region(what, _category(annotation, categories, what), uncertain, polygons, pixels))
    return tuple(Annotated(names[key], f"image {key} ({names[key]})", sizes[key], tuple(regions[key]))
                 for key in images)


def _categories(found: Any) -> dict[str, str]:
    """The names of the categories by their id; a file without any is allowed."""
    names: dict[str, str] = {}
    for number, each in enumerate([] if found is None else _list({"categories": found}, "categories", "the file")):
        category = _mapping(each, f"categories[{number}]")
        key = _key(category, "id", f"categories[{number}]")
        name = _text(category, "name", f"category {key}")
        if names.setdefault(key, name) != name:
            raise BadAnnotation(f"the category id {key} is there twice, for {names[key]!r} and for {name!r}")
    return names


def _category(annotation: Mapping[str, Any], categories: Mapping[str, str], what: str) -> str | None:
    if annotation.get("category_id") is None or not categories:  # VIA writes null where it knows no classes
        return None
    key = _key(annotation, "category_id", what)
    if key not in categories:
        raise BadAnnotation(f"{what}: its category_id {key} is not among the file's categories; "
                            f"allowed: {_some(categories)}, null")
    return categories[key]


def _segmentation(found: Any, size: tuple[int, int] | None,
                  what: str) -> tuple[tuple[Polygon, ...], Callable[[], Mask] | None]:
    if isinstance(found, dict):
        return (), _runs(found, size, what)
    if not isinstance(found, list) or not found:
        given = "missing" if found is None else "empty" if found == [] else _shown(found)
        raise BadAnnotation(f"{what}: its segmentation is {given}; draw its outline (a box is none), or remove it")
    # A ring that stands there without its list around it is what early versions of VIA wrote.
    rings = found if isinstance(found[0], list) else [found]
    return tuple(_flat(ring, what) for ring in rings), None


def _runs(found: Mapping[str, Any], declared: tuple[int, int] | None, what: str) -> Callable[[], Mask]:
    """Run lengths, compressed (a text) or not (a list), checked against their own size and the image's."""
    size = _list(found, "size", what)
    if len(size) != 2 or (measured := _size(size[1], size[0], what)) is None:
        raise BadAnnotation(f"{what}: its size is {_shown(size)}; allowed: [height, width] in pixels")
    width, height = measured
    if declared is not None and declared != measured:
        raise BadAnnotation(f"{what}: its runs are for {width} x {height} pixels, its image is said to have "
                            f"{declared[0]} x {declared[1]}; export it again")
    counts = found.get("counts")
    if isinstance(counts, str):
        try:
            counts = counts_of(counts)
        except ValueError as error:
            raise BadAnnotation(f"{what}: its counts: {error}") from None
    if not isinstance(counts, list) or not all(type(each) is int and abs(each) <= MOST_PIXELS
                                            for each in counts):
        raise BadAnnotation(f"{what}: its counts are {_shown(counts)}; "
                            "allowed: whole numbers, or COCO's compressed text")
    if sum(counts) != width * height or min(counts) < 0:
        raise BadAnnotation(f"{what}: its counts are of {sum(counts)} pixels (the least is {min(counts, default=0)}), "
                            f"its size of {width} x {height} has {width * height}; export it again")
    return lambda: unroll(counts, width, height)


# The VGG Image Annotator, and labelme


def _via(found: Mapping[str, Any]) -> tuple[Annotated, ...]:
    return tuple(_via_image(_mapping(each, repr(key)), key) for key, each in found.items())


def _via_image(entry: Mapping[str, Any], key: str) -> Annotated:
    file_name = _text(entry, "filename", repr(key))
    listed = entry.get("regions")
    if isinstance(listed, dict):  # before version 2
        listed = list(listed.values())
    regions = []
    for number, each in enumerate(_list({"regions": listed}, "regions", repr(key))):
        what = f"region {number} of {file_name}"
        region = _mapping(each, what)
        said = region.get("region_attributes")
        attributes = {str(name).casefold(): value for name, value in said.items()} if isinstance(said, dict) else {}
        named = (_chosen(attributes.get(name)) for name in CATEGORY_KEYS)
        regions.append(Region(what, next(filter(None, named), None), _says_yes(attributes.get("uncertain")),
                              (_via_polygon(_mapping(region.get("shape_attributes"), what), what),)))
    length = entry.get("size")
    return Annotated(file_name, file_name, None, tuple(regions), length if type(length) is int else None)


def _via_polygon(shape: Mapping[str, Any], what: str) -> Polygon:
    kind = shape.get("name")

    def numbers(*names: str) -> list[float]:
        return [_number(shape.get(name, 0 if name == "theta" else None), f"{what}: its {name}") for name in names]

    if kind in ("polygon", "polyline"):
        x, y = (_list(shape, name, what) for name in ("all_points_x", "all_points_y"))
        if len(x) != len(y):
            raise BadAnnotation(f"{what}: it has {len(x)} values of x and {len(y)} of y")
        return _flat([each for point in zip(x, y, strict=True) for each in point], what)
    if kind == "rect":
        x0, y0, width, height = numbers("x", "y", "width", "height")
        return _box(x0, y0, x0 + width, y0 + height)
    if kind == "circle":
        x0, y0, radius = numbers("cx", "cy", "r")
        return _ellipse(x0, y0, radius, radius)
    if kind == "ellipse":
        return _ellipse(*numbers("cx", "cy", "rx", "ry", "theta"))
    raise BadAnnotation(f"{what}: its shape is {_shown(kind)}; allowed: polygon, polyline, rect, circle, ellipse")


def _labelme(found: Mapping[str, Any]) -> Annotated:
    file_name = _text(found, "imagePath", "the file")
    regions = []
    for number, each in enumerate(_list(found, "shapes", "the file")):
        what = f"shape {number} of {file_name}"
        shape = _mapping(each, what)
        flags = shape.get("flags")
        regions.append(Region(what, _chosen(shape.get("label")), isinstance(flags, dict) and
                              _says_yes(flags.get("uncertain")), (_labelme_polygon(shape, what),)))
    return Annotated(file_name, file_name, _size(found.get("imageWidth"), found.get("imageHeight"), file_name),
                     tuple(regions))


def _labelme_polygon(shape: Mapping[str, Any], what: str) -> Polygon:
    kind = shape.get("shape_type") or "polygon"
    points = _list(shape, "points", what)
    if not all(isinstance(each, list) and len(each) == 2 for each in points):
        raise BadAnnotation(f"{what}: its points are {_shown(points)}; allowed: [x, y] each")
    if kind == "polygon":
        return _flat([each for point in points for each in point], what)
    if kind not in ("rectangle", "circle"):
        raise BadAnnotation(f"{what}: its shape_type is {_shown(kind)}; allowed: polygon, rectangle, circle")
    if len(points) != 2:
        raise BadAnnotation(f"{what}: a {kind} of {len(points)} points; it needs 2")
    (x0, y0), (x1, y1) = ([_number(each, what) for each in point] for point in points)
    return _box(x0, y0, x1, y1) if kind == "rectangle" else _ellipse(x0, y0, *[float(np.hypot(x1 - x0, y1 - y0))] * 2)


def _box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _ellipse(x0: float, y0: float, across: float, along: float, turn: float = 0.0) -> Polygon:
    """An ellipse with its two radii in pixels, turned clockwise (y runs down) by an angle in radians."""
    angle = np.arange(ROUND) * (2 * np.pi / ROUND)
    x, y = across * np.cos(angle), along * np.sin(angle)
    return np.stack([x0 + x * np.cos(turn) - y * np.sin(turn), y0 + x * np.sin(turn) + y * np.cos(turn)], axis=1)


# Values as the file has them


def _flat(found: Any, what: str) -> Polygon:
    """A polygon from x, y, x, y, ..."""
    if not isinstance(found, list):
        raise BadAnnotation(f"{what}: a polygon is {_shown(found)}; allowed: a list of x, y, x, y, ...")
    numbers = [_number(each, f"{what}: a coordinate") for each in found]
    if len(numbers) % 2:
        raise BadAnnotation(f"{what}: a polygon of {len(numbers)} coordinates, an odd number; each point has x and y")
    if len(numbers) < 6:
        raise BadAnnotation(f"{what}: a polygon of {count(len(numbers) // 2, 'point')}; draw 3 or more, or remove it")
    return np.array(numbers, np.float64).reshape(-1, 2)


def _number(found: Any, what: str) -> float:
    if type(found) not in (int, float) or not abs(found) <= FARTHEST:
        raise BadAnnotation(f"{what} is {_shown(found)}; allowed: a number of pixels")
    return float(found)


def _size(width: Any, height: Any, what: str) -> tuple[int, int] | None:
    """Width and height in pixels; None where neither is told."""
    if width is None and height is None:
        return None
    for name, value in (("width", width), ("height", height)):
        if type(value) not in (int, float) or not 1 <= value <= MOST_PIXELS or value != int(value):
            raise BadAnnotation(f"{what}: its {name} is {_shown(value)}; allowed: a whole number of pixels")
    if width * height > MOST_PIXELS:
        raise BadAnnotation(f"{what}: {width} x {height} pixels are more than the {MOST_PIXELS:,} that are allowed")
    return int(width), int(height)


def _key(found: Mapping[str, Any], name: str, what: str) -> str:
    """An id as text: tools disagree whether it is the number 1 or the text \"1\"."""
    value = found.get(name)
    if type(value) is float and value.is_integer():
        value = int(value)
    if not (type(value) is int or (isinstance(value, str) and value.isprintable())):
        raise BadAnnotation(f"{what}: its {name} is {'missing' if value is None else _shown(value)}; "
                            "allowed: a number or a text")
    return str(value)


def _text(found: Mapping[str, Any], name: str, what: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) < 1000:
        raise BadAnnotation(f"{what}: its {name} is {'missing' if value is None else _shown(value)}; allowed: a text")
    return value


def _list(found: Mapping[str, Any], name: str, what: str) -> list[Any]:
    value = found.get(name)
    if not isinstance(value, list):
        raise BadAnnotation(f"{what}: its {name} is {'missing' if value is None else _shown(value)}; allowed: a list")
    return value


def _mapping(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise BadAnnotation(f"{what} is {'missing' if found is None else _shown(found)}; allowed: keys and values")
    return found


def _chosen(value: Any) -> str | None:
    """The one word of an attribute: a text, or the box that is ticked."""
    if isinstance(value, dict):
        ticked = [str(name) for name, state in value.items() if state is True]
        return ticked[0] if len(ticked) == 1 else None
    return (value.strip() or None) if isinstance(value, str) else None


def _says_yes(value: Any) -> bool:
    """Whether an attribute is set: ticked, or a text other than a no."""
    if isinstance(value, dict):
        return any(bool(state) and _says_yes(str(name)) for name, state in value.items())
    return value.strip().casefold() not in ("", "0", "false", "no") if isinstance(value, str) else bool(value)


def _shown(value: Any) -> str:
    """A value on one short line."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'a mapping'} of {len(value)}"
    text = str(value) if isinstance(value, float) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _some(names: Mapping[str, Any]) -> str:
    """The first few keys."""
    return ", ".join(_shown(name) for name in list(names)[:5]) + (", ..." if len(names) > 5 else "")

