"""A COCO file that is changed one image at a time: what others wrote stays, what comes out reads back."""

import json

import pytest

from tlkd import coco
from tlkd.annotations import BadAnnotation
from tlkd.coco import CocoFile, Entry

SQUARE = ((1.0, 1.0), (5.0, 1.0), (5.0, 5.0), (1.0, 5.0))
CORNER = ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0))
THIRD = ((7.0, 7.0), (9.0, 7.0), (9.0, 9.5))


def outlined(*polygons: coco.Points, revision: int = 0) -> Entry:
    return Entry("outlined" if polygons else "open", polygons, False, revision)


def read(file: CocoFile) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads(file.text())
    return found


def test_a_new_image() -> None:
    file, key = CocoFile().having(None, "test/cat/1.png", (12, 8), "cat", outlined(SQUARE, CORNER))
    found = read(file)
    assert found["images"] == [{"id": 1, "file_name": "test/cat/1.png", "width": 12, "height": 8,
                                "tlkd": {"state": "outlined"}}]
    assert found["categories"] == [{"id": 1, "name": "cat"}]
    first, second = found["annotations"]
    assert first == {"id": 1, "iscrowd": 0, "image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 4.0, 4.0], "area": 16.0,
                     "segmentation": [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]], "attributes": {"uncertain": False}}
    assert second["area"] == 2.0
    back, annotated = coco.parse(file.text().encode())
    assert back.text() == file.text()
    assert [len(region.polygons) for region in annotated[key].regions] == [1, 1]
    assert back.state(key) == "outlined"


def test_what_others_wrote_stays() -> None:
    theirs = {"info": {"by": "CVAT"}, "licenses": [1], "images": [
        {"id": 7, "file_name": "a.png", "width": 12, "height": 8, "license": 1},
        {"id": 9, "file_name": "b.png", "width": 12, "height": 8, "date": "today"}],
        "categories": [{"id": 3, "name": "Cat", "supercategory": "animal"}],
        "annotations": [
            {"id": 4, "image_id": 9, "category_id": 3, "segmentation": [[0, 0, 3, 0, 0, 3]], "keypoints": 5},
            {"id": 5, "image_id": 7, "category_id": 3, "segmentation": [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]],
             "attributes": {"by": "me"}}]}
    file, annotated = coco.parse(json.dumps(theirs).encode())
    assert list(annotated) == ["7", "9"]
    file, _ = file.having("7", "ignored", (12, 8), "cat", outlined(SQUARE, CORNER))
    file, key = file.having(None, "c.png", (12, 8), "dog", outlined(THIRD))
    found = read(file)
    assert (found["info"], found["licenses"]) == ({"by": "CVAT"}, [1])
    assert found["images"][1] == theirs["images"][1]
    assert found["images"][0] == {**theirs["images"][0], "tlkd": {"state": "outlined"}}  # type: ignore[index, dict-item]
    assert found["categories"] == [{"id": 3, "name": "Cat", "supercategory": "animal"}, {"id": 4, "name": "dog"}]
    by_id = {each["id"]: each for each in found["annotations"]}
    assert by_id[4] == theirs["annotations"][0]
    assert by_id[5]["attributes"] == {"by": "me", "uncertain": False}  # the same outline is the same annotation
    assert sorted(by_id) == [4, 5, 6, 7]
    assert key == "10"


@pytest.mark.parametrize("content", [b'{"_via_img_metadata": {}}', b"[]", b"", b'{"imagePath": "a", "shapes": []}',
                                     b'{"annotations": []}', b"\xff\xfe"])
def test_what_is_no_coco_file_is_refused(content: bytes) -> None:
    with pytest.raises(BadAnnotation):
        coco.parse(content)


@pytest.mark.parametrize(("theirs", "ours", "both"), [
    ((SQUARE, CORNER), (SQUARE, THIRD), (SQUARE, CORNER, THIRD)),  # each has drawn one
    ((SQUARE,), (), ()),  # we have deleted it, they have done nothing
    ((), (SQUARE,), ()),  # the other way round
    ((CORNER,), (THIRD,), (CORNER, THIRD)),  # both have moved it: both stay
    ((), (THIRD,), (THIRD,)),  # they have deleted what we have moved: it stays
    ((SQUARE, CORNER), (SQUARE, CORNER), (SQUARE, CORNER)),  # the same twice is there once
])
def test_two_changes_to_one_image(theirs: tuple[coco.Points, ...], ours: tuple[coco.Points, ...],
                                  both: tuple[coco.Points, ...]) -> None:
    base = outlined(SQUARE, revision=3)
    merged = coco.merged(base, outlined(*theirs, revision=4), outlined(*ours, revision=3))
    assert merged == outlined(*both, revision=4)


def test_states_and_doubts_of_two() -> None:
    base = Entry("open", revision=1)
    assert coco.merged(base, Entry("skipped", revision=2), base).state == "skipped"
    assert coco.merged(base, base, Entry("no_foreground")).state == "no_foreground"
    assert coco.merged(base, outlined(SQUARE), Entry("no_foreground")) == outlined(SQUARE)  # an outline is never lost
    assert coco.merged(base, Entry(uncertain=True), base).uncertain
    assert coco.merged(Entry(uncertain=True), Entry(uncertain=True), base).uncertain is False
