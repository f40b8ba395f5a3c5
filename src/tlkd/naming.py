"""What annotation files call images and classes, and which of a source they mean; pure."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

Reading = Callable[[str], str]


class Names:
    """The samples of a source, to be found by what annotation files call them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = [tuple(each.split("/")) for each in ids]
        self.folders = {part.casefold() for parts in self.ids for part in parts[:-1]}
        self.places: list[tuple[Reading, Reading, dict[str, list[int]]]] = [
            (key, of_folder, {}) for key, of_folder in ((_plain, _plain), (_stem, _plain), (_folded, str.casefold))]
        for key, _, places in self.places:
            for number, parts in enumerate(self.ids):
                places.setdefault(key(parts[-1]), []).append(number)

    def find(self, name: str) -> tuple[list[int], bool]:
        """The numbers of the samples that a name may mean, and whether folders had to be cut off that no id has.

        A name is as good as an id that it ends with, or that ends with it, by whole folders and as it stands; failing
        that without what follows the last dot, or `_mask` before it; failing that in capitals or not.
        """
        parts_of, cut = list(dict.fromkeys(_readings(name))), False
        while parts_of:
            for key, of_folder, places in self.places:
                for parts in parts_of:
                    found = [number for number in places.get(key(parts[-1]), [])
                             if _agree([*map(of_folder, parts[:-1])], [*map(of_folder, self.ids[number][:-1])])]
                    exact = [number for number in found if self.ids[number] == parts]
                    if found:
                        return exact or found, cut
            # A folder that the source knows means something: train/1.png is not test/1.png.
            parts_of = [parts[1:] for parts in parts_of if len(parts) > 1 and parts[0].casefold() not in self.folders]
            cut = True
        return [], False


def class_key(name: str) -> str:
    """A class's name without what tools and people change about it."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _readings(name: str) -> Iterator[tuple[str, ...]]:
    """The ways in which a name may be meant, as folders and file: Windows's, a URL's, a mask's."""
    slashed = name.replace("\\", "/")
    address = unquote(re.sub(r"^\w+://[^/]*|[?#].*$", "", slashed))
    for text in (name, slashed, address, re.sub(r"_mask(\.\w+)?$", r"\1", slashed, flags=re.IGNORECASE)):
        parts = tuple(part for part in text.split("/") if part not in ("", ".", ".."))
        if parts:
            yield parts


def _agree(one: list[str], other: list[str]) -> bool:
    common = min(len(one), len(other))
    return one[len(one) - common:] == other[len(other) - common:]


def _plain(name: str) -> str:
    return name


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _folded(name: str) -> str:
    return _stem(name).casefold()
