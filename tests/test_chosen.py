"""Which images a person is asked to outline: splits, draws that are nested, lists, a study's own."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import conftest
from study_folders import lay_down
from tlkd import explained, store
from tlkd.chosen import Choice, Chosen, choose
from tlkd.explained import ExplainedImages


def chosen(choice: Choice, tmp_path: Path) -> Chosen:
    return choose(choice, tmp_path / "cache")


def names(found: Chosen) -> list[str]:
    return [found.samples.ids[number] for number in found.numbers]


def refused(choice: Choice, tmp_path: Path, *parts: str) -> None:
    conftest.refused(lambda: chosen(choice, tmp_path), *parts)


@pytest.mark.parametrize(("split", "count"), [(None, 24), ("test", 24), ("train", 60), ("all", 84)])
def test_splits(shapes_folder: Path, tmp_path: Path, split: str | None, count: int) -> None:
    found = chosen(Choice(str(shapes_folder), split=split), tmp_path)
    assert len(found.numbers) == count
    assert found.data.source == f"folder:{shapes_folder}"
    labels = found.samples.labels[found.numbers]
    assert (np.diff(labels) >= 0).all()  # class by class


def test_a_source_without_a_test_split_has_the_study_s(tmp_path: Path) -> None:
    found = chosen(Choice("mnist5k", per_class=2), tmp_path)
    assert len(found.numbers) == 20
    test, train = (set(names(chosen(Choice("mnist5k", split=split), tmp_path))) for split in ("test", "train"))
    assert not test & train
    assert len(test | train) == 5000


def test_the_draw_is_balanced_and_nested(shapes_folder: Path, tmp_path: Path) -> None:
    few, more = (names(chosen(Choice(str(shapes_folder), per_class=number), tmp_path)) for number in (3, 5))
    assert set(few) < set(more)
    assert Counter(name.split("/")[1] for name in more) == {"disc": 5, "frame": 5, "stripes": 5}
    other = names(chosen(Choice(str(shapes_folder), per_class=3, seed=1), tmp_path))
    assert other != few
    assert few == names(chosen(Choice(f"folder:{shapes_folder}", per_class=3), tmp_path))
    assert len(chosen(Choice(str(shapes_folder), per_class=99), tmp_path).numbers) == 24


def test_a_list_of_names(shapes_folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("\ufefftest/stripes/003.png\n\n test/disc/001.png \r\ntest/stripes/003.png\ntrain/disc/002.png\n")
    found = names(chosen(Choice(str(shapes_folder), listed=listed), tmp_path))
    assert found == ["train/disc/002.png", "test/disc/001.png", "test/stripes/003.png"]


@pytest.mark.parametrize(("content", "parts"), [
    ("nowhere.png\n", ("no image 'nowhere.png'", "train/disc/000.png")), ("", ("names no image",)),
    ("003.png\n", ("means 6 images", "put the folder in front")), (b"\xff\xfe\xff", ("UTF-8",)),
    (None, ("No such file",)),
])
def test_lists_that_cannot_be_used(shapes_folder: Path, tmp_path: Path, content: str | bytes | None,
                                   parts: tuple[str, ...]) -> None:
    listed = tmp_path / "list.txt"
    if content is not None:
        listed.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(Choice(str(shapes_folder), listed=listed), tmp_path, "--list: ", "list.txt", *parts)


@pytest.mark.parametrize(("choice", "parts"), [
    (Choice(), ("SOURCE: is missing", "cifar10")),
    (Choice("no/such/place"), ("SOURCE: found 'no/such/place'", "folder:PATH")),
    (Choice(""), ("SOURCE: found ''",)),
    (Choice("mnist5k", split="dev"), ("--split: found 'dev'", "test, train, all")),
    (Choice("mnist5k", split="test", listed=Path("x")), ("--split", "--list")),
    (Choice(study=Path("no/study")), ("no/study", "no study lies here")),
])
def test_choices_that_cannot_be_met(tmp_path: Path, choice: Choice, parts: tuple[str, ...]) -> None:
    refused(choice, tmp_path, *parts)


def test_a_study_s_explained_images(shapes_folder: Path, tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "study")
    refused(Choice(str(shapes_folder), study=folder.path), tmp_path, "--study", "no images have been explained")
    ids = np.array(["test/frame/002.png", "test/disc/004.png"])
    store.write_json(folder.path / "explanations" / "masks.json", {})
    explained.save_images(folder.path / "explanations", ExplainedImages(
        ids, np.array([1, 0]), np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.bool_), np.zeros((2, 4, 4), np.bool_),
        np.zeros(2, np.bool_), {}, ()))
    found = chosen(Choice(str(shapes_folder), study=folder.path), tmp_path)
    assert names(found) == ["test/disc/004.png", "test/frame/002.png"]
    refused(Choice("mnist5k", study=folder.path), tmp_path, "--study", "no image 'test/frame/002.png'", "mnist5k/")
