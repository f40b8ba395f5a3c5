"""What annotation files say, and the one line for each thing that they cannot say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlkd import rasters
from tlkd.annotations import Annotated, BadAnnotation, parse

SHARED = Path(__file__).parents[2] / "shared" / "data" / "cifar10-masks" / "annotations.coco.json"
SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]


def mask_of(image: Annotated, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    for region in image.regions:
        if region.pixels is not None:
            mask |= region.pixels()
        for polygon in region.polygons:
            rasters.fill(mask, polygon)
    return mask


def coco(*segmentations: Any, image: Any = None, categories: Any = None, **more: Any) -> dict[str, Any]:
    """A file of one image of 8 x 6 pixels, and an annotation a segmentation."""
    return {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6, **(image or {})}],
            "annotations": [{"id": 10 + number, "image_id": 1, "category_id": 1, "segmentation": each, **more}
                            for number, each in enumerate(segmentations)],
            "categories": [{"id": 1, "name": "cat"}] if categories is None else categories}


def via(*shapes: Any, old: bool = False, **attributes: Any) -> dict[str, Any]:
    regions: Any = [{"shape_attributes": each, "region_attributes": attributes} for each in shapes]
    return {"a.png123": {"filename": "a.png", "size": 123, "file_attributes": {},
                         "regions": dict(enumerate(regions)) if old else regions}}


def labelme(*shapes: Any, **more: Any) -> dict[str, Any]:
    return {"version": "5", "imagePath": "..\\a.png", "imageHeight": 6, "imageWidth": 8, "shapes": list(shapes), **more}


def read(found: Any) -> Annotated:
    only, = parse(json.dumps(found).encode())
    return only


# COCO


def test_coco_polygons_and_runs() -> None:
    image = read(coco([SQUARE, [5, 1, 7, 1, 7, 3, 5, 3]], {"size": [6, 8], "counts": [40, 2, 6]},
                      {"size": [6, 8], "counts": "63n0OYO"}))
    assert (image.file_name, image.size) == ("a.png", (8, 6))
    assert [region.category for region in image.regions] == ["cat"] * 3
    assert [region.name for region in image.regions] == ["annotation 10 of a.png", "annotation 11 of a.png",
                                                         "annotation 12 of a.png"]
    expected = np.zeros((6, 8), np.bool_)
    expected[1:4, 1:5] = expected[1:3, 5:7] = True
    expected[4:6, 6] = expected[0:3, 1] = expected[3:5, 6] = True  # runs go down the columns
    np.testing.assert_array_equal(mask_of(image, 8, 6), expected)


@pytest.mark.parametrize(("attributes", "uncertain"), [
    ({"uncertain": True}, True), ({"uncertain": False}, False), ({"uncertain": "false"}, False),
    ({"uncertain": 1}, True), ({"uncertain": "Yes"}, True), ({"uncertain": ""}, False),
    ({"occluded": True}, False), ({}, False), (None, False),
    ([], False), ({"uncertain": {"yes": True}}, True), ({"uncertain": {"no": True}}, False)])
def test_doubts(attributes: Any, uncertain: bool) -> None:
    assert read(coco([SQUARE], attributes=attributes)).regions[0].uncertain is uncertain
    assert read(coco([SQUARE])).regions[0].uncertain is False
    if isinstance(attributes, dict):
        shape = {"name": "rect", "x": 1, "y": 1, "width": 2, "height": 2}
        assert read(via(shape, **attributes)).regions[0].uncertain is uncertain
        polygon = {"points": [[1, 1], [5, 1], [5, 4]], "flags": attributes}
        assert read(labelme(polygon)).regions[0].uncertain is uncertain


def test_what_tools_write_differently() -> None:
    assert read(coco([SQUARE], category_id=None)).regions[0].category is None  # VIA
    assert read(coco([SQUARE], categories=[])).regions[0].category is None
    assert read(coco(SQUARE)).regions[0].polygons[0].shape == (4, 2)  # early VIA: no list around a single ring
    assert read(coco([SQUARE], image={"id": "1"})).regions  # ids as text on one side only
    assert read(coco([SQUARE], image={"width": None, "height": None})).size is None
    assert read(coco([SQUARE], image={"width": 8.0})).size == (8, 6)
    assert not read(coco()).regions
    bom = parse(b"\xef\xbb\xbf" + json.dumps(coco([SQUARE])).encode())  # Windows
    assert len(bom) == 1


def test_areas_of_a_small_file() -> None:
    """Each area is the number of pixels whose centre lies in the union of the polygons, counted by hand."""
    for rings, area in (([[0, 0, 4, 0, 4, 4, 0, 4]], 16), ([[0, 0, 4, 0, 0, 4]], 10 - 4), ([SQUARE, SQUARE], 12),
                        ([[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]], 7),
                        ([[0.6, 0.6, 2.4, 0.6, 2.4, 2.4, 0.6, 2.4]], 1),
                        ([[-5, -5, 2, -5, 2, 2, -5, 2]], 4)):
        assert mask_of(read(coco(rings)), 8, 6).sum() == area, rings


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared annotations are not on this machine")
def test_areas_of_the_shared_file() -> None:
    content = SHARED.read_bytes()
    areas = [each["area"] for each in json.loads(content)["annotations"]]
    found = parse(content)
    assert len(found) == len(areas) == 100
    assert [mask_of(image, 32, 32).sum() for image in found] == areas
    assert sum(region.uncertain for image in found for region in image.regions) == 14


# VIA and labelme


def test_via_shapes() -> None:
    polygon = {"name": "polygon", "all_points_x": [1, 5, 5, 1], "all_points_y": [1, 1, 4, 4]}
    for shape in (polygon, {**polygon, "name": "polyline"}, {"name": "rect", "x": 1, "y": 1, "width": 4, "height": 3}):
        for old in (False, True):
            mask = mask_of(read(via(shape, old=old)), 8, 6)
            assert mask.sum() == 12
            assert mask[1:4, 1:5].all()
    y, x = np.mgrid[:60, :80] + 0.5
    circle = mask_of(read(via({"name": "circle", "cx": 40, "cy": 20, "r": 15})), 80, 60)
    np.testing.assert_array_equal(circle, (x - 40) ** 2 + (y - 20) ** 2 < 15**2)
    for turn in (0.0, 0.6):
        theta = {"theta": turn} if turn else {}
        mask = mask_of(read(via({"name": "ellipse", "cx": 40.2, "cy": 30.3, "rx": 25.0, "ry": 9.0, **theta})), 80, 60)
        along = (x - 40.2) * np.cos(turn) + (y - 30.3) * np.sin(turn)
        across = (y - 30.3) * np.cos(turn) - (x - 40.2) * np.sin(turn)
        assert (mask != ((along / 25) ** 2 + (across / 9) ** 2 < 1)).sum() <= 2


def test_via_projects_and_annotations_are_alike() -> None:
    shape = {"name": "rect", "x": 1, "y": 1, "width": 4, "height": 3}
    plain, project = read(via(shape)), read({"_via_settings": {}, "_via_img_metadata": via(shape)})
    assert plain.file_name == project.file_name == "a.png"
    assert plain.size is project.size is None
    assert plain.length == project.length == 123
    assert project.regions[0].name == "region 0 of a.png"


@pytest.mark.parametrize(("attributes", "category"), [
    ({"class": "cat"}, "cat"), ({"Label": " dog "}, "dog"), ({"type": {"cat": True, "dog": False}}, "cat"), ({}, None),
    ({"class": ""}, None), ({"class": "", "name": "cat"}, "cat"), ({"type": {"cat": True, "dog": True}}, None),
    ({"class": 3}, None), ({"colour": "red"}, None)])
def test_via_categories(attributes: dict[str, Any], category: str | None) -> None:
    shape = {"name": "rect", "x": 1, "y": 1, "width": 4, "height": 3}
    assert read(via(shape, **attributes)).regions[0].category == category


def test_labelme_shapes() -> None:
    image = read(labelme({"label": "cat", "points": [[1, 1], [5, 1], [5, 4], [1, 4]], "shape_type": "polygon"}))
    assert (image.file_name, image.size, image.regions[0].category) == ("..\\a.png", (8, 6), "cat")
    assert mask_of(image, 8, 6)[1:4, 1:5].sum() == mask_of(image, 8, 6).sum() == 12
    corners = labelme({"label": "cat", "points": [[5, 4], [1, 1]], "shape_type": "rectangle"})
    np.testing.assert_array_equal(mask_of(read(corners), 8, 6), mask_of(image, 8, 6))
    y, x = np.mgrid[:60, :80] + 0.5
    circle = read(labelme({"label": "", "points": [[40, 20], [49, 32]], "shape_type": "circle"}, imageWidth=None,
                          imageHeight=None))
    assert circle.size is None
    assert circle.regions[0].category is None
    np.testing.assert_array_equal(mask_of(circle, 80, 60), (x - 40) ** 2 + (y - 20) ** 2 < 15**2)


# One line for each bad thing

RECT = {"name": "rect", "x": 1, "y": 1, "width": 4, "height": 3}
BAD: list[tuple[Any, str]] = [
    ([], "it holds a list of 0; allowed: COCO"),
    (3, "it holds 3; allowed: COCO"),
    ({}, "it is no annotation file that is known here"),
    ({"project": {}, "metadata": {}}, "its keys being 'project', 'metadata'; allowed: COCO"),
    ({"annotations": []}, "the file: its images is missing; allowed: a list"),
    ({"images": []}, "the file: its annotations is missing; allowed: a list"),
    ({"images": {}, "annotations": []}, "the file: its images is a mapping of 0; allowed: a list"),
    ({"images": [3], "annotations": []}, "images[0] is 3"),
    ({"images": [{"file_name": "a"}], "annotations": []}, "images[0]: its id is missing"),
    (coco(image={"id": [1]}), "images[0]: its id is a list of 1; allowed: a number or a text"),
    (coco(image={"id": "a\nb"}), "images[0]: its id is 'a\\nb'"),
    (coco(image={"file_name": 7}), "image 1: its file_name is 7; allowed: a text"),
    (coco(image={"file_name": "a" * 5000}), "image 1: its file_name is 'aaa"),
    (coco(image={"file_name": ""}), "image 1: its file_name is ''"),
    (coco(image={"file_name": "a\nb"}), "image 1: its file_name is 'a\\nb'"),
    (coco(image={"width": "8"}), "image 1 (a.png): its width is '8'; allowed: a whole number of pixels"),
    (coco(image={"width": 0}), "image 1 (a.png): its width is 0"),
    (coco(image={"width": None}), "image 1 (a.png): its width is None"),
    (coco(image={"height": float("nan")}), "image 1 (a.png): its height is nan"),
    (coco(image={"height": 2.5}), "image 1 (a.png): its height is 2.5"),
    (coco(image={"height": True}), "image 1 (a.png): its height is True"),
    (coco(image={"height": 10**9}), "image 1 (a.png): its height is 1000000000"),
    (coco(image={"height": 10**6, "width": 10**6}), "1000000 x 1000000 pixels are more than"),
    ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}], "annotations": []},
     "the image id 1 is there twice, for 'a.png' and for 'b.png'"),
    (coco([SQUARE], image_id=9), "annotation 10: its image_id 9 is the id of no image"),
    (coco([SQUARE], image_id=None), "annotation 10: its image_id is missing"),
    (coco([SQUARE], category_id=7), "annotation 10 of a.png: its category_id 7 is not among the file's categories"),
    (coco([SQUARE], categories=[{"id": 1}]), "category 1: its name is missing"),
    (coco([SQUARE], categories={"1": "cat"}), "the file: its categories is a mapping of 1; allowed: a list"),
    (coco([SQUARE], categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]),
     "the category id 1 is there twice"),
    (coco(None), "annotation 10 of a.png: its segmentation is missing; draw its outline"),
    (coco([]), "annotation 10 of a.png: its segmentation is empty; draw its outline"),
    (coco("x"), "annotation 10 of a.png: its segmentation is 'x'"),
    (coco([SQUARE, 3]), "annotation 10 of a.png: a polygon is 3; allowed: a list"),
    (coco([[]]), "annotation 10 of a.png: a polygon of 0 points"),
    (coco([[1, 2, 3, 4]]), "annotation 10 of a.png: a polygon of 2 points; draw 3 or more"),
    (coco([[1, 2]]), "annotation 10 of a.png: a polygon of 1 point; draw 3 or more"),
    (coco([[*SQUARE, 3]]), "annotation 10 of a.png: a polygon of 9 coordinates, an odd number"),
    (coco([["1", *SQUARE[1:]]]), "annotation 10 of a.png: a coordinate is '1'; allowed: a number of pixels"),
    (coco([[None, *SQUARE[1:]]]), "a coordinate is None"),
    (coco([[[1, 1], [2, 2], [3, 1]]]), "a coordinate is a list of 2"),
    (coco([[float("nan"), *SQUARE[1:]]]), "a coordinate is nan"),
    (coco([[float("inf"), *SQUARE[1:]]]), "a coordinate is inf"),
    (coco([[10**400, *SQUARE[1:]]]), "a coordinate is 1000"),
    (coco({"size": [6, 8]}), "annotation 10 of a.png: its counts are None"),
    (coco({"counts": [48]}), "annotation 10 of a.png: its size is missing"),
    (coco({"size": [6], "counts": [48]}), "its size is a list of 1; allowed: [height, width]"),
    (coco({"size": [None, None], "counts": [48]}), "allowed: [height, width]"),
    (coco({"size": [8, 6], "counts": [48]}), "its runs are for 6 x 8 pixels, its image is said to have 8 x 6"),
    (coco({"size": [6, 8], "counts": [20, 20]}),
     "its counts are of 40 pixels (the least is 20), its size of 8 x 6 has 48"),
    (coco({"size": [6, 8], "counts": []}), "its counts are of 0 pixels"),
    (coco({"size": [6, 8], "counts": [50, -2]}), "(the least is -2)"),
    (coco({"size": [6, 8], "counts": [48.0]}), "its counts are a list of 1; allowed: whole numbers"),
    (coco({"size": [6, 8], "counts": "1 2"}), "its counts: '1 2' is no compressed text"),
    (coco({"size": [6, 8], "counts": "1"}), "its counts are of 1 pixels"),
    ({"a": {"filename": "a.png"}}, "'a': its regions is missing"),
    ({"a": {"regions": []}}, "'a': its filename is missing"),
    ({"a": {"filename": "a.png", "regions": []}, "b": 3}, "'b' is 3"),
    ({"_via_img_metadata": []}, "_via_img_metadata is a list of 0"),
    ({"a": {"filename": "a.png", "regions": [3]}}, "region 0 of a.png is 3"),
    ({"a": {"filename": "a.png", "regions": [{}]}}, "region 0 of a.png is missing"),
    (via({"name": "point", "cx": 3, "cy": 4}),
     "region 0 of a.png: its shape is 'point'; allowed: polygon, polyline, rect"),
    (via(RECT, {**RECT, "x": "3"}), "region 1 of a.png: its x is '3'; allowed: a number of pixels"),
    (via({"name": "circle", "cx": 3, "cy": 3}), "region 0 of a.png: its r is None"),
    (via({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}), "it has 3 values of x and 2 of y"),
    (via({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}),
     "region 0 of a.png: a polygon of 2 points"),
    (via({"name": "polygon", "all_points_x": [1, 2]}), "region 0 of a.png: its all_points_y is missing"),
    (labelme({"points": [[1, 1], [2, 2]]}), "shape 0 of ..\\a.png: a polygon of 2 points"),
    (labelme({"points": [[1, 1]], "shape_type": "point"}),
     "its shape_type is 'point'; allowed: polygon, rectangle, circle"),
    (labelme({"points": [[1, 1]], "shape_type": "circle"}), "a circle of 1 points; it needs 2"),
    (labelme({"points": [1, 2, 3]}), "its points are a list of 3; allowed: [x, y] each"),
    (labelme(imagePath=None), "the file: its imagePath is missing"),
    (labelme(imageHeight="6"), "its height is '6'"),
]


@pytest.mark.parametrize(("found", "line"), BAD, ids=[line[:60] for _, line in BAD])
def test_bad_files(found: Any, line: str) -> None:
    refused(json.dumps(found).encode(), line)


@pytest.mark.parametrize(("content", "line"), [
    (b"", "it is not JSON"), (b"{'a': 1}", "it is not JSON"), (b"\xff\xd8\xff\xe0 a picture", "it is not JSON"),
    (b'{"images": [' + b"9" * 5000 + b"]}", "it is not JSON"), (b"[" * 200_000, "nested too deeply"),
    (b'{"a":' * 200_000, "nested too deeply")])
def test_bad_texts(content: bytes, line: str) -> None:
    refused(content, line)


def refused(content: bytes, line: str) -> None:
    with pytest.raises(BadAnnotation) as caught:
        parse(content)
    said = str(caught.value)
    assert line in said
    assert "\n" not in said
    assert len(said) < 400

