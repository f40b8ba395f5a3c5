"""What a person draws: it stands in the file after every change, starts again from it, and nothing gets lost."""

import json
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import refused
from tlkd import sources
from tlkd.coco import Entry
from tlkd.datasets import open_dataset
from tlkd.masks import open_masks
from tlkd.outlines import ChangedOutside, Outlines, Stale
from tlkd.specs import Data

SQUARE = ((4.0, 4.0), (20.0, 4.0), (20.0, 20.0), (4.0, 20.0))
OTHER = ((22.0, 22.0), (36.0, 22.0), (30.0, 38.0))
THIRD = ((1.0, 30.0), (9.0, 30.0), (9.0, 39.0))


@pytest.fixture
def samples(shapes_folder: Path) -> sources.Samples:
    return sources.folder(shapes_folder, "shapes")


@pytest.fixture
def opened(samples: sources.Samples, tmp_path: Path) -> Callable[..., Outlines]:
    """The outlines of the test images in `masks.json`, as a new start finds them."""
    def open_it(*others: Path) -> Outlines:
        assert samples.held_out is not None
        return Outlines(tmp_path / "masks.json", samples, np.flatnonzero(samples.held_out), others)

    return open_it


def outlined(*polygons: Any, revision: int = 0, uncertain: bool = False) -> Entry:
    return Entry("outlined", polygons, uncertain, revision)


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_change_is_in_the_file_and_found_again(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    first = opened()
    assert not (tmp_path / "masks.json").exists()  # nothing is written before there is something to write
    assert first.save(0, outlined(SQUARE, OTHER)) == outlined(SQUARE, OTHER, revision=1)
    assert len(content(tmp_path / "masks.json")["annotations"]) == 2
    first.save(1, Entry("no_foreground"))
    first.save(2, Entry("skipped"))
    first.save(3, outlined(SQUARE, uncertain=True))
    first.save(3, outlined(THIRD, uncertain=True, revision=1))
    first.save(4, outlined(SQUARE))
    first.save(4, Entry("open", revision=1))
    again = opened()
    for index in range(5):
        assert again.entry(index).polygons == first.entry(index).polygons
        assert (again.entry(index).state, again.entry(index).uncertain) == (first.entry(index).state,
                                                                          first.entry(index).uncertain)
    assert again.counts() == {"outlined": 2, "no_foreground": 1, "skipped": 1, "open": 20}
    assert again.notes == []


def test_the_study_takes_the_file(opened: Callable[..., Outlines], shapes_folder: Path, tmp_path: Path) -> None:
    drawn = opened()
    drawn.save(0, outlined(SQUARE, OTHER))
    drawn.save(1, Entry("no_foreground"))
    drawn.save(2, Entry("skipped"))
    drawn.save(9, outlined(THIRD, uncertain=True))
    data = Data(source=f"folder:{shapes_folder}", masks=str(tmp_path / "masks.json"))
    dataset = open_dataset(data, 40, tmp_path / "cache")
    found = open_masks(data, dataset, 40, tmp_path / "cache")
    assert [dataset.ids[row] for row in found.rows] == [drawn.name(0), drawn.name(9)]
    assert found.uncertain.tolist() == [False, True]
    assert found.masks[0, 4:20, 4:20].all()
    assert not found.masks[0, :4].any()
    assert found.masks[0, 22:38].any()


def test_a_change_to_a_revision_that_has_passed(opened: Callable[..., Outlines]) -> None:
    drawn = opened()
    drawn.save(0, outlined(SQUARE))
    drawn.save(0, outlined(SQUARE, OTHER, revision=1))  # one tab
    with pytest.raises(Stale) as caught:
        drawn.save(0, outlined(SQUARE, THIRD, revision=1))  # another, which knows nothing of it
    assert caught.value.current == outlined(SQUARE, OTHER, revision=2)
    assert caught.value.merged == outlined(SQUARE, OTHER, THIRD, revision=2)
    assert drawn.entry(0) == caught.value.current
    assert drawn.save(0, caught.value.merged).revision == 3
    drawn.save(1, outlined(THIRD))  # another image is another matter


def test_fifty_at_once_lose_nothing(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    """Fifty tabs draw an outline each, all on three images; every one is there in the end."""
    drawn = opened()
    start, failed = threading.Barrier(50), []

    def tab(number: int) -> None:
        entry = outlined(((number / 5, 1.0), (number / 5 + 9, 1.0), (number / 5, 30.0)))
        start.wait()
        for _ in range(200):
            try:
                drawn.save(number % 3, entry)
                return
            except Stale as stale:
                entry = stale.merged
        failed.append(number)

    threads = [threading.Thread(target=tab, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [len(drawn.entry(index).polygons) for index in range(3)] == [17, 17, 16]
    assert len(content(tmp_path / "masks.json")["annotations"]) == 50
    assert sorted(x[0][0] for index in range(3) for x in opened().entry(index).polygons) == [n / 5 for n in range(50)]


def test_a_file_changed_outside_is_not_overwritten(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    drawn, path, beside = opened(), tmp_path / "masks.json", tmp_path / "masks.kept-1.json"
    drawn.save(0, outlined(SQUARE))
    assert drawn.outside() is None
    theirs = path.read_text().replace("20.0", "19.0")
    path.write_text(theirs)
    found = drawn.outside()
    assert found is not None
    assert (found.what, found.kept) == ("changed", None)
    with pytest.raises(ChangedOutside) as caught:
        drawn.save(1, outlined(OTHER))
    assert caught.value.outside.kept == beside
    assert caught.value.entry == outlined(OTHER, revision=1)
    with pytest.raises(ChangedOutside):  # work may go on, and is kept in the same place
        drawn.save(1, outlined(OTHER, THIRD, revision=1))
    assert path.read_text() == theirs
    assert len(content(beside)["annotations"]) == 3
    drawn.reload()
    assert drawn.outside() is None
    assert drawn.entry(0).polygons[0][1] == (19.0, 4.0)
    assert drawn.entry(0).revision == 2  # what a tab still has of it is old now
    assert drawn.entry(1) == Entry(revision=3)
    drawn.save(2, outlined(SQUARE))
    assert len(content(beside)["annotations"]) == 3  # what was kept stays
    merged = opened(beside)  # and can be brought back, for images that the file says nothing of
    assert merged.entry(1).polygons == (OTHER, THIRD)
    assert merged.entry(0).polygons[0][1] == (19.0, 4.0)
    said = [note for note in merged.notes if note.startswith(f"--open {beside}: 1 image left as {path} has them")]
    assert len(said) == 1  # and not without a word for the others
    assert merged.name(0) in said[0]


def test_a_second_conflict_has_a_file_of_its_own(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    drawn, path = opened(), tmp_path / "masks.json"
    drawn.save(0, outlined(SQUARE))
    for number in (1, 2):
        path.write_text(path.read_text() + " ")
        with pytest.raises(ChangedOutside) as caught:
            drawn.save(number, outlined(OTHER))
        assert caught.value.outside.kept == tmp_path / f"masks.kept-{number}.json"
        drawn.reload()


def test_a_file_that_is_gone_can_be_written_again(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    drawn, path = opened(), tmp_path / "masks.json"
    drawn.save(0, outlined(SQUARE))
    path.unlink()
    with pytest.raises(ChangedOutside) as caught:
        drawn.save(1, outlined(OTHER))
    assert caught.value.outside.what == "gone"
    assert not path.exists()
    drawn.reload()
    assert opened().counts()["outlined"] == 2


def test_a_file_that_appears_is_not_overwritten(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    drawn, path = opened(), tmp_path / "masks.json"
    path.write_text("mine")
    with pytest.raises(ChangedOutside):
        drawn.save(0, outlined(SQUARE))
    assert path.read_text() == "mine"
    refused(drawn.reload, "masks.json", "not JSON")
    assert drawn.entry(0).polygons == (SQUARE,)


def test_a_disk_that_refuses_changes_nothing(opened: Callable[..., Outlines], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = opened()
    drawn.save(0, outlined(SQUARE))
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        refused(lambda: drawn.save(0, outlined(OTHER, revision=1)), "the disk is full")
    assert drawn.entry(0) == outlined(SQUARE, revision=1)
    assert drawn.outside() is None
    assert drawn.save(0, outlined(OTHER, revision=1)).revision == 2


def test_an_image_that_vanishes_keeps_what_is_drawn_on_it(shapes_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_folder, tmp_path / "images")
    found = sources.folder(tmp_path / "images", "shapes")
    drawn = Outlines(tmp_path / "masks.json", found, np.arange(len(found.ids)))
    assert drawn.size(0) == (40, 40)
    (tmp_path / "images" / found.ids[0]).unlink()
    assert drawn.save(0, outlined(SQUARE)).revision == 1
    refused(lambda: Outlines(tmp_path / "masks.json", found, np.arange(3)), "masks.json", found.ids[0], "gone")


def test_a_file_of_other_images_is_refused(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "elsewhere.jpg", "width": 3, "height": 3}],
                                "annotations": []}))
    before = path.read_text()
    refused(opened, "masks.json", "other images", "elsewhere.jpg", "train/disc/000.png")
    assert path.read_text() == before
    path.rename(tmp_path / "theirs.json")
    refused(lambda: opened(tmp_path / "theirs.json"), "--open: ", "annotated")


def test_images_of_the_file_that_are_not_asked_for_stay(samples: sources.Samples, tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    few = Outlines(path, samples, np.array([0, 5]))
    few.save(0, outlined(SQUARE))
    few.save(1, outlined(OTHER))
    other = Outlines(path, samples, np.array([5, 9]))
    assert [other.entry(index).state for index in (0, 1)] == ["outlined", "open"]
    other.save(1, outlined(THIRD))
    assert len(content(path)["annotations"]) == 3
    assert Outlines(path, samples, np.array([0])).entry(0).polygons == (SQUARE,)


VIA = {"x": {"filename": "test/disc/000.png", "size": -1, "regions": [{"region_attributes": {"class": "disc"},
       "shape_attributes": {"name": "polygon", "all_points_x": [4, 20, 20], "all_points_y": [4, 4, 20]}}]}}
LABELME = {"imagePath": "../test/disc/000.png", "imageWidth": 20, "imageHeight": 20, "shapes": [
    {"label": "disc", "points": [[2, 2], [10, 2], [10, 10]]}]}  # drawn at half the size
CVAT = {"images": [{"id": 1, "file_name": "000.png", "width": 40, "height": 40},
                   {"id": 2, "file_name": "test/disc/001.png", "width": 40, "height": 40}],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "frame"}], "annotations": [
            {"id": 1, "image_id": 2, "category_id": 1, "segmentation": {"size": [40, 40], "counts": [164, 16, 24, 16,
             1380]}}, {"id": 2, "image_id": 2, "category_id": 2, "segmentation": [[0, 0, 9, 0, 9, 9]]}]}


@pytest.mark.parametrize(("theirs", "index"), [(VIA, 0), (LABELME, 0)])
def test_files_of_other_tools_are_a_start(opened: Callable[..., Outlines], tmp_path: Path, theirs: Any,
                                          index: int) -> None:
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    drawn = opened(tmp_path / "theirs.json")
    assert drawn.entry(index) == outlined(((4.0, 4.0), (20.0, 4.0), (20.0, 20.0)), revision=1)
    assert len(content(tmp_path / "masks.json")["annotations"]) == 1  # at once
    drawn.save(index, Entry("open", revision=1))
    assert opened(tmp_path / "theirs.json").entry(index) == Entry()  # what was deleted does not come back


def test_pixels_become_polygons(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    theirs = {**CVAT, "images": CVAT["images"][1:]}
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    drawn = opened(tmp_path / "theirs.json")
    (polygon,) = drawn.entry(1).polygons
    assert sorted(polygon) == [(4.0, 4.0), (4.0, 20.0), (6.0, 4.0), (6.0, 20.0)]
    assert any("another class" in note for note in drawn.notes)


def test_names_that_mean_several_images_are_refused(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_text(json.dumps({**CVAT, "annotations": [
        {"id": 1, "image_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}]}))
    refused(lambda: opened(tmp_path / "theirs.json"), "--open: ", "theirs.json", "000.png", "put the folder in front")


def test_a_photo_that_exif_turns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name / "1.jpg", exif=exif)
    found = sources.folder(tmp_path / "images", "photos")
    drawn = Outlines(tmp_path / "masks.json", found, np.arange(2))
    assert drawn.size(0) == (40, 60)
    drawn.save(0, outlined(((1.0, 1.0), (39.0, 1.0), (39.0, 59.0))))
    assert Outlines(tmp_path / "masks.json", found, np.arange(2)).entry(0).polygons == drawn.entry(0).polygons


def test_the_clock_tells_what_has_changed(opened: Callable[..., Outlines]) -> None:
    drawn = opened()
    drawn.save(4, outlined(SQUARE))
    clock, changed = drawn.changes(0)
    assert changed == [4]
    drawn.save(7, Entry("skipped"))
    assert drawn.changes(clock) == (clock + 1, [7])


def test_no_half_written_file_is_left(opened: Callable[..., Outlines], tmp_path: Path) -> None:
    drawn = opened()
    for number in range(5):
        drawn.save(number, outlined(SQUARE))
    assert [path.name for path in tmp_path.iterdir()] == ["masks.json"]
    assert stat.S_ISREG((tmp_path / "masks.json").stat().st_mode)
