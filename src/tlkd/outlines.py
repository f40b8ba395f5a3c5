"""The foregrounds that a person draws: one COCO file, written whole after every change, of which nothing is lost.

Several pages may change it at a time, each one image; a change is made to a revision, and a change to a revision that
has passed is refused together with what a merge would give. What others write into the file meanwhile is noticed
before every write and never overwritten: what is drawn then goes into a file beside it.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkd import coco, images, masks, store, suggestion, wording
from tlkd.annotations import Annotated, BadAnnotation
from tlkd.coco import CocoFile, Entry
from tlkd.errors import BadInput
from tlkd.sources import Samples

REMEMBERED = 200  # revisions of an image that a merge may start from


class Stale(Exception):
    """A change was made to a revision that has passed."""

    def __init__(self, current: Entry, merged: Entry) -> None:
        super().__init__("this image was changed meanwhile in another tab")
        self.current, self.merged = current, merged


@dataclass(frozen=True)
class Outside:
    """The file was changed, or removed, by something else."""

    what: Literal["changed", "gone"]
    kept: Path | None  # where lies what was drawn since, with all the rest


class ChangedOutside(Exception):
    """A change was kept in a file beside the one that something else has written to."""

    def __init__(self, entry: Entry, outside: Outside) -> None:
        super().__init__("the file was changed by something else")
        self.entry, self.outside = entry, outside


class Outlines:
    """The foregrounds of some of a source's images, and the file that holds them. Its methods may be called at once."""

    def __init__(self, path: Path, samples: Samples, numbers: NDArray[np.int64], opened: Sequence[Path] = ()) -> None:
        """Go on with the file at `path` if there is one, and with `opened` where that says nothing of an image.

        `numbers` `[image]` are those of the images into `samples`. Raises `BadInput`.
        """
        self.path, self.samples, self.numbers = path, samples, numbers
        self.notes: list[str] = []
        self.clock = 0  # grows with every change of any image
        self._lock = threading.RLock()
        self._file = CocoFile()
        self._digest: str | None = None  # of the file as it was last read or written; None where there is none
        self._keys: dict[int, str] = {}  # an image's id in the file
        self._entries = [Entry()] * len(numbers)
        self._history: list[dict[int, Entry]] = [{} for _ in numbers]
        self._changed = [0] * len(numbers)  # the clock at an image's last change
        self._kept: Path | None = None
        self._sizes: dict[int, tuple[int, int]] = {}
        self._seen: tuple[int, ...] | None = None
        if path.exists():
            self._adopt(*self._read())
        brought = [self._bring(each) for each in opened]
        if any(brought):
            self._write(self.path, self._file)

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """What the source calls an image."""
        return self.samples.ids[int(self.numbers[index])]

    def label(self, index: int) -> str:
        """An image's class."""
        return self.samples.classes[int(self.samples.labels[int(self.numbers[index])])]

    def original(self, index: int) -> Path | Image.Image:
        """An image as its source has it."""
        return self.samples.fetch(int(self.numbers[index]))

    def size(self, index: int) -> tuple[int, int]:
        """An image's upright width and height in pixels. Raises `images.BadImage`."""
        if index not in self._sizes:  # remembered: what is drawn on an image that vanishes is kept all the same
            self._sizes[index] = images.upright(self.original(index))[:2]
        return self._sizes[index]

    def entry(self, index: int) -> Entry:
        """What is known of an image."""
        return self._entries[index]

    def counts(self) -> Counter[str]:
        """How many images there are in each state."""
        return Counter(each.state for each in self._entries)

    def changes(self, since: int) -> tuple[int, list[int]]:
        """The clock, and the images that have changed since it stood at `since`."""
        with self._lock:
            return self.clock, [index for index, changed in enumerate(self._changed) if changed > since]

    def outside(self) -> Outside | None:
        """Whether something else has changed the file, as far as its size and time tell."""
        with self._lock:
            signature = self._signature()
            if signature == self._seen:
                return None
            what = self._look()
            if what is None:  # written anew with the same content
                self._seen = signature
                return None
            return Outside(what, self._kept)

    def save(self, index: int, entry: Entry) -> Entry:
        """Take an image's new entry, made from the revision that it names, and write the file.

        Raises `Stale`, `ChangedOutside` (the entry is kept then), `images.BadImage` for an image that has vanished, and
        `BadInput` where the disk refuses (nothing is changed then).
        """
        size = self.size(index)
        with self._lock:
            current = self._entries[index]
            if entry.revision != current.revision:
                base = self._history[index].get(entry.revision, Entry())
                raise Stale(current, coco.merged(base, current, entry))
            new = replace(entry, revision=current.revision + 1)
            file, key = self._file.having(self._keys.get(index), self.name(index), size, self.label(index), new)
            what = self._look()
            if what is not None:
                self._kept = self._kept or _beside(self.path)
            self._write(self._kept if what is not None and self._kept is not None else self.path, file)
            self._file, self._keys[index] = file, key
            self._note(index, new)
            if what is not None:
                raise ChangedOutside(new, Outside(what, self._kept))
            return new

    def reload(self) -> None:
        """Take the file as something else has left it; what was drawn since lies in the file beside it.

        A file that is gone is written again instead. Raises `BadInput` for a file that cannot be used.
        """
        with self._lock:
            if self._look() == "gone":
                self._write(self.path, self._file)
            else:
                self._adopt(*self._read())
            self._kept = None

    # The file

    def _read(self) -> tuple[CocoFile, dict[str, Annotated], str]:
        try:
            if self.path.stat().st_size > masks.LARGEST_FILE:
                raise BadAnnotation(f"it is longer than {wording.size(masks.LARGEST_FILE)}")
            content = self.path.read_bytes()
            return *coco.parse(content), _digest(content)
        except BadAnnotation as bad:
            raise BadInput(f"{self.path}: {bad}") from None
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read ({error.strerror}); choose another --out") from None

    def _adopt(self, file: CocoFile, annotated: dict[str, Annotated], digest: str) -> None:
        """Make a file that was read the one that is drawn in."""
        notes = masks.Notes()
        try:
            known = _matched(list(annotated.values()), self.samples, notes)
            ids = {id(each): key for key, each in annotated.items()}
            keys = {index: ids[id(known[int(number)])] for index, number in enumerate(self.numbers) if number in known}
            entries = {index: self._entry_of(index, annotated[key], file.state(key), notes)
                       for index, key in keys.items()}
        except BadAnnotation as bad:
            raise BadInput(f"{self.path}: {bad}") from None
        self._file, self._keys, self._digest, self._seen = file, keys, digest, self._signature()
        for index, current in enumerate(self._entries):
            new = replace(entries.get(index, Entry()), revision=current.revision)
            if new != current:
                self._note(index, replace(new, revision=current.revision + 1))
        self.notes += notes.lines()

    def _bring(self, path: Path) -> bool:
        """Take from another file what it says of images that ours says nothing of; whether there was any."""
        notes, brought = masks.Notes(), False
        left: list[int] = []
        try:
            annotated = [each for each in masks.read(path) if each.regions]
            if not annotated:
                raise BadAnnotation("no image in it is annotated")
            known = _matched(annotated, self.samples, notes)
            for index, number in enumerate(self.numbers):
                if int(number) in known and index in self._keys:
                    with suppress(BadAnnotation):  # it is not taken, so it need not be usable
                        entry = self._entry_of(index, known[int(number)], None, masks.Notes())
                        if entry.polygons != self._entries[index].polygons:
                            left.append(index)
                elif int(number) in known:
                    entry = self._entry_of(index, known[int(number)], None, notes)
                    size = self.size(index)
                    self._file, self._keys[index] = self._file.having(None, self.name(index), size, self.label(index),
                                                                      entry)
                    self._note(index, replace(entry, revision=self._entries[index].revision + 1))
                    brought = True
        except (BadAnnotation, images.BadImage) as bad:
            raise BadInput(f"--open: {path}: {bad}") from None
        self._tell_left(path, left)
        self.notes += notes.lines()
        return brought

    def _tell_left(self, path: Path, left: Sequence[int]) -> None:
        """Say which images another file has other outlines of: what could not be saved may be among them."""
        if left:
            self.notes.append(
                f"--open {path}: {wording.count(len(left), 'image')} left as {self.path} has them, "
                f"{self.name(left[0])}, for example; to take the others: a new --out, with --open {path} --open "
                f"{self.path}")

    def _entry_of(self, index: int, annotated: Annotated, state: coco.State | None, notes: masks.Notes) -> Entry:
        """What a file says of an image, in the pixels of its upright original."""
        name, label = self.name(index), self.label(index)
        regions = masks.of_class(annotated, name, label, self.samples.classes, notes)
        if not regions:
            return Entry("open" if state in (None, "outlined") else state)
        try:
            native = images.upright(self.original(index))
        except images.BadImage as bad:
            raise BadAnnotation(f"the image {name} cannot be read ({bad})") from None
        drawn = masks.mended(masks.united(annotated, regions, native, notes), annotated, native, notes)
        polygons = coco.rounded([each.tolist() for each in drawn.polygons or suggestion.trace(drawn.mask)])
        return Entry("outlined" if polygons else "open", polygons, drawn.uncertain)

    def _write(self, path: Path, file: CocoFile) -> None:
        text = file.text()
        store.replace_text(path, text)
        if path == self.path:
            self._digest, self._seen = _digest(text.encode()), self._signature()

    def _look(self) -> Literal["changed", "gone"] | None:
        """Whether the file is another than the one that was last read or written."""
        try:
            found = _digest(self.path.read_bytes())
        except FileNotFoundError:
            return None if self._digest is None else "gone"
        except OSError:  # it cannot be read any more, so nobody knows what stands there
            return "changed"
        return None if found == self._digest else "changed"

    def _signature(self) -> tuple[int, ...] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _note(self, index: int, entry: Entry) -> None:
        """Make this an image's entry."""
        history = self._history[index]
        history[entry.revision] = self._entries[index] = entry
        history.pop(entry.revision - REMEMBERED, None)
        self.clock += 1
        self._changed[index] = self.clock


def _matched(annotated: Sequence[Annotated], samples: Samples, notes: masks.Notes) -> dict[int, Annotated]:
    """The entry of each sample that a file has. Raises `BadAnnotation` where it has none: it is of other images."""
    known = masks.matched(annotated, samples, notes)
    if annotated and not known:
        raise BadAnnotation(f"it is of other images: it has {annotated[0].file_name!r}, the source "
                            f"{samples.ids[0]!r}, and no image is in both ({len(annotated):,} in the file); name the "
                            "source that it was drawn on, or another file")
    return known


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _beside(path: Path) -> Path:
    """A name beside the file's that is free: `masks.coco.kept-1.json` for `masks.coco.json`."""
    number = 1
    while (free := path.with_name(f"{path.stem}.kept-{number}{path.suffix or '.json'}")).exists():
        number += 1
    return free
