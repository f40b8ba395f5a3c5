"""What the page of `tlkd annotate` asks for, and the answers: images, outlines, suggestions; it knows of no server."""

import functools
import io
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tlkd import coco, images, suggestion, wording
from tlkd.coco import Entry
from tlkd.outlines import ChangedOutside, Outlines, Outside, Stale

LARGEST_VIEW = 2048  # pixels of the longer side of what is sent; outlines are in the image's own pixels all the same
THUMBNAIL = 64  # pixels
AT_ONCE = 2  # suggestions
MOST_POLYGONS, MOST_POINTS = 500, 5_000  # of an image, and of one polygon

Coordinate = Annotated[float, Field(allow_inf_nan=False)]
Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]


class Body(BaseModel):
    """What the page sends; anything else is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Change(Body):
    """An image's new entry, and the revision it was made from."""

    revision: Annotated[int, Field(ge=0, le=2**53)]
    state: Literal["open", "outlined", "no_foreground", "skipped"]
    polygons: Annotated[list[Annotated[list[Point], Field(min_length=3, max_length=MOST_POINTS)]],
                        Field(max_length=MOST_POLYGONS)]
    uncertain: bool = False


class Wish(Body):
    """What a suggestion starts from."""

    box: Annotated[list[Coordinate], Field(min_length=4, max_length=4)] | None = None


class Refused(Exception):
    """A request that cannot be met: a status of HTTP, and the reason in words for the person."""

    def __init__(self, status: int, reason: str, **more: Any) -> None:
        super().__init__(reason)
        self.status, self.body = status, {"reason": reason, **more}


@dataclass(frozen=True)
class Place:
    """What the page says of where it is."""

    file: str
    source: str
    command: str  # that uses the file


class Desk:
    """The answers to the page's requests, from several threads at once; raise `Refused`, `BadImage` and `BadInput`."""

    def __init__(self, outlines: Outlines, place: Place) -> None:
        self.outlines, self.place = outlines, place
        self._suggesting = threading.Semaphore(AT_ONCE)
        self._pixels = functools.lru_cache(maxsize=8)(self._decoded)

    def index(self, text: str) -> int:
        """The image that an address names: by its number alone, so that no path comes from outside."""
        if not (_is_number(text) and int(text) < len(self.outlines)):
            raise Refused(404, f"there is no image {text[:20]!r}; allowed: 0 to {len(self.outlines) - 1}")
        return int(text)

    def overview(self) -> dict[str, Any]:
        """All images, and how far each has come."""
        outlines = self.outlines
        return {"file": self.place.file, "source": self.place.source, "command": self.place.command,
                "clock": outlines.clock, "outside": _told(outlines.outside()),
                "images": [{"name": outlines.name(index), "label": outlines.label(index), **self._brief(index)}
                           for index in range(len(outlines))]}

    def changes(self, since: str) -> dict[str, Any]:
        """What has changed since the clock stood at `since`."""
        if not _is_number(since):
            raise Refused(422, "since: allowed: a number")
        clock, changed = self.outlines.changes(int(since))
        return {"clock": clock, "images": {index: self._brief(index) for index in changed},
                "outside": _told(self.outlines.outside())}

    def entry(self, index: int) -> dict[str, Any]:
        """One image: its size and its outlines."""
        width, height = self.outlines.size(index)
        return {"width": width, "height": height, **_whole(self.outlines.entry(index))}

    def save(self, index: int, change: Change) -> dict[str, Any]:
        """Take an image's new entry."""
        size, polygons = self.outlines.size(index), coco.rounded(change.polygons)
        if bool(polygons) != (change.state == "outlined"):
            raise Refused(422, f"state: {change.state!r} with {wording.count(len(polygons), 'outline')}; "
                               "allowed: outlined with one or more, another without any")
        for polygon in polygons:
            _check_place(polygon, size)
        try:
            saved = self.outlines.save(index, Entry(change.state, polygons, change.uncertain, change.revision))
        except Stale as stale:
            raise Refused(409, str(stale), kind="stale", current=_whole(stale.current),
                          merged=_whole(stale.merged)) from None
        except ChangedOutside as changed:
            raise Refused(409, str(changed), kind="outside", outside=_told(changed.outside),
                          current=_whole(changed.entry)) from None
        return _whole(saved)

    def suggest(self, index: int, wish: Wish) -> dict[str, Any]:
        """Outlines that GrabCut proposes."""
        pixels = self._pixels(index)
        height, width = pixels.shape[:2]
        box = None
        if wish.box is not None:
            left, top, right, bottom = wish.box
            box = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
            if box[2] - box[0] < 1 or box[3] - box[1] < 1:
                raise Refused(422, f"box: {wish.box} spans less than a pixel of {width} x {height}")
        with self._suggesting:
            return {"polygons": [each.tolist() for each in suggestion.suggest(pixels, box)]}

    def reload(self) -> dict[str, Any]:
        """Take the file as something else has left it."""
        self.outlines.reload()
        return self.overview()

    def picture(self, index: int) -> bytes:
        """An image as PNG, upright, no larger than `LARGEST_VIEW`."""
        return _png(self._pixels(index), LARGEST_VIEW)

    def thumbnail(self, index: int) -> bytes:
        """An image as a small PNG."""
        return _png(np.asarray(images.decode(self.outlines.original(index), THUMBNAIL).image), THUMBNAIL)

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        return np.asarray(images.decode(self.outlines.original(index)).image)

    def _brief(self, index: int) -> dict[str, Any]:
        entry = self.outlines.entry(index)
        return {"state": entry.state, "revision": entry.revision}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16


def _check_place(polygon: coco.Points, size: tuple[int, int]) -> None:
    """Refuse a polygon that no part of the image lies under, or that reaches far out of it."""
    for name, values, length in zip("xy", zip(*polygon, strict=True), size, strict=True):
        low, high = min(values), max(values)
        if high <= 0 or low >= length or low < -length or high > 2 * length:
            raise Refused(422, f"polygons: one reaches from {name} = {low:g} to {high:g}; the image from 0 to {length}")


def _whole(entry: Entry) -> dict[str, Any]:
    return {"state": entry.state, "polygons": entry.polygons, "uncertain": entry.uncertain, "revision": entry.revision}


def _told(outside: Outside | None) -> dict[str, Any] | None:
    return None if outside is None else {"what": outside.what, "kept": outside.kept and str(outside.kept)}


def _png(pixels: NDArray[np.uint8], largest: int) -> bytes:
    image, packed = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((largest, largest))
    image.save(packed, "PNG", compress_level=1)
    return packed.getvalue()
